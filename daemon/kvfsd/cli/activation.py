"""Sockets that systemd has opened for us: sd_listen_fds(3) in a few lines."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from kvfs.errors import ConfigError

FIRST_DESCRIPTOR: Final = 3
DESCRIPTORS_MAX: Final = 16


def inherited(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening unix stream sockets that were passed; none if the variables are not for this process.

    The variables are taken out, so that no child believes in them.

    Raises:
        ConfigError: a descriptor is something else.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + min(int(count), DESCRIPTORS_MAX)):
        os.set_inheritable(descriptor, False)
        try:
            listener = socket.socket(fileno=descriptor)
            listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise ConfigError(f"descriptor {descriptor} of the service manager: {error.strerror}") from error
        if not listening or listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM:
            raise ConfigError(f"descriptor {descriptor} of the service manager is no listening unix stream socket")
        found.append(listener)
    return found

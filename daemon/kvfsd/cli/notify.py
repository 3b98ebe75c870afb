"""Tell systemd that the service is ready: sd_notify(3) in a few lines."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send `state` (for example "READY=1") to the service manager; False if there is none listening.

    A lost notification is systemd's to notice (its start timeout), so errors are not raised.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection,
    ):
        connection.settimeout(1.0)
        connection.sendto(state.encode(), address)
        return True
    return False

"""What the kernel knows of the process at the other end of a unix socket."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

from kvfsd.server.admittance import Peer

SO_PEERGROUPS: Final = 59
"""Linux 4.13; not in Python's socket module."""
_CREDENTIALS: Final = struct.Struct("3i")
_GROUPS_MAX_BYTES: Final = 1024
"""The most that Python's getsockopt takes: 256 groups."""


def peer_of(connection: socket.socket) -> Peer:
    """Process, user and groups of the peer at the time it connected; of over 256 groups only the primary one."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    gids = {gid}
    with contextlib.suppress(OSError):  # an old kernel, or more groups: the primary group alone
        groups = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_MAX_BYTES)
        gids.update(struct.unpack(f"{len(groups) // 4}I", groups))
    return Peer(pid, uid, frozenset(gids))

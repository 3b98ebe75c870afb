"""Connecting to a daemon: socket, hello, welcome."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from kvfs import wire
from kvfs.errors import ConfigError, DeadlineExceededError, KvfsError, ProtocolError, Status, error_for
from kvfs.framestream import ConnectionLostError, FrameStream, receive_within
from kvfs.handshake import FEATURES_KNOWN, SHARED_SLOTS, Hello, Welcome
from kvfs.sharedslots import SharedSlots

CONNECT_DEADLINE_MS: Final = 5_000
WELCOME_DEADLINE_MS: Final = 30_000
"""A daemon that resumes an attachment first waits for what is still running of it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to attach to, and with what."""

    socket_path: Path
    tenant: str
    credential: bytes = b""
    features: int = FEATURES_KNOWN


@dataclass(frozen=True, slots=True)
class Resume:
    """The attachment to go on with; 0: a new one."""

    attachment: int = 0
    token: bytes = b""


class UnreachableError(KvfsError):
    """Nobody answers on the socket, or the connection broke before the welcome: worth trying again."""

    status = Status.MEDIUM_UNAVAILABLE


async def connect(
    target: Target, resume: Resume, take_payload: Callable[[int], memoryview]
) -> tuple[FrameStream, Welcome]:
    """Connect and shake hands.

    Raises:
        UnreachableError: see there.
        KvfsError: the class of the status with which the daemon refused, or ProtocolError.
    """
    stream = FrameStream(await _open_socket(target.socket_path), wire.Kind.WELCOME, take_payload=take_payload)
    stream.descriptors = []
    try:
        hello = Hello(target.features, target.tenant, target.credential, resume.attachment, resume.token)
        await stream.send(wire.encode_hello(hello))
        welcome = (await receive_within(stream, WELCOME_DEADLINE_MS)).message
        if not isinstance(welcome, Welcome):
            raise ProtocolError("the daemon did not answer a hello with a welcome")
        if welcome.status != Status.OK:
            raise error_for(Status(welcome.status), welcome.detail)
        _share(stream, welcome)
    except (ConnectionLostError, DeadlineExceededError) as error:
        stream.close()
        raise UnreachableError(f"{target.socket_path}: {error}") from None
    except BaseException:
        stream.close()
        raise
    stream.reader.accept(wire.Kind.COMPLETION, wire.Kind.EVENT, wire.Kind.FAREWELL)
    return stream, welcome


def _share(stream: FrameStream, welcome: Welcome) -> None:
    """Map the slots that came with the welcome, if any did."""
    descriptors, stream.descriptors = stream.descriptors or [], None
    if welcome.features & SHARED_SLOTS:
        if len(descriptors) != 1:
            raise ProtocolError(f"a welcome with {len(descriptors)} descriptors, want one for the shared slots")
        stream.reader.shared = SharedSlots.adopt(descriptors[0], welcome.data_depth)
    else:
        for descriptor in descriptors:
            os.close(descriptor)


async def _open_socket(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        with trio.fail_after(CONNECT_DEADLINE_MS / 1000):
            while not _connected(connection, path):  # noqa: ASYNC110 - a full backlog has no event to wait for
                await trio.sleep(0.01)
    except (OSError, trio.TooSlowError) as error:
        connection.close()
        if isinstance(error, PermissionError):
            raise ConfigError(f"{path}: no permission to connect; ask for access to the socket") from None
        reason = error.strerror if isinstance(error, OSError) else "it does not accept"
        raise UnreachableError(f"nobody answers on {path}: {reason}") from None
    except BaseException:
        connection.close()
        raise
    return connection


def _connected(connection: socket.socket, path: Path) -> bool:
    try:
        connection.connect(str(path).encode("utf-8", "surrogateescape"))
    except BlockingIOError:  # unix(7): the backlog is full
        return False
    return True

"""The admin socket: JSON-RPC 2.0 on a unix socket, for the user who runs the mount (and root) only.

The socket is 0600 inside a directory that is 0700, and each peer's credentials are checked as well. Connections,
requests and time are bounded; a slow or silent peer costs one connection slot until its deadline.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from kvfs.errors import ConfigError, KvfsError, ProtocolError
from kvfsd.admin import jsonrpc

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 32
BACKLOG: Final = 32
RECEIVE_BYTES: Final = 64 * 1024
IDLE_DEADLINE_MS: Final = 60_000
"""A connection that sends nothing for this long is closed."""
CALL_DEADLINE_MS: Final = 30_000
SOCKET_PATH_MAX_BYTES: Final = 107
"""sun_path less its terminating zero (unix(7))."""


class NoParams(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of a method that has none."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method: what it does in a line, the type of its parameters, and the coroutine that runs it."""

    summary: str
    run: Callable[[Any], Awaitable[object]]
    params: type[msgspec.Struct] = NoParams


class Methods:
    """The methods of one admin socket, by name; `rpc_get_methods` lists them, as SPDK's does."""

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}
        self.add("rpc_get_methods", Method("Names of all methods.", self._names))

    def add(self, name: str, method: Method) -> None:
        """Register `method`; a name is taken once."""
        if name in self._methods:
            raise ValueError(f"admin method {name} registered twice")
        self._methods[name] = method

    async def _names(self, _: NoParams) -> list[str]:
        return sorted(self._methods)

    async def run(self, name: str, params: dict[str, Any]) -> object:
        """Run one method in place; KeyError, msgspec.ValidationError, and what the method raises."""
        method = self._methods[name]
        return await method.run(msgspec.convert(params, method.params))

    async def answer(self, message: jsonrpc.Message) -> bytes:
        """Run the calls of one message in order, each within CALL_DEADLINE_MS, and encode the answers."""
        answers = []
        for item in message.items:
            if isinstance(item, jsonrpc.Refusal):
                answers.append(jsonrpc.error_object(item.id, item.code, item.message))
                continue
            outcome = await self._call(item)
            if not item.notification:
                answers.append(outcome)
        return jsonrpc.encode_answers(answers, batch=message.batch)

    async def _call(self, call: jsonrpc.Call) -> dict[str, Any]:
        method = self._methods.get(call.method)
        if method is None:
            return jsonrpc.error_object(call.id, jsonrpc.METHOD_NOT_FOUND, f"no method {call.method[:80]!r}")
        try:
            params = msgspec.convert(call.params, method.params)
        except msgspec.ValidationError as error:
            return jsonrpc.error_object(call.id, jsonrpc.INVALID_PARAMS, f"{call.method}: {error}")
        try:
            with trio.fail_after(CALL_DEADLINE_MS / 1000):
                result = await method.run(params)
            return jsonrpc.result_object(call.id, msgspec.to_builtins(result))
        except KvfsError as error:
            return jsonrpc.domain_error_object(call.id, error)
        except trio.TooSlowError:
            text = f"{call.method} was not done within {CALL_DEADLINE_MS} ms"
            return jsonrpc.error_object(call.id, jsonrpc.INTERNAL_ERROR, text)
        except Exception:
            log.exception("admin method %s failed", call.method)
            return jsonrpc.error_object(call.id, jsonrpc.INTERNAL_ERROR, "internal error; the log has its traceback")


def listen(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening unix socket at `path`; a socket left there by a dead process is replaced.

    Raises:
        ConfigError: the path is too long, is something else than a socket, or a live process answers there.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
        raise ConfigError(f"{path}: over {SOCKET_PATH_MAX_BYTES} bytes; set XDG_RUNTIME_DIR to a shorter directory")
    _remove_dead_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listener.fileno(), mode)  # before bind: the file is made with the mode of the socket
        listener.bind(os.fsencode(path))
        os.chmod(path, mode)  # what the umask took
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def _remove_dead_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is no socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fsencode(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ConfigError(f"another process answers on {path}; end that one first")


async def serve(listener: socket.socket, methods: Methods, idle_deadline_ms: int = IDLE_DEADLINE_MS) -> None:
    """Answer connections on `listener` until cancelled; owns and closes it. At most CONNECTIONS_MAX at once."""
    slots = trio.Semaphore(CONNECTIONS_MAX)
    sock = trio.socket.from_stdlib_socket(listener)
    with sock:
        async with trio.open_nursery() as nursery:
            while True:
                await slots.acquire()
                try:
                    connection, _ = await sock.accept()
                except OSError as error:  # out of descriptors, or the peer was gone already
                    log.warning("admin socket: accept failed: %s", error.strerror)
                    slots.release()
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(_converse, connection, methods, slots, idle_deadline_ms)


async def _converse(
    connection: trio.socket.SocketType, methods: Methods, slots: trio.Semaphore, idle_deadline_ms: int
) -> None:
    try:
        with connection:
            if _peer_allowed(connection):
                await _answer_all(trio.SocketStream(connection), methods, idle_deadline_ms)
    except (trio.BrokenResourceError, trio.TooSlowError, OSError):
        log.debug("admin connection ended by its peer or its deadline")
    except Exception:  # a bug here costs this connection, never the mount beside it
        log.exception("admin connection failed")
    finally:
        slots.release()


async def _answer_all(stream: trio.SocketStream, methods: Methods, idle_deadline_ms: int) -> None:
    texts = jsonrpc.TextStream()
    while True:
        with trio.fail_after(idle_deadline_ms / 1000):
            data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            return
        try:
            whole = texts.feed(bytes(data))
        except ProtocolError as error:
            refusal = jsonrpc.error_object(None, jsonrpc.PARSE_ERROR, str(error))
            with trio.fail_after(idle_deadline_ms / 1000):
                await stream.send_all(jsonrpc.encode_answers([refusal], batch=False))
            return
        for text in whole:
            answer = await methods.answer(jsonrpc.parse_message(text))
            with trio.fail_after(idle_deadline_ms / 1000):
                await stream.send_all(answer)


def _peer_allowed(connection: trio.socket.SocketType) -> bool:
    """The peer is root or the user of this process (SO_PEERCRED, unix(7))."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    assert isinstance(credentials, bytes)
    _, uid, _ = struct.unpack("3i", credentials)
    if uid in (0, os.geteuid()):
        return True
    log.warning("admin connection of uid %d refused", uid)
    return False

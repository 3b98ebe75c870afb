"""A blocking client of the admin socket, for the commands."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, Final

from kvfs.errors import ConfigError, DeadlineExceededError, KvfsError, ProtocolError, Status, error_for
from kvfsd.admin import jsonrpc

ANSWER_MAX_BYTES: Final = 16 << 20
CALL_DEADLINE_MS: Final = 35_000
"""A little more than the server's own deadline for a call."""


def call(path: str, method: str, params: dict[str, Any] | None = None, *, deadline_ms: int = CALL_DEADLINE_MS) -> Any:
    """Run `method` on the admin socket at `path` and return its result.

    Raises:
        ConfigError: nobody answers there.
        DeadlineExceededError: no whole answer within `deadline_ms`.
        ProtocolError: the answer is no JSON-RPC, or the method or its parameters are unknown there.
        KvfsError: the class for the status that the server answered.
    """
    end = time.monotonic() + deadline_ms / 1000
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.settimeout(deadline_ms / 1000)
            connection.connect(os.fsencode(path))
            connection.sendall(jsonrpc.encode_request(method, params or {}, 1))
            text = _receive(connection, end)
        except TimeoutError as error:
            raise DeadlineExceededError(f"{path} did not answer {method} within {deadline_ms} ms") from error
        except OSError as error:
            raise ConfigError(f"nobody answers on {path}: {error.strerror}") from error
    return _result(text, method)


def _receive(connection: socket.socket, end: float) -> bytes:
    texts = jsonrpc.TextStream(ANSWER_MAX_BYTES)
    while True:
        remaining = end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.settimeout(remaining)
        data = connection.recv(1 << 16)
        if not data:
            raise ProtocolError("the admin socket was closed before its answer")
        if whole := texts.feed(data):
            return whole[0]


def _result(text: bytes, method: str) -> Any:
    try:
        answer = json.loads(text)
        error = answer.get("error")
        if error is None:
            return answer["result"]
        raise _error(error["code"], str(error["message"]), method)
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        raise ProtocolError(f"{method}: the answer is no JSON-RPC 2.0") from failure


def _error(code: int, message: str, method: str) -> KvfsError:
    status = jsonrpc.DOMAIN_ERROR_BASE - code
    if status in set(Status):
        return error_for(Status(status), message)
    return ProtocolError(f"{method}: {message}")

"""JSON-RPC 2.0, sans-io: bytes in, requests out; results and errors in, bytes out.

Framing is SPDK's: JSON texts follow each other on the stream with or without white space between them, so that
SPDK's own client can talk to us. A text is bounded before it is kept (REQUEST_MAX_BYTES) and parsed only when whole.
What breaks framing (garbage between texts, an oversized text) ends the stream; what is wrong inside a text is
answered with the error the specification names for it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from kvfs.errors import KvfsError, ProtocolError

REQUEST_MAX_BYTES: Final = 1 << 20
BATCH_MAX: Final = 64

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
DOMAIN_ERROR_BASE: Final = -32000
"""Our own errors are DOMAIN_ERROR_BASE - Status, inside the range that JSON-RPC 2.0 leaves to servers."""

RequestId: TypeAlias = int | str | None


@dataclass(frozen=True, slots=True)
class Call:
    """A request to run `method`; a notification (no id) gets no answer."""

    method: str
    params: dict[str, Any]
    id: RequestId
    notification: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A text, or a member of a batch, that is no valid request: answered with this error."""

    code: int
    message: str
    id: RequestId = None


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON text: its calls and refusals in order; `batch` if the answers go into an array."""

    items: tuple[Call | Refusal, ...]
    batch: bool


_STRUCTURE = re.compile(rb'["{}\[\]\\]')
_STRING_END = re.compile(rb'["\\]')


class TextStream:
    """Cuts a byte stream into JSON texts by counting brackets; linear in the bytes fed."""

    def __init__(self, max_bytes: int = REQUEST_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> list[bytes]:
        """The texts completed by `data`.

        Raises:
            ProtocolError: something that is neither object nor array begins a text, or a text is over the limit.
        """
        self._buffer += data
        texts = []
        while (end := self._scan()) is not None:
            texts.append(bytes(self._buffer[:end]))
            del self._buffer[:end]
            self._scanned = 0
        if len(self._buffer) > self._max_bytes:
            raise ProtocolError(f"a JSON text is longer than {self._max_bytes} bytes")
        return texts

    def _scan(self) -> int | None:
        """Scan on from where the last call stopped: the end of the first text, or None if it is not whole yet."""
        if self._depth == 0 and not self._begin():
            return None
        while True:
            pattern = _STRING_END if self._in_string else _STRUCTURE
            found = pattern.search(self._buffer, self._scanned)
            if found is None:
                self._scanned = len(self._buffer)
                return None
            self._scanned = found.end()
            match found.group():
                case b"\\":  # in a string: the next byte is escaped, whatever it is
                    if found.end() == len(self._buffer):
                        self._scanned = found.start()
                        return None
                    self._scanned += 1
                case b'"':
                    self._in_string = not self._in_string
                case b"{" | b"[":
                    self._depth += 1
                case _:
                    self._depth -= 1
            if self._depth == 0:
                return self._scanned

    def _begin(self) -> bool:
        """Drop white space before a text; False if there is nothing else."""
        skipped = len(self._buffer) - len(self._buffer.lstrip())
        del self._buffer[:skipped]
        self._scanned = 0
        if not self._buffer:
            return False
        if self._buffer[0] not in b"{[":
            raise ProtocolError("a JSON-RPC text begins with { or [")
        return True


def parse_message(text: bytes) -> Message:
    """The calls in one text. Never raises: what is wrong becomes a Refusal."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return Message((Refusal(PARSE_ERROR, "not valid JSON"),), batch=False)
    if isinstance(value, list):
        if not 1 <= len(value) <= BATCH_MAX:
            return Message((Refusal(INVALID_REQUEST, f"a batch has 1 to {BATCH_MAX} requests"),), batch=False)
        return Message(tuple(_parse_call(member) for member in value), batch=True)
    return Message((_parse_call(value),), batch=False)


def _parse_call(value: object) -> Call | Refusal:
    if not isinstance(value, dict):
        return Refusal(INVALID_REQUEST, "a request is an object")
    identifier = value.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, int | str | None):
        return Refusal(INVALID_REQUEST, "id is a string or an integer")
    if value.get("jsonrpc") != "2.0":
        return Refusal(INVALID_REQUEST, 'jsonrpc is "2.0"', identifier)
    method = value.get("method")
    if not isinstance(method, str):
        return Refusal(INVALID_REQUEST, "method is a string", identifier)
    params = value.get("params", {})
    if params is None:
        params = {}
    if not isinstance(params, dict):
        return Refusal(INVALID_PARAMS, "params is an object: parameters have names here", identifier)
    return Call(method, params, identifier, notification="id" not in value)


def encode_request(method: str, params: dict[str, Any], identifier: int) -> bytes:
    """The text of a call."""
    return _encode({"jsonrpc": "2.0", "method": method, "params": params, "id": identifier})


def result_object(identifier: RequestId, result: object) -> dict[str, Any]:
    """The answer to a call that succeeded."""
    return {"jsonrpc": "2.0", "id": identifier, "result": result}


def error_object(identifier: RequestId, code: int, message: str, data: object = None) -> dict[str, Any]:
    """The answer to a call that failed."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": identifier, "error": error}


def domain_error_object(identifier: RequestId, error: KvfsError) -> dict[str, Any]:
    """The answer to a call that failed with one of our errors; `data.status` has the name of its status."""
    return error_object(identifier, DOMAIN_ERROR_BASE - int(error.status), str(error), {"status": error.status.name})


def encode_answers(answers: list[dict[str, Any]], *, batch: bool) -> bytes:
    """The text that answers a message; empty if there is nothing to answer (notifications only)."""
    if not answers:
        return b""
    return _encode(answers if batch else answers[0])


def _encode(value: object) -> bytes:
    # ASCII with escapes: a path that is not UTF-8 travels as lone surrogates, and comes back as it was
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"

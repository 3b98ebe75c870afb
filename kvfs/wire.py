"""Frames of the queue pair: a sans-io codec. Bytes in any splits go in, requests, completions and events come out.

docs/PROTOCOL.md is normative. A frame is a 16-byte header, the message in MessagePack, and at most one payload:

    offset  size  field
    0       4     magic, "KVQP"
    4       1     version, 1
    5       1     kind: 1 request, 2 completion, 3 event; 4 hello, 5 welcome, 6 farewell (kvfs.handshake)
    6       2     flags: 0, or SLOT_FLAG and the number of a shared slot in the high byte
    8       4     meta length, bytes of the encoded message, 1 .. limits.FRAME_META_MAX_BYTES
    12      4     payload length, bytes, 0 .. limits.BLOCK_BYTES

Integers are little endian. A payload belongs to a WriteBlock request or to a Block completion, nothing else.
Every error is a ProtocolError: it is the peer's fault, any other exception is a bug of ours.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple, NoReturn, TypeAlias

import msgspec

from kvfs import limits
from kvfs.commands import Block, Completion, Event, Request, WriteBlock
from kvfs.errors import ProtocolError, Status
from kvfs.handshake import Farewell, Hello, Welcome, check_hello, check_welcome
from kvfs.queuepair import Buffer

MAGIC: Final = b"KVQP"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sBBHII")
FRAME_MAX_BYTES: Final = HEADER.size + limits.FRAME_META_MAX_BYTES + limits.BLOCK_BYTES
BUFFERED_MAX_BYTES: Final = 2 * FRAME_MAX_BYTES
"""Bytes a decoder holds: a frame that is not complete, and what came behind it in the same receive."""
SLOT_FLAG: Final = 1
HANDSHAKE_META_MAX_BYTES: Final = 4 * limits.KIB
"""Encoded hello, welcome or farewell: little is kept for a peer that has not been let in."""
SEQUENCE_MAX: Final = (1 << 63) - 1


class Kind(enum.IntEnum):
    """What a frame carries."""

    REQUEST = 1
    COMPLETION = 2
    EVENT = 3
    HELLO = 4
    WELCOME = 5
    FAREWELL = 6


Message: TypeAlias = Request | Completion | Event | Hello | Welcome | Farewell


class Frame(NamedTuple):
    """A decoded frame. `payload` is a copy of its own: the sender cannot change it after it was checked."""

    kind: Kind
    message: Message
    payload: Buffer
    slot: int | None = None
    """The shared slot that it names."""


class Header(NamedTuple):
    """A frame's header, already within its bounds; lengths in bytes."""

    kind: Kind
    meta_bytes: int
    payload_bytes: int
    slot: int | None = None


_ENCODER: Final = msgspec.msgpack.Encoder()
_REQUESTS: Final = msgspec.msgpack.Decoder(Request)
_COMPLETIONS: Final = msgspec.msgpack.Decoder(Completion)
_EVENTS: Final[msgspec.msgpack.Decoder[Event]] = msgspec.msgpack.Decoder(Event)
_HELLOS: Final = msgspec.msgpack.Decoder(Hello)
_WELCOMES: Final = msgspec.msgpack.Decoder(Welcome)
_FAREWELLS: Final = msgspec.msgpack.Decoder(Farewell)
_KINDS: Final = tuple(Kind)
_STATUSES: Final = frozenset(int(status) for status in Status)


def parse_header(data: Buffer, slots: int = 0) -> Header:
    """The header at the start of `data` (16 bytes or more); both sides share `slots` slots.

    Raises ProtocolError naming the field that is wrong.
    """
    magic, version, kind, flags, meta_bytes, payload_bytes = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError(f"frame header: magic is {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise ProtocolError(f"frame header: version {version}, this side speaks {VERSION}")
    if not 0 < kind <= len(_KINDS):
        raise ProtocolError(f"frame header: unknown kind {kind}")
    slot = flags >> 8 if flags & 0xFF == SLOT_FLAG else None
    if flags and (slot is None or slot >= slots or kind > Kind.COMPLETION):
        raise ProtocolError(f"frame header: unknown flags {flags:#06x}")
    meta_max_bytes = limits.FRAME_META_MAX_BYTES if kind <= Kind.EVENT else HANDSHAKE_META_MAX_BYTES
    if not 0 < meta_bytes <= meta_max_bytes:
        raise ProtocolError(f"frame header: meta length {meta_bytes} is not 1 .. {meta_max_bytes}")
    if payload_bytes > (limits.BLOCK_BYTES if kind <= Kind.COMPLETION else 0):
        name = _KINDS[kind - 1].name.lower()
        raise ProtocolError(f"frame header: payload length {payload_bytes} is too much for {name} frames")
    return Header(_KINDS[kind - 1], meta_bytes, payload_bytes, slot)


def check_request(request: Request, payload_bytes: int) -> None:
    """Identity and payload rules of a request. Raises ProtocolError."""
    if not 0 <= request.cid < limits.QUEUE_DEPTH:
        raise ProtocolError(f"request: cid {request.cid} is not below {limits.QUEUE_DEPTH}")
    if not 0 < request.sequence <= SEQUENCE_MAX:
        raise ProtocolError(f"request: sequence {request.sequence} is not 1 .. 2^63-1")
    if isinstance(request.command, WriteBlock):
        if not 0 < payload_bytes <= limits.BLOCK_BYTES:
            raise ProtocolError(f"WriteBlock: payload of {payload_bytes} bytes is not 1 .. {limits.BLOCK_BYTES}")
    elif payload_bytes:
        raise ProtocolError(f"{type(request.command).__name__}: a payload of {payload_bytes} bytes where none belongs")


def check_completion(completion: Completion, payload_bytes: int) -> None:
    """Status, result and payload rules of a completion. Raises ProtocolError."""
    if not 0 <= completion.cid < limits.QUEUE_DEPTH:
        raise ProtocolError(f"completion: cid {completion.cid} is not below {limits.QUEUE_DEPTH}")
    if completion.status not in _STATUSES:
        raise ProtocolError(f"completion: unknown status {completion.status}")
    if (completion.result is not None) != (completion.status == Status.OK):
        raise ProtocolError(f"completion: status {completion.status} contradicts its result")
    expected = completion.result.length if isinstance(completion.result, Block) else 0
    if payload_bytes != expected:
        raise ProtocolError(f"completion: payload of {payload_bytes} bytes, its result says {expected}")


def _encode(kind: Kind, message: Message, payload: Buffer, slot: int | None = None) -> list[Buffer]:
    meta = _ENCODER.encode(message)
    payload_bytes = memoryview(payload).nbytes
    if len(meta) > limits.FRAME_META_MAX_BYTES:
        raise ProtocolError(f"{type(message).__name__}: {len(meta)} bytes encoded, over {limits.FRAME_META_MAX_BYTES}")
    flags = 0 if slot is None else SLOT_FLAG | slot << 8
    head = HEADER.pack(MAGIC, VERSION, kind, flags, len(meta), payload_bytes) + meta
    return [head, payload] if payload_bytes and slot is None else [head]


def encode_request(request: Request, payload: Buffer = b"", slot: int | None = None) -> list[Buffer]:
    """The buffers of a request frame, in order; the payload is passed through uncopied, or lies in the shared slot.

    Raises ProtocolError.
    """
    check_request(request, memoryview(payload).nbytes)
    return _encode(Kind.REQUEST, request, payload, slot)


def encode_completion(completion: Completion, payload: Buffer = b"", slot: int | None = None) -> list[Buffer]:
    """The buffers of a completion frame, in order; the payload is passed through uncopied, or lies in the shared slot.

    Raises ProtocolError.
    """
    check_completion(completion, memoryview(payload).nbytes)
    return _encode(Kind.COMPLETION, completion, payload, slot)


def encode_event(event: Event) -> list[Buffer]:
    """The buffer of an event frame."""
    return _encode(Kind.EVENT, event, b"")


def encode_hello(hello: Hello) -> list[Buffer]:
    """The buffer of a hello frame. Raises ProtocolError."""
    check_hello(hello)
    return _encode(Kind.HELLO, hello, b"")


def encode_welcome(welcome: Welcome) -> list[Buffer]:
    """The buffer of a welcome frame. Raises ProtocolError."""
    check_welcome(welcome)
    return _encode(Kind.WELCOME, welcome, b"")


def encode_farewell() -> list[Buffer]:
    """The buffer of a farewell frame."""
    return _encode(Kind.FAREWELL, Farewell(), b"")


def decode_message(kind: Kind, meta: Buffer, payload_bytes: int) -> Message:
    """The message of a frame whose header said `kind` and `payload_bytes`. Raises ProtocolError."""
    try:
        if kind is Kind.REQUEST:
            request = _REQUESTS.decode(meta)
            check_request(request, payload_bytes)
            return request
        if kind is Kind.COMPLETION:
            completion = _COMPLETIONS.decode(meta)
            check_completion(completion, payload_bytes)
            return completion
        if kind is Kind.EVENT:
            return _EVENTS.decode(meta)
        return _decode_handshake(kind, meta)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{kind.name.lower()} frame: {error}") from error


def _decode_handshake(kind: Kind, meta: Buffer) -> Message:
    if kind is Kind.HELLO:
        hello = _HELLOS.decode(meta)
        check_hello(hello)
        return hello
    if kind is Kind.WELCOME:
        welcome = _WELCOMES.decode(meta)
        check_welcome(welcome)
        return welcome
    return _FAREWELLS.decode(meta)


class FrameDecoder:
    """Turns received bytes into frames. One decoder serves one direction of one connection.

    Feed it with `receive`, then call `next_frame` until it returns None. After a ProtocolError the stream has no
    known frame boundary any more, so the decoder is poisoned: every later call raises the same error.
    """

    def __init__(self, *accept: Kind) -> None:
        self._accept = frozenset(accept or Kind)
        self._buffer = bytearray()
        self._header: Header | None = None
        self._poison: ProtocolError | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes received and not yet part of a returned frame."""
        return len(self._buffer)

    def receive(self, data: Buffer) -> None:
        """Take bytes from the transport. Raises ProtocolError past BUFFERED_MAX_BYTES, before keeping them."""
        self._raise_if_poisoned()
        size = memoryview(data).nbytes
        if len(self._buffer) + size > BUFFERED_MAX_BYTES:
            self._fail(ProtocolError(f"{len(self._buffer)} + {size} bytes buffered, over {BUFFERED_MAX_BYTES}"))
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next complete frame, or None until more bytes are received. Raises ProtocolError."""
        self._raise_if_poisoned()
        try:
            return self._next_frame()
        except ProtocolError as error:
            self._fail(error)

    def finish(self) -> None:
        """The transport ended. Raises ProtocolError if that was inside a frame."""
        self._raise_if_poisoned()
        if self._buffer:
            self._fail(ProtocolError(f"the stream ended inside a frame, after {len(self._buffer)} of its bytes"))

    def _next_frame(self) -> Frame | None:
        if self._header is None:
            if len(self._buffer) < HEADER.size:
                return None
            header = parse_header(self._buffer)
            if header.kind not in self._accept:
                raise ProtocolError(f"frame header: a {header.kind.name.lower()} has no place on this side")
            self._header = header
        header = self._header
        end = HEADER.size + header.meta_bytes + header.payload_bytes
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            payload_at = HEADER.size + header.meta_bytes
            meta = bytes(view[HEADER.size : payload_at])
            payload = bytes(view[payload_at:end])
        message = decode_message(header.kind, meta, header.payload_bytes)
        del self._buffer[:end]
        self._header = None
        return Frame(header.kind, message, payload)

    def _fail(self, error: ProtocolError) -> NoReturn:
        self._poison = error
        self._buffer.clear()
        raise error

    def _raise_if_poisoned(self) -> None:
        if self._poison is not None:
            raise ProtocolError(f"the stream is poisoned: {self._poison}")

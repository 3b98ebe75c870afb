"""Frames out of a stream without a spare copy: payloads are received straight into the buffer they stay in. Sans-io.

`wanted` says where the transport is to put its next bytes, `received` how many came; `next_frame` gives what is
complete. Same rules and errors as `kvfs.wire.FrameDecoder`, which tests compare it with. Memory: one buffer for headers
and messages, which grows to the largest frame without its payload, and one payload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from kvfs import limits
from kvfs.errors import ProtocolError
from kvfs.sharedslots import SharedSlots
from kvfs.wire import HEADER, Frame, Header, Kind, Message, decode_message, parse_header

START_BYTES: Final = 64 * limits.KIB
"""First size of the buffer for headers and messages: many small frames in one receive."""
_NONE: Final = memoryview(b"")


def new_payload(length: int) -> memoryview:
    """A fresh buffer for a payload."""
    return memoryview(bytearray(length))


class FrameReader:
    """Turns received bytes into frames; one for each direction of a connection.

    `take_payload` gives a writable buffer of the length asked for (at most `limits.BLOCK_BYTES`), when the header
    and message of the frame are in order; the frame owns it. After a ProtocolError every later call raises it again.
    """

    def __init__(self, *accept: Kind, take_payload: Callable[[int], memoryview] = new_payload) -> None:
        self._accept = frozenset(accept or Kind)
        self._take_payload = take_payload
        self.shared: SharedSlots | None = None
        """Slots whose numbers frames may name; payloads there are copied out when the frame has come."""
        self._memory = bytearray(START_BYTES)
        self._start = 0
        self._stop = 0
        self._header: Header | None = None
        self._message: Message | None = None
        self._payload: memoryview | None = None
        self._payload_stop = 0
        self._poison: ProtocolError | None = None

    def accept(self, *kinds: Kind) -> None:
        """From the next frame on, these kinds have a place."""
        self._accept = frozenset(kinds)

    @property
    def inside_frame(self) -> bool:
        """Whether part of a frame has been received."""
        return self._stop > self._start or self._payload is not None

    def wanted(self) -> memoryview:
        """Where the next bytes go, never empty. Any view taken before is dead after `received`."""
        if self._payload is not None:
            return self._payload[self._payload_stop :]
        return memoryview(self._memory)[self._stop :]

    def received(self, count: int) -> None:
        """The transport put `count` bytes at the start of `wanted`."""
        if self._payload is not None:
            self._payload_stop += count
        else:
            self._stop += count

    def finish(self) -> None:
        """The transport ended. Raises ProtocolError if that was inside a frame."""
        self._raise_if_poisoned()
        if self.inside_frame:
            self._fail(ProtocolError("the stream ended inside a frame"))

    def next_frame(self) -> Frame | None:
        """The next complete frame, or None until more bytes are received. Raises ProtocolError."""
        self._raise_if_poisoned()
        try:
            frame = self._next_frame()
        except ProtocolError as error:
            self._fail(error)
        if frame is None and self._payload is None:
            self._make_room()
        return frame

    def _next_frame(self) -> Frame | None:
        if self._payload is not None:
            return self._frame_with_payload()
        if self._header is None:
            if self._stop - self._start < HEADER.size:
                return None
            self._header = self._parse_header()
        header = self._header
        meta_at = self._start + HEADER.size
        payload_at = meta_at + header.meta_bytes
        if self._stop < payload_at:
            return None
        with memoryview(self._memory) as view:
            message = decode_message(header.kind, view[meta_at:payload_at], header.payload_bytes)
        self._start = payload_at
        if not header.payload_bytes:
            self._header = None
            return Frame(header.kind, message, _NONE, header.slot)
        if header.slot is not None and self.shared is not None:
            self._header = None
            payload = self.shared.take(header.slot, self._take_payload(header.payload_bytes))
            return Frame(header.kind, message, payload, header.slot)
        return self._begin_payload(header, message)

    def _parse_header(self) -> Header:
        with memoryview(self._memory) as view:
            header = parse_header(view[self._start : self._stop], self.shared.count if self.shared is not None else 0)
        if header.kind not in self._accept:
            raise ProtocolError(f"frame header: a {header.kind.name.lower()} has no place here")
        return header

    def _begin_payload(self, header: Header, message: Message) -> Frame | None:
        """The message is in order: the payload goes to a buffer of its own."""
        self._message = message
        self._payload = self._take_payload(header.payload_bytes)
        count = min(header.payload_bytes, self._stop - self._start)
        with memoryview(self._memory) as view:
            self._payload[:count] = view[self._start : self._start + count]
        self._start += count
        self._payload_stop = count
        return self._frame_with_payload()

    def _frame_with_payload(self) -> Frame | None:
        payload, header, message = self._payload, self._header, self._message
        assert payload is not None
        assert header is not None
        assert message is not None
        if self._payload_stop < header.payload_bytes:
            return None
        self._payload = self._header = None
        return Frame(header.kind, message, payload)

    def _make_room(self) -> None:
        """Room for the rest of the frame that has begun, and at least for a header."""
        held = self._stop - self._start
        need = HEADER.size if self._header is None else HEADER.size + self._header.meta_bytes
        if self._start and (not held or self._start + need >= len(self._memory)):
            self._memory[:held] = self._memory[self._start : self._stop]
            self._start, self._stop = 0, held
        if self._start + need >= len(self._memory):
            self._memory.extend(bytes(self._start + need + 1 - len(self._memory)))

    def _fail(self, error: ProtocolError) -> NoReturn:
        self._poison = error
        self._memory = bytearray(1)
        self._start = self._stop = 0
        self._payload = self._header = None
        raise error

    def _raise_if_poisoned(self) -> None:
        if self._poison is not None:
            raise ProtocolError(f"the stream is poisoned: {self._poison}")

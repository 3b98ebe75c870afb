"""The embedded queue pair: host half and DPU half in one process, a function call apart.

`CodecQueuePair` is the same with every request, completion and event through the wire's codec: whatever could not be
serialised fails there. The test suite runs on both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from kvfs import limits, wire
from kvfs.commands import (
    MUTATING,
    Command,
    Completion,
    EntryGone,
    Event,
    ObjectChanged,
    ReadBlock,
    Request,
    Sync,
    WriteBlock,
)
from kvfs.errors import DeadlineExceededError, ProtocolError, Status, error_for
from kvfs.locks import acquire
from kvfs.queuepair import Buffer, Reply
from kvfsd.service.session import Answer, Session

_WAITING: Final = frozenset({ReadBlock, WriteBlock, Sync})
"""Commands that may wait for media. Only what may wait gets a deadline, a scope costs more than a lookup."""
_STATUSES: Final = tuple(Status)
"""By number: they count from 0 without a gap. A tuple, because a miss is to cost as little as possible."""


class InProcessQueuePair:
    """`kvfs.queuepair.QueuePair` on a session in this process. It owns the session: `aclose` detaches it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sequence = 0
        self._free_cids = list(range(limits.QUEUE_DEPTH))
        # One slot is left for commands that never wait, so that a lookup does not queue behind data.
        self._waiting_slots = trio.Semaphore(limits.QUEUE_DEPTH - 1)

    async def submit(self, command: Command, payload: Buffer = b"") -> Reply:
        """See `QueuePair.submit`."""
        kind = type(command)
        if kind in _WAITING or (kind in MUTATING and self._session.has_to_wait(kind)):
            completion, plaintext, release = await self._submit_waiting(command, payload)
        else:
            self._sequence += 1
            # Nothing waits in there, so the slot is free again before anybody else can look at it.
            request = Request(self._free_cids[-1], self._sequence, command)
            completion, plaintext, release = await self._exchange(request, payload)
        if completion.result is None:
            raise error_for(_STATUSES[completion.status], completion.detail)
        return Reply(completion.result, plaintext, release)

    async def _submit_waiting(self, command: Command, payload: Buffer) -> Answer:
        with trio.move_on_after(limits.COMMAND_DEADLINE_MS / 1000):
            await acquire(self._waiting_slots)
            cid = self._free_cids.pop()
            self._sequence += 1
            try:
                return await self._exchange(Request(cid, self._sequence, command), payload)
            finally:
                self._free_cids.append(cid)
                self._waiting_slots.release()
        name = type(command).__name__
        raise DeadlineExceededError(f"{name} was not done in {limits.COMMAND_DEADLINE_MS} ms")

    async def _exchange(self, request: Request, payload: Buffer) -> Answer:
        return await self._session.execute(request, payload)

    def take_events(self) -> list[Event]:
        """See `QueuePair.take_events`."""
        return self._session.events.take()

    async def wait_event(self) -> None:
        """See `QueuePair.wait_event`."""
        await self._session.events.wait()

    def on_state_lost(self, call: Callable[[], None]) -> None:
        """See `QueuePair.on_state_lost`."""

    async def aclose(self) -> None:
        """See `QueuePair.aclose`."""
        await self._session.aclose()


class CodecQueuePair(InProcessQueuePair):
    """An in-process queue pair whose every message is encoded and decoded, cut into pieces of `split_bytes`."""

    def __init__(self, session: Session, split_bytes: int = 64 * limits.KIB) -> None:
        super().__init__(session)
        self._split_bytes = split_bytes
        self._to_daemon = wire.FrameDecoder(wire.Kind.REQUEST)
        self._to_host = wire.FrameDecoder(wire.Kind.COMPLETION, wire.Kind.EVENT)

    async def _exchange(self, request: Request, payload: Buffer) -> Answer:
        received = self._carry(wire.encode_request(request, payload), self._to_daemon)
        if not isinstance(received.message, Request):
            raise ProtocolError("a request arrived as something else")
        completion, plaintext, release = await super()._exchange(received.message, received.payload)
        answer = self._carry(wire.encode_completion(completion, plaintext), self._to_host)
        if release is not None:
            release()
        if not isinstance(answer.message, Completion):
            raise ProtocolError("a completion arrived as something else")
        return answer.message, memoryview(answer.payload), None

    def take_events(self) -> list[Event]:
        """See `QueuePair.take_events`."""
        events: list[Event] = []
        for event in super().take_events():
            message = self._carry(wire.encode_event(event), self._to_host).message
            if not isinstance(message, EntryGone | ObjectChanged):
                raise ProtocolError("an event arrived as something else")
            events.append(message)
        return events

    def _carry(self, buffers: list[Buffer], decoder: wire.FrameDecoder) -> wire.Frame:
        stream = b"".join(bytes(buffer) for buffer in buffers)
        for start in range(0, len(stream), self._split_bytes):
            decoder.receive(stream[start : start + self._split_bytes])
        frame = decoder.next_frame()
        decoder.finish()
        if frame is None:
            raise ProtocolError("a whole frame was sent and did not arrive")
        return frame

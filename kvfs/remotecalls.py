"""Commands in flight on a remote queue pair: slots, answers, and what becomes of one that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import trio

from kvfs import limits
from kvfs.commands import Command, Completion, ReadBlock, Request, Sync, WriteBlock
from kvfs.errors import KvfsError
from kvfs.framestream import FrameStream
from kvfs.queuepair import Buffer

DATA_COMMANDS: Final = frozenset({ReadBlock, WriteBlock, Sync})
"""Commands that wait for media; the daemon says how many of them may be outstanding."""
EVENTS_MAX: Final = 4_096
"""Events that wait to be taken; one more turns them all into ObjectChanged(0)."""
_EMPTY: Final = memoryview(b"")


class Call:
    """One command from `CallTable.begin` to `CallTable.end`."""

    __slots__ = ("abandoned", "answer", "done", "error", "link", "payload", "received", "request", "sent", "slot")

    def __init__(self, request: Request, payload: Buffer, slot: int | None) -> None:
        self.request = request
        self.slot = slot
        """The shared slot of a data command, for its payload or its answer's."""
        self.payload = payload
        self.link: FrameStream | None = None
        """The connection on which it was last begun to be sent."""
        self.sent = False
        """Sent whole on `link`."""
        self.abandoned = False
        """Nobody waits for it; its slot is kept until the daemon has done with it."""
        self.done = trio.Event()
        self.answer: Completion | None = None
        self.received = _EMPTY
        """The payload of the answer."""
        self.error: KvfsError | None = None
        """Set instead of `answer` when there will be none."""

    def finish(self, answer: Completion, received: memoryview) -> None:
        """The completion is here."""
        self.answer = answer
        self.received = received
        self.done.set()

    def fail(self, error: KvfsError) -> None:
        """There will be no completion."""
        self.error = error
        self.done.set()


class CallTable:
    """The calls of a queue pair by slot; who finds no slot free waits."""

    def __init__(self) -> None:
        self._free_slots: list[int] = []
        self._data_depth = 0
        self._calls: dict[int, Call] = {}
        self._free_cids = list(range(limits.QUEUE_DEPTH - 1, -1, -1))
        self._sequence = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self._waiting_data = trio.lowlevel.ParkingLot()

    def allow_data(self, depth: int) -> None:
        """So many data commands may be outstanding. Once said, it only grows."""
        self._free_slots += range(self._data_depth, depth)
        self._data_depth = max(self._data_depth, depth)
        self._waiting_data.unpark_all()

    def __iter__(self) -> Iterator[Call]:
        """Calls in flight, oldest first."""
        return iter(sorted(self._calls.values(), key=lambda call: call.request.sequence))

    def __len__(self) -> int:
        return len(self._calls)

    async def begin(self, command: Command, payload: Buffer) -> Call:
        """Give the command a slot and a sequence number; waits for a slot. Without a checkpoint when there is one."""
        data = type(command) in DATA_COMMANDS
        while True:
            if data and not self._free_slots:
                self._waiting.unpark()  # a wake-up that this task cannot use
                await self._waiting_data.park()
            elif not self._free_cids:
                await self._waiting.park()
            else:
                break
        cid = self._free_cids.pop()
        self._sequence += 1
        call = self._calls[cid] = Call(
            Request(cid, self._sequence, command), payload, self._free_slots.pop() if data else None
        )
        return call

    def next_unsent(self, link: FrameStream) -> Call | None:
        """The oldest call that has not gone out on `link` and still waits for its answer."""
        return next((call for call in self if call.link is not link and not call.done.is_set()), None)

    def find(self, completion: Completion) -> Call | None:
        """The call that a completion answers."""
        call = self._calls.get(completion.cid)
        return call if call is not None and call.request.sequence == completion.sequence else None

    def end(self, call: Call) -> None:
        """The slot is free again; twice is harmless."""
        cid = call.request.cid
        if self._calls.get(cid) is not call:
            return
        del self._calls[cid]
        self._free_cids.append(cid)
        if call.slot is not None:
            self._free_slots.append(call.slot)
            self._waiting_data.unpark()
        self._waiting.unpark()

    def end_abandoned(self) -> None:
        """The connection is gone, and with it everything that nobody waits for."""
        for call in [call for call in self._calls.values() if call.abandoned]:
            self.end(call)

"""One connection of a mount: requests in, completions and events out, until one side ends it.

Commands that need no media are carried out by the receiving task, in the order in which they come, and it sends their
answers: a mount that does not take its answers is not read from either. Data commands overlap, DATA_DEPTH of them, and
so do changes that have to wait for the metadata log, WAITING_CHANGES_MAX of them. So a mount makes the daemon hold at
most DATA_DEPTH payloads, so many messages, and its bounded queue of events.
"""

from __future__ import annotations

import logging
import mmap
from typing import Final

import trio

from kvfs import limits, wire
from kvfs.buffers import BufferPool
from kvfs.commands import Completion, Request
from kvfs.errors import DeadlineExceededError, KvfsError, ProtocolError, Status
from kvfs.framestream import ConnectionLostError, FrameStream
from kvfs.handshake import Farewell
from kvfs.queuepair import Buffer
from kvfs.remotecalls import DATA_COMMANDS
from kvfs.wire import Frame
from kvfsd.service.session import Answer, Session

log = logging.getLogger(__name__)

DATA_DEPTH: Final = 16
"""Data commands of one connection at a time; the host half holds to it, a hostile one waits."""
WAITING_CHANGES_MAX: Final = 100
"""Changes of one connection that wait for the metadata log: one for each worker of pyfuse3; past it nothing is read."""
SERVE_DEADLINE_MS: Final = limits.COMMAND_DEADLINE_MS - 5_000
"""A command that waits ends here before its mount gives it up."""
GIVE_WAY_DEADLINE_MS: Final = limits.COMMAND_DEADLINE_MS
_NONE: Final = memoryview(b"")


class Connection:
    """Serves one session on one stream; `serve` is its whole life."""

    def __init__(self, stream: FrameStream, session: Session, payloads: BufferPool) -> None:
        self._stream = stream
        self._session = session
        self._payloads = payloads
        self._receiving = trio.CancelScope()
        self._draining = False
        self._everything = trio.CancelScope()
        self._ended = trio.Event()
        self._running: set[int] = set()
        """Slots of commands that have a task."""
        self._transfers = 0
        self._waiting_changes = 0
        self._room = trio.lowlevel.ParkingLot()
        self.farewell = False
        """The mount detached for good."""

    async def serve(self, greeting: list[Buffer]) -> None:
        """Send `greeting`, then serve until the peer ends the connection or has to, or `give_way`, or `drain`.

        Raises nothing that the peer could bring about. After a farewell the stream is open still.
        """
        try:
            with self._everything:
                await self._greet(greeting)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._push_events)
                    await self._receive_all(nursery)
                    if not self._draining:  # nobody is left to take an answer
                        nursery.cancel_scope.cancel()
        except* ConnectionLostError:
            pass
        except* KvfsError as group:
            log.warning("attachment %d: connection ended: %s", self._session.attachment, group.exceptions[0])
        finally:
            if not self.farewell:
                self._stream.close()
            self._ended.set()

    async def _greet(self, greeting: list[Buffer]) -> None:
        shared = self._stream.reader.shared
        if shared is None:
            await self._stream.send(greeting)
        else:
            try:
                self._stream.send_with_descriptor(greeting, shared.descriptor)
            finally:
                shared.close_descriptor()

    async def drain(self, deadline_ms: int) -> None:
        """Take no more requests, let those that run finish and answer, then end; at `deadline_ms` in any case."""
        self._draining = True
        self._receiving.cancel()
        with trio.move_on_after(deadline_ms / 1000):
            while self._running:
                await self._room.park()
        self._everything.cancel()
        await self._ended.wait()

    async def give_way(self) -> None:
        """End, because the mount has come back on another connection. Nothing runs on this one afterwards."""
        self._everything.cancel()
        with trio.fail_after(GIVE_WAY_DEADLINE_MS / 1000):
            await self._ended.wait()

    # --- requests --------------------------------------------------------------------------------------

    async def _receive_all(self, nursery: trio.Nursery) -> None:
        while (frame := await self._next_frame()) is not None:
            request = frame.message
            if isinstance(request, Request):
                kind = type(request.command)
                if kind in DATA_COMMANDS:
                    await self._begin(request)
                    nursery.start_soon(self._transfer, request, memoryview(frame.payload), frame.slot)
                elif self._session.has_to_wait(kind):  # it must not hold up the mount's lookups and reads
                    await self._begin_change(request)
                    nursery.start_soon(self._wait_and_change, request)
                else:
                    await self._answer(request, await self._session.execute(request))
            elif isinstance(request, Farewell):
                self.farewell = True
                return

    async def _next_frame(self) -> Frame | None:
        """The next frame; None when there is none, or none is to be taken any more."""
        if self._draining:
            return None
        with trio.CancelScope() as self._receiving:
            return await self._stream.receive()
        return None

    async def _begin(self, request: Request) -> None:
        self._check_slot(request)
        while self._transfers >= DATA_DEPTH:
            await self._room.park()
        self._running.add(request.cid)
        self._transfers += 1

    async def _begin_change(self, request: Request) -> None:
        self._check_slot(request)
        while self._waiting_changes >= WAITING_CHANGES_MAX:
            await self._room.park()
        self._running.add(request.cid)
        self._waiting_changes += 1

    def _check_slot(self, request: Request) -> None:
        if request.cid in self._running:
            raise ProtocolError(f"slot {request.cid} has a command already")

    def _give_slot(self, request: Request) -> None:
        self._running.discard(request.cid)
        self._room.unpark_all()

    async def _wait_and_change(self, request: Request) -> None:
        try:
            await self._answer(request, await self._execute(request, _NONE))
        finally:
            self._waiting_changes -= 1
            self._give_slot(request)

    async def _transfer(self, request: Request, payload: memoryview, slot: int | None) -> None:
        try:
            await self._answer(request, await self._execute(request, payload), slot)
        finally:
            self._transfers -= 1
            self._give_slot(request)
            if isinstance(payload.obj, mmap.mmap):
                self._payloads.release(payload.obj)

    async def _execute(self, request: Request, payload: memoryview) -> Answer:
        with trio.move_on_after(SERVE_DEADLINE_MS / 1000):
            return await self._session.execute(request, payload)
        error = DeadlineExceededError(f"{type(request.command).__name__} was not done in {SERVE_DEADLINE_MS} ms")
        return Completion(request.cid, request.sequence, int(error.status), str(error), None), _NONE, None

    async def _answer(self, request: Request, answer: Answer, slot: int | None = None) -> None:
        """Send what became of `request`, its payload in shared slot `slot` if the request named one.

        Tests break the connection, or kill the process, in here.
        """
        completion, payload, release = answer
        assert completion.cid == request.cid
        shared = self._stream.reader.shared
        try:
            if shared is None or slot is None or not payload:
                await self._stream.send(wire.encode_completion(completion, payload))
            else:
                shared.put(slot, payload)
                await self._stream.send(wire.encode_completion(completion, payload, slot))
        finally:
            if release is not None:
                release()

    # --- events ----------------------------------------------------------------------------------------

    async def _push_events(self) -> None:
        while True:
            await self._session.events.wait()
            for event in self._session.events.take():
                await self._stream.send(wire.encode_event(event))


def refusal(error: KvfsError) -> tuple[int, str]:
    """Status and detail of a welcome that is none."""
    return int(error.status if error.status != Status.OK else Status.INTERNAL), str(error)

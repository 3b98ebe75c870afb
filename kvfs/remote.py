"""The host side of a queue pair whose daemon is another process, reached over a unix socket.

One attachment outlives its connections: when one breaks, the pair connects again, resumes the attachment and sends
everything in flight once more under its old identity, so that it is carried out once (docs/PROTOCOL.md). A command
waits for that until its deadline. If the daemon does not know the attachment any more, what was sent and not committed
is lost: `on_state_lost` is told before any other command goes out.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections.abc import AsyncIterator, Callable
from typing import Final

import trio

from kvfs import limits, wire
from kvfs.buffers import BufferPool
from kvfs.commands import (
    Command,
    Completion,
    EntryGone,
    Event,
    GetAttributes,
    GetXattr,
    ListXattrs,
    Lookup,
    ObjectChanged,
    OpenObject,
    ReadDirectory,
    ReadLink,
    StatFilesystem,
    WriteBlock,
)
from kvfs.errors import DeadlineExceededError, KvfsError, ProtocolError, StaleError, Status, error_for
from kvfs.framestream import ConnectionLostError, FrameStream
from kvfs.handshake import Farewell, Welcome
from kvfs.queuepair import Buffer, Reply
from kvfs.remotecalls import Call, CallTable, EventList
from kvfs.remotelink import Resume, Target, connect
from kvfs.tracebacks import without_text

log = logging.getLogger(__name__)

BACKOFF_FIRST_MS: Final = 10
BACKOFF_MAX_MS: Final = 1_000
"""Pauses between attempts to connect, doubled each time."""
FAREWELL_DEADLINE_MS: Final = 5_000
"""How long a mount that ends waits for the daemon; past it the daemon drops the attachment by itself, later."""
BUFFERS_KEPT: Final = 32
LOOKS: Final = frozenset(
    {Lookup, GetAttributes, ReadDirectory, ReadLink, GetXattr, ListXattrs, StatFilesystem, OpenObject}
)
"""Commands that depend on nothing that an attachment could lose."""


class RemoteQueuePair:
    """`kvfs.queuepair.QueuePair` over a socket; see `attached`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._calls = CallTable()
        self._resume = Resume()
        self._link: FrameStream | None = None
        """The connection in use, also while the calls in flight are being sent again."""
        self._ready = trio.Event()
        """New commands may be sent on `_link`."""
        self._buffers = BufferPool(limits.BLOCK_BYTES, BUFFERS_KEPT)
        self._events = EventList()
        self._state_lost: Callable[[], None] = lambda: None
        self._closing = False
        self._farewell = trio.Event()
        self.reconnects = 0

    @property
    def attachment(self) -> int:
        """Number of the attachment."""
        return self._resume.attachment

    @property
    def connected(self) -> bool:
        """The daemon can be reached now."""
        return self._ready.is_set()

    def on_state_lost(self, call: Callable[[], None]) -> None:
        """See `QueuePair.on_state_lost`."""
        self._state_lost = call

    # --- commands --------------------------------------------------------------------------------------

    async def submit(self, command: Command, payload: Buffer = b"") -> Reply:
        """See `QueuePair.submit`."""
        with trio.move_on_after(limits.COMMAND_DEADLINE_MS / 1000):
            if self._closing:
                raise ProtocolError(f"attachment {self.attachment} is detached")
            return self._reply(await self._run(command, payload))
        name = type(command).__name__
        raise DeadlineExceededError(f"{name} was not done in {limits.COMMAND_DEADLINE_MS} ms")

    async def _run(self, command: Command, payload: Buffer) -> Call:
        call = await self._calls.begin(command, payload)
        try:
            wire.check_request(call.request, memoryview(payload).nbytes)
            if self._ready.is_set():
                await self._send(call)
            await call.done.wait()
        except BaseException:
            self._abandon(call)
            raise
        self._calls.end(call)
        return call

    def _reply(self, call: Call) -> Reply:
        if call.error is not None:
            raise call.error
        completion = call.answer
        assert completion is not None
        if completion.result is None:
            raise error_for(Status(completion.status), completion.detail)
        received = call.received
        if not received:
            return Reply(completion.result)
        return Reply(completion.result, received, lambda: self._give_back(received))

    async def _send(self, call: Call) -> None:
        """Send a call on the connection in use. If that breaks, the call goes out again on the next one."""
        link = self._link
        assert link is not None
        call.link, call.sent = link, False
        try:
            await link.send(wire.encode_request(call.request, call.payload))
        except ConnectionLostError:
            link.close()
        else:
            call.sent = True

    def _abandon(self, call: Call) -> None:
        """Nobody waits for `call`: its payload is not ours any more, and it must not take effect late."""
        if call.done.is_set():
            self._give_back(call.received)
            self._calls.end(call)
            return
        link = self._link
        if link is None or call.link is not link:  # not on the way; what ran on an older connection is over
            self._calls.end(call)
        elif not call.sent or isinstance(call.request.command, WriteBlock):
            # Half a frame, or a block that must not be staged after a later Discard: the daemon ends what runs on
            # this connection before it serves the next one.
            link.close()
            self._calls.end(call)
        else:
            call.abandoned = True

    # --- the connection --------------------------------------------------------------------------------

    async def start(self, nursery: trio.Nursery) -> None:
        """Attach; from here on a task in `nursery` keeps the connection. Raises as `remotelink.connect`."""
        link, welcome = await connect(self._target, self._resume, self._take_payload)
        self._adopt(link, welcome)
        nursery.start_soon(self._keep_connected, link)

    async def _keep_connected(self, link: FrameStream | None) -> None:
        while True:
            if link is not None:
                await self._serve(link)
            if self._closing:
                self._farewell.set()
                return
            link = await self._connect_again()

    async def _serve(self, link: FrameStream) -> None:
        """Use a connection until it breaks. Answers are taken while old calls are sent again, else both sides stall."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_again, link)
            try:
                await self._receive_all(link)
            except ConnectionLostError:
                pass
            except KvfsError as error:
                log.warning("connection to the daemon given up: %s", error)
            except Exception as error:
                log.error("connection to the daemon failed: %s", without_text(error))  # noqa: TRY400 - kvfs.tracebacks
            finally:
                self._ready = trio.Event()
                self._link = None
                link.close()
                nursery.cancel_scope.cancel()
        self._calls.end_abandoned()

    async def _send_again(self, link: FrameStream) -> None:
        while (call := self._calls.next_unsent(link)) is not None:
            await self._send(call)
            if link.closed:
                return
        self._ready.set()

    async def _receive_all(self, link: FrameStream) -> None:
        while (frame := await link.receive()) is not None:
            message = frame.message
            if isinstance(message, Completion):
                self._complete(message, memoryview(frame.payload))
            elif isinstance(message, EntryGone | ObjectChanged):
                self._events.put(message)
            elif isinstance(message, Farewell):
                self._farewell.set()

    def _complete(self, completion: Completion, payload: memoryview) -> None:
        call = self._calls.find(completion)
        if call is None:
            raise ProtocolError(f"a completion for slot {completion.cid} that answers nothing")
        if call.abandoned:
            self._give_back(payload)
            self._calls.end(call)
        else:
            call.finish(completion, payload)

    async def _connect_again(self) -> FrameStream | None:
        pause_ms = BACKOFF_FIRST_MS
        told = ""
        while not self._closing:
            try:
                link, welcome = await connect(self._target, self._resume, self._take_payload)
            except KvfsError as error:
                if told != str(error):
                    told = str(error)
                    log.warning("the daemon cannot be reached, trying again: %s", told)
            else:
                self._adopt(link, welcome)
                return link
            await trio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, BACKOFF_MAX_MS)
        return None

    def _adopt(self, link: FrameStream, welcome: Welcome) -> None:
        """Go on with a fresh connection; nothing has been sent on it."""
        before, self._resume = self._resume, Resume(welcome.attachment, welcome.token)
        self._calls.data_depth = welcome.data_depth
        self._link = link
        if not before.attachment:
            return
        self.reconnects += 1
        if not welcome.resumed:
            self._lose_state(before.attachment)
        self._events.put(ObjectChanged(0))  # events may have been lost with the old connection
        log.info("connected to the daemon again, attachment %d", welcome.attachment)

    def _lose_state(self, attachment: int) -> None:
        log.error("the daemon does not know attachment %d any more: what was not committed is lost", attachment)
        self._state_lost()
        for call in self._calls:
            if type(call.request.command) not in LOOKS:
                call.fail(StaleError(f"the daemon lost attachment {attachment}, and with it what was not committed"))

    # --- payloads of answers ---------------------------------------------------------------------------

    def _take_payload(self, length: int) -> memoryview:
        return memoryview(self._buffers.acquire())[:length]

    def _give_back(self, payload: memoryview) -> None:
        if isinstance(payload.obj, mmap.mmap):
            self._buffers.release(payload.obj)

    # --- events ----------------------------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        """See `QueuePair.take_events`."""
        return self._events.take()

    async def wait_event(self) -> None:
        """See `QueuePair.wait_event`."""
        await self._events.wait()

    # --- end -------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """See `QueuePair.aclose`; a daemon that is away drops the attachment when its time is up."""
        if self._closing:
            return
        self._closing = True
        with trio.CancelScope(shield=True), trio.move_on_after(FAREWELL_DEADLINE_MS / 1000):
            if self._link is not None:
                with contextlib.suppress(ConnectionLostError):
                    await self._link.send(wire.encode_farewell())
                await self._farewell.wait()
        if self._link is not None:
            self._link.close()
        for call in self._calls:
            call.fail(ProtocolError(f"attachment {self.attachment} is detached"))


@contextlib.asynccontextmanager
async def attached(target: Target) -> AsyncIterator[RemoteQueuePair]:
    """A queue pair attached to `target` while the block runs; detached at its end. Raises as `remotelink.connect`."""
    pair = RemoteQueuePair(target)
    async with trio.open_nursery() as nursery:
        await pair.start(nursery)
        try:
            yield pair
        finally:
            await pair.aclose()
            nursery.cancel_scope.cancel()

"""An attachment as its host sees it: connections that come and go, calls in flight that outlive them."""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections.abc import Callable
from typing import Final

import trio

from kvfs import limits, wire
from kvfs.buffers import BufferPool
from kvfs.commands import (
    Completion,
    EntryGone,
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
from kvfs.errors import KvfsError, ProtocolError, StaleError
from kvfs.eventlist import EventList
from kvfs.framestream import ConnectionLostError, FrameStream
from kvfs.handshake import Farewell, Welcome
from kvfs.remotecalls import EVENTS_MAX, Call, CallTable
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


class RemoteAttachment:
    """Keeps a connection to the daemon; puts calls on it and hands their answers out."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.calls = CallTable()
        self.events = EventList(EVENTS_MAX)
        self.state_lost: Callable[[], None] = lambda: None
        self.closing = False
        self.reconnects = 0
        self._resume = Resume()
        self._link: FrameStream | None = None
        """The connection in use, also while the calls in flight are being sent again."""
        self._ready = trio.Event()
        """New calls may be sent on `_link`."""
        self._buffers = BufferPool(limits.BLOCK_BYTES, BUFFERS_KEPT)
        self._farewell = trio.Event()

    @property
    def number(self) -> int:
        """Number of the attachment."""
        return self._resume.attachment

    @property
    def ready(self) -> bool:
        """Calls can be sent now; otherwise they go out when there is a connection again."""
        return self._ready.is_set()

    # --- calls -----------------------------------------------------------------------------------------

    async def send(self, call: Call) -> None:
        """Send a call on the connection in use. If that breaks, the call goes out again on the next one."""
        link = self._link
        assert link is not None
        call.link, call.sent = link, False
        shared = link.reader.shared
        slot = call.slot if shared is not None and call.slot is not None and call.slot < shared.count else None
        if shared is not None and slot is not None and call.payload:
            shared.put(slot, call.payload)
        try:
            await link.send(wire.encode_request(call.request, call.payload, slot))
        except ConnectionLostError:
            link.close()
        else:
            call.sent = True

    def abandon(self, call: Call) -> None:
        """Nobody waits for `call`: its payload is not ours any more, and it must not take effect late."""
        if call.done.is_set():
            self.give_back(call.received)
            self.calls.end(call)
            return
        link = self._link
        if link is None or call.link is not link:  # not on the way; what ran on an older connection is over
            self.calls.end(call)
        elif not call.sent or isinstance(call.request.command, WriteBlock):
            # Half a frame, or a block that must not be staged after a later Discard: the daemon ends what runs on
            # this connection before it serves the next one.
            link.close()
            self.calls.end(call)
        else:
            call.abandoned = True

    # --- the connection --------------------------------------------------------------------------------

    async def attach(self) -> None:
        """Connect for the first time. Raises as `remotelink.connect`."""
        self._adopt(*await connect(self._target, self._resume, self._take_payload))

    async def run(self) -> None:
        """Keep the connection, from `attach` to `aclose`; without this nothing is sent."""
        link = self._link
        while True:
            if link is not None:
                await self._serve(link)
            if self.closing:
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
        self.calls.end_abandoned()

    async def _send_again(self, link: FrameStream) -> None:
        while (call := self.calls.next_unsent(link)) is not None:
            await self.send(call)
            if link.closed:
                return
        self._ready.set()

    async def _receive_all(self, link: FrameStream) -> None:
        while (frame := await link.receive()) is not None:
            message = frame.message
            if isinstance(message, Completion):
                self._complete(message, memoryview(frame.payload))
            elif isinstance(message, EntryGone | ObjectChanged):
                self.events.put(message)
            elif isinstance(message, Farewell):
                self._farewell.set()

    def _complete(self, completion: Completion, payload: memoryview) -> None:
        call = self.calls.find(completion)
        if call is None:
            raise ProtocolError(f"a completion for slot {completion.cid} that answers nothing")
        if call.abandoned:
            self.give_back(payload)
            self.calls.end(call)
        else:
            call.finish(completion, payload)

    async def _connect_again(self) -> FrameStream | None:
        pause_ms = BACKOFF_FIRST_MS
        told = ""
        while not self.closing:
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
        self.calls.allow_data(welcome.data_depth)
        self._link = link
        if not before.attachment:
            return
        self.reconnects += 1
        if not welcome.resumed:
            self._lose_state(before.attachment)
        self.events.put(ObjectChanged(0))  # events may have been lost with the old connection
        log.info("connected to the daemon again, attachment %d", welcome.attachment)

    def _lose_state(self, attachment: int) -> None:
        log.error("the daemon does not know attachment %d any more: what was not committed is lost", attachment)
        self.state_lost()
        for call in self.calls:
            if type(call.request.command) not in LOOKS:
                call.fail(StaleError(f"the daemon lost attachment {attachment}, and with it what was not committed"))

    # --- payloads of answers ---------------------------------------------------------------------------

    def _take_payload(self, length: int) -> memoryview:
        return memoryview(self._buffers.acquire())[:length]

    def give_back(self, payload: memoryview) -> None:
        """Nobody needs the payload of an answer any more."""
        if isinstance(payload.obj, mmap.mmap):
            self._buffers.release(payload.obj)

    # --- end -------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Detach; a daemon that is away drops the attachment when its time is up."""
        if self.closing:
            return
        self.closing = True
        with trio.CancelScope(shield=True), trio.move_on_after(FAREWELL_DEADLINE_MS / 1000):
            if self._link is not None:
                with contextlib.suppress(ConnectionLostError):
                    await self._link.send(wire.encode_farewell())
                await self._farewell.wait()
        if self._link is not None:
            self._link.close()
        for call in self.calls:
            call.fail(ProtocolError(f"attachment {self.number} is detached"))

"""The host side of a queue pair whose daemon is another process, reached over a unix socket.

One attachment outlives its connections: when one breaks, the pair connects again, resumes the attachment and sends
everything in flight once more under its old identity, so that it is carried out once (docs/PROTOCOL.md). A command
waits for that until its deadline. If the daemon does not know the attachment any more, what was sent and not committed
is lost: `on_state_lost` is told before any other command goes out.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import trio

from kvfs import limits, wire
from kvfs.commands import Command, Event
from kvfs.errors import DeadlineExceededError, ProtocolError, Status, error_for
from kvfs.queuepair import Buffer, Reply
from kvfs.remoteattachment import RemoteAttachment
from kvfs.remotecalls import Call
from kvfs.remotelink import Target


class RemoteQueuePair:
    """`kvfs.queuepair.QueuePair` over a socket; see `attached`."""

    def __init__(self, target: Target) -> None:
        self._attachment = RemoteAttachment(target)

    @property
    def attachment(self) -> int:
        """Number of the attachment."""
        return self._attachment.number

    @property
    def connected(self) -> bool:
        """The daemon can be reached now."""
        return self._attachment.ready

    @property
    def reconnects(self) -> int:
        """How often the connection was made again."""
        return self._attachment.reconnects

    @property
    def in_flight(self) -> int:
        """Commands without an answer."""
        return len(self._attachment.calls)

    async def attach(self) -> None:
        """Connect for the first time; `run` must follow. Raises as `remotelink.connect`."""
        await self._attachment.attach()

    async def run(self) -> None:
        """Keep the connection until `aclose`."""
        await self._attachment.run()

    async def submit(self, command: Command, payload: Buffer = b"") -> Reply:
        """See `QueuePair.submit`."""
        with trio.move_on_after(limits.COMMAND_DEADLINE_MS / 1000):
            if self._attachment.closing:
                raise ProtocolError(f"attachment {self.attachment} is detached")
            return self._reply(await self._run(command, payload))
        name = type(command).__name__
        raise DeadlineExceededError(f"{name} was not done in {limits.COMMAND_DEADLINE_MS} ms")

    async def _run(self, command: Command, payload: Buffer) -> Call:
        attachment = self._attachment
        call = await attachment.calls.begin(command, payload)
        try:
            wire.check_request(call.request, memoryview(payload).nbytes)
            if attachment.ready:
                await attachment.send(call)
            await call.done.wait()
        except BaseException:
            attachment.abandon(call)
            raise
        attachment.calls.end(call)
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
        return Reply(completion.result, received, lambda: self._attachment.give_back(received))

    def take_events(self) -> list[Event]:
        """See `QueuePair.take_events`."""
        return self._attachment.events.take()

    async def wait_event(self) -> None:
        """See `QueuePair.wait_event`."""
        await self._attachment.events.wait()

    def on_state_lost(self, call: Callable[[], None]) -> None:
        """See `QueuePair.on_state_lost`."""
        self._attachment.state_lost = call

    async def aclose(self) -> None:
        """See `QueuePair.aclose`; a daemon that is away drops the attachment when its time is up."""
        await self._attachment.aclose()


@contextlib.asynccontextmanager
async def attached(target: Target) -> AsyncIterator[RemoteQueuePair]:
    """A queue pair attached to `target` while the block runs; detached at its end. Raises as `remotelink.connect`."""
    pair = RemoteQueuePair(target)
    await pair.attach()  # not in the nursery, which would wrap what it raises
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.run)
        try:
            yield pair
        finally:
            await pair.aclose()
            nursery.cancel_scope.cancel()

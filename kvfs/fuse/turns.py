"""Whose turn it is to wait for the next FUSE request: what pyfuse3's session tasks use instead of trio's lock and wait.

pyfuse3 runs several tasks; each waits for its turn, waits until /dev/fuse is readable, reads one request and handles
it. Done with `trio.Lock` and epoll that is two passes of the event loop for each request, and one client's next
request comes within some 20 us of the reply: less than it takes an idle processor to wake up. So the task that has
just answered looks for the next request at once, for a short while even by spinning, and another task takes over only
when that one has to wait for something.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Final

import pyfuse3
import trio

SPIN_NS: Final = 50_000
"""How long to look for a next request while nothing else is in progress, in nanoseconds."""
SESSION_TASKS: Final = 99
"""Requests handled at once; pyfuse3's own default for the most. It makes them as they are needed, and as many as may
be idle: a task that ends would take its request buffer with it."""
STREAK_NS: Final = 1_000_000
"""How long requests are taken without a pass of the event loop, in nanoseconds: other tasks wait that long at most."""


class RequestTurns:
    """The turn at /dev/fuse. Stands for `trio.Lock` and `trio.lowlevel.wait_readable` in pyfuse3's session loop."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._taken = False
        self._parked: list[trio.lowlevel.Task] = []
        """Last in, first out: the request buffer of the task that parked last is still in the processor's cache."""
        self._woken = 0
        """Tasks that were parked and are to look whether the turn is free: 0 or 1."""
        self._handling: set[trio.lowlevel.Task] = set()
        self._last_pass_ns = 0
        self._poll = select.poll()
        self._polled = -1

    async def __aenter__(self) -> None:
        """Take the turn; waits while another task has it."""
        self._handling.discard(trio.lowlevel.current_task())
        while self._taken:
            await self._park()
        self._taken = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the turn up, to this task again if it handles its request without waiting, else to a parked one."""
        self._taken = False
        if kind is None:
            self._handling.add(trio.lowlevel.current_task())
        if self._parked and not self._woken:
            self._woken = 1
            trio.lowlevel.reschedule(self._parked.pop())

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        self._parked.append(task)
        await trio.lowlevel.wait_task_rescheduled(abort)
        self._woken = 0

    async def wait_readable(self, descriptor: int) -> None:
        """Return when a request can be read. Called by the task that has the turn."""
        if time.monotonic_ns() - self._last_pass_ns < STREAK_NS and self._request_is_near(descriptor):
            return
        await trio.lowlevel.wait_readable(descriptor)
        self._last_pass_ns = time.monotonic_ns()

    def _request_is_near(self, descriptor: int) -> bool:
        if self._handling or self._busy() or trio.lowlevel.current_statistics().tasks_runnable > self._woken:
            return False
        poll = self._poll
        if descriptor != self._polled:
            poll.register(descriptor, select.POLLIN)
            self._polled = descriptor
        if poll.poll(0):
            return True
        end_ns = time.monotonic_ns() + SPIN_NS
        while time.monotonic_ns() < end_ns:
            if poll.poll(0):
                return True
            os.sched_yield()  # a client may need this very processor to ask
        return False


def install(busy: Callable[[], bool]) -> None:
    """Let pyfuse3 take turns by this module (the way by which its own asyncio mode replaces trio)."""
    turns = RequestTurns(busy)
    pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined] # its global, not in its stubs
        Lock=lambda: turns,
        ClosedResourceError=trio.ClosedResourceError,
        open_nursery=trio.open_nursery,
        lowlevel=SimpleNamespace(
            wait_readable=turns.wait_readable,
            notify_closing=trio.lowlevel.notify_closing,
            current_task=trio.lowlevel.current_task,
            current_trio_token=trio.lowlevel.current_trio_token,
        ),
    )

"""What the DPU half tells a mount unasked: a bounded queue per session."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from kvfs.commands import Event, ObjectChanged
from kvfsd.metrics import Metrics

EVENTS_MAX: Final = 1024
"""Events that wait for a mount; one more turns them all into ObjectChanged(0): drop everything that is cached."""


class EventQueue:
    """Events of one session, oldest first."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._events: deque[Event] = deque()
        self._arrived = trio.Event()

    def put(self, event: Event) -> None:
        """Add an event; it never waits and never fails."""
        if len(self._events) >= EVENTS_MAX:
            self._metrics.counters.events_overflowed += len(self._events) + 1
            self._events.clear()
            event = ObjectChanged(0)
        self._events.append(event)
        self._arrived.set()

    def take(self) -> list[Event]:
        """All events since the last call."""
        events = list(self._events)
        self._events.clear()
        self._arrived = trio.Event()
        return events

    async def wait(self) -> None:
        """Return once `take` has something; waits for as long as nothing happens (the owner cancels it)."""
        await self._arrived.wait()

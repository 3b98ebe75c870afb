"""Events of the daemon on their way to a mount: a bounded list; its overflow means that everything may have changed."""

from __future__ import annotations

from collections import deque

import trio

from kvfs.commands import Event, ObjectChanged


class EventList:
    """Events that were not taken yet, oldest first; one past `limit` turns them all into ObjectChanged(0)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: deque[Event] = deque()
        self._arrived = trio.Event()

    def put(self, event: Event) -> int:
        """Add an event -> how many were turned into one, 0 if there was room. Never waits and never fails."""
        lost = 0
        if len(self._events) >= self._limit:
            lost = len(self._events) + 1
            self._events.clear()
            event = ObjectChanged(0)
        self._events.append(event)
        self._arrived.set()
        return lost

    def take(self) -> list[Event]:
        """All events since the last call."""
        events = list(self._events)
        self._events.clear()
        self._arrived = trio.Event()
        return events

    async def wait(self) -> None:
        """Return once `take` has something; waits for as long as nothing happens (the owner cancels it)."""
        await self._arrived.wait()

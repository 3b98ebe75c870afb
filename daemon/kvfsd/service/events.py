"""What the DPU half tells a mount unasked: a bounded queue per session."""

from __future__ import annotations

from typing import Final

from kvfs.commands import Event
from kvfs.eventlist import EventList
from kvfsd.metrics import Metrics

EVENTS_MAX: Final = 1024
"""Events that wait for a mount; one more turns them all into ObjectChanged(0): drop everything that is cached."""


class EventQueue(EventList):
    """Events of one session; what overflows is counted."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(EVENTS_MAX)
        self._metrics = metrics

    def put(self, event: Event) -> int:
        """As `EventList.put`."""
        lost = super().put(event)
        self._metrics.counters.events_overflowed += lost
        return lost

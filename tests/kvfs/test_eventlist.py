"""The bounded list of events: order, overflow, waiting."""

import trio
import trio.testing

from kvfs.commands import EntryGone, ObjectChanged
from kvfs.eventlist import EventList


def test_events_come_in_order_and_once():
    events = EventList(3)
    first, second = ObjectChanged(2), EntryGone(1, b"name")
    assert [events.put(first), events.put(second)] == [0, 0]
    assert events.take() == [first, second]
    assert events.take() == []


def test_one_too_many_turns_all_into_one():
    events = EventList(2)
    assert [events.put(ObjectChanged(ino)) for ino in (2, 3, 4, 5)] == [0, 0, 3, 0]
    assert events.take() == [ObjectChanged(0), ObjectChanged(5)]


async def test_wait_returns_once_there_is_something(nursery):
    events = EventList(2)
    nursery.start_soon(events.wait)
    await trio.testing.wait_all_tasks_blocked()
    assert nursery.child_tasks
    events.put(ObjectChanged(2))
    await trio.testing.wait_all_tasks_blocked()
    assert not nursery.child_tasks

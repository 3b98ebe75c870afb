"""The bound on dirty blocks: slots, waiting, who is sent early."""

import pytest
import trio

from kvfs.limits import BLOCK_BYTES
from kvfs.staging_memory import MemorySlots, StagingRoom


def room_of(places: int) -> tuple[StagingRoom[str], list[str]]:
    sent: list[str] = []

    def send_early(item: str) -> None:
        sent.append(item)
        room.depart(item)

    room: StagingRoom[str] = StagingRoom(places * BLOCK_BYTES, send_early)
    return room, sent


def test_a_slot_given_back_is_the_next_one_handed_out() -> None:
    slots = MemorySlots(3)
    first, view = slots.take()
    assert len(view) == BLOCK_BYTES
    view[:4] = b"warm"
    slots.give_back(first)
    again, view = slots.take()
    assert (again, bytes(view[:4])) == (first, b"warm")


def test_slots_do_not_overlap() -> None:
    slots = MemorySlots(3)
    views = [slots.take()[1] for _ in range(3)]
    for number, view in enumerate(views):
        view[:] = bytes([number]) * BLOCK_BYTES
    assert [set(view) for view in views] == [{0}, {1}, {2}]
    with pytest.raises(IndexError):
        slots.take()


async def test_whoever_finds_it_full_waits_and_the_least_recently_written_is_sent() -> None:
    room, sent = room_of(2)
    for item in ("a", "b", "a"):
        if item not in room._sendable:
            await room.enter()
        room.touch(item)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.enter)
        await trio.testing.wait_all_tasks_blocked()
        assert sent == ["b"]
        assert room.used_places == 2
        room.leave(departing=True)
    assert room.used_places == 2


async def test_waiters_that_found_nothing_to_send_are_not_forgotten() -> None:
    room, sent = room_of(2)
    await room.enter()
    await room.enter()
    entered: list[int] = []

    async def enter(number: int) -> None:
        await room.enter()
        entered.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter, 1)
        nursery.start_soon(enter, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert sent == []
        room.touch("a")
        room.touch("b")
        assert sent == ["a", "b"]
        room.leave(departing=True)
        room.leave(departing=True)
    assert sorted(entered) == [1, 2]


async def test_a_departure_that_is_under_way_serves_one_waiter_only() -> None:
    room, sent = room_of(2)
    for item in ("a", "b"):
        await room.enter()
        room.touch(item)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.enter)
        nursery.start_soon(room.enter)
        await trio.testing.wait_all_tasks_blocked()
        assert sent == ["a", "b"]
        room.leave(departing=True)
        room.leave(departing=True)


async def test_entering_a_room_with_places_does_not_give_way() -> None:
    room, _ = room_of(2)
    with trio.CancelScope() as scope:
        scope.cancel()
        await room.enter()  # a checkpoint would raise Cancelled here
    assert not scope.cancelled_caught

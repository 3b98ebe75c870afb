"""Locks that do not pass through the event loop while they are free."""

import trio
import trio.testing

from kvfs.locks import acquire, held


async def test_a_free_lock_is_taken_without_a_checkpoint():
    lock, semaphore = trio.Lock(), trio.Semaphore(1)
    with trio.testing.assert_no_checkpoints():
        async with held(lock):
            assert lock.locked()
        await acquire(semaphore)
    assert not lock.locked()
    assert semaphore.value == 0


async def test_a_taken_lock_is_waited_for(nursery):
    lock, order = trio.Lock(), []

    async def second() -> None:
        async with held(lock):
            order.append("second")

    async with held(lock):
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        order.append("first")
    await trio.testing.wait_all_tasks_blocked()
    assert order == ["first", "second"]


async def test_the_lock_is_given_back_when_the_body_raises():
    lock = trio.Lock()
    try:
        async with held(lock):
            raise ValueError
    except ValueError:
        pass
    assert not lock.locked()

"""Turns at /dev/fuse, played on a pipe by tasks that do what pyfuse3's session tasks do."""

import os

import pytest
import trio
import trio.lowlevel
import trio.testing

from kvfs.fuse import turns
from kvfs.fuse.turns import RequestTurns


@pytest.fixture
def pipe():
    reader, writer = os.pipe2(os.O_NONBLOCK)
    yield reader, writer
    os.close(reader)
    os.close(writer)


class Session:
    """Tasks that take turns, read one byte each and handle it; `slow` bytes wait until they are let go."""

    def __init__(self, reader: int, *, busy: bool = False) -> None:
        self.turns = RequestTurns(lambda: busy)
        self.reader = reader
        self.handled: list[bytes] = []
        self.by: list[int] = []
        self.let_go = trio.Event()

    async def serve(self, number: int) -> None:
        while True:
            async with self.turns:
                await self.turns.wait_readable(self.reader)
            request = os.read(self.reader, 1)
            if request == b"s":
                await self.let_go.wait()
            self.handled.append(request)
            self.by.append(number)


async def handled(session: Session, count: int) -> None:
    with trio.fail_after(5):
        while len(session.handled) < count:  # noqa: ASYNC110 - counts what several tasks do
            await trio.sleep(0.001)


@pytest.mark.parametrize("busy", [False, True])
async def test_every_request_is_handled_once(pipe, nursery, busy):
    session = Session(pipe[0], busy=busy)
    for number in range(3):
        nursery.start_soon(session.serve, number)
    for _ in range(50):
        os.write(pipe[1], b"xxxx")
        await trio.lowlevel.checkpoint()
    await handled(session, 200)
    await trio.testing.wait_all_tasks_blocked()
    assert session.handled == [b"x"] * 200


async def test_a_request_that_waits_does_not_stop_the_others(pipe, nursery):
    session = Session(pipe[0])
    for number in range(2):
        nursery.start_soon(session.serve, number)
    os.write(pipe[1], b"sxx")
    await handled(session, 2)
    assert session.handled == [b"x", b"x"]
    session.let_go.set()
    await handled(session, 3)
    assert session.handled[-1] == b"s"


async def test_one_task_serves_a_client_that_asks_one_by_one(pipe, nursery):
    session = Session(pipe[0])
    for number in range(4):
        nursery.start_soon(session.serve, number)
    os.write(pipe[1], b"x" * 64)
    await handled(session, 64)
    assert len(set(session.by[:20])) == 1, "turns went round although nobody waited"


async def test_other_tasks_run_while_requests_keep_coming(pipe, nursery, monkeypatch):
    """A client that never pauses gets at most STREAK_NS without a pass of the event loop."""
    session = Session(pipe[0])
    passes = 0

    async def other() -> None:
        nonlocal passes
        while True:
            passes += 1
            await trio.lowlevel.checkpoint()

    async def refill() -> None:
        while True:
            os.write(pipe[1], b"x" * 16)
            await trio.lowlevel.checkpoint()

    for task in (other, refill):
        nursery.start_soon(task)
    nursery.start_soon(session.serve, 0)
    await handled(session, 500)
    assert passes > 10


async def test_the_turn_is_passed_on_when_its_holder_fails(pipe):
    turn = RequestTurns(lambda: False)
    order = []

    async def holder() -> None:
        with trio.CancelScope() as scope:
            async with turn:
                order.append("held")
                nursery.start_soon(waiter)
                await trio.sleep(0.01)
                scope.cancel()
                await turn.wait_readable(pipe[0])

    async def waiter() -> None:
        async with turn:
            order.append("waited")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder)
    assert order == ["held", "waited"]


async def test_a_parked_task_that_is_cancelled_blocks_nobody(pipe, nursery):
    session = Session(pipe[0])
    with trio.CancelScope() as first:
        async with trio.open_nursery() as inner:
            inner.start_soon(session.serve, 1)
            nursery.start_soon(session.serve, 0)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
    os.write(pipe[1], b"xx")
    await handled(session, 2)


async def test_pyfuse3_takes_its_turns_here(monkeypatch):
    monkeypatch.setattr(turns.pyfuse3, "trio", trio)
    turns.install(busy=lambda: False)
    used = turns.pyfuse3.trio
    assert isinstance(used.Lock(), RequestTurns)
    assert used.lowlevel.notify_closing is trio.lowlevel.notify_closing
    assert used.lowlevel.current_task() is trio.lowlevel.current_task()

"""The queue pair itself: exactly once, slots, deadlines, events, detaching; in process and through the codec."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from kvfs import limits
from kvfs.commands import (
    AllocateIno,
    EntryGone,
    MakeNode,
    ObjectChanged,
    RemoveDirectory,
    Rename,
    Request,
    SetAttributes,
    StatFilesystem,
    Sync,
    Unlink,
)
from kvfs.errors import (
    DeadlineExceededError,
    NotFoundError,
    ProtocolError,
    Status,
)
from kvfs.queuepair import QueuePair
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.kvfsd.serving import ALL_TRANSPORTS, OTHER, TENANT, TRANSPORTS, Host, host_of, make_pool, serving

DIRECTORY = stat.S_IFDIR | 0o755


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(await make_pool(tmp_path)) as service:
        yield service


@pytest.fixture(params=ALL_TRANSPORTS)
async def host(request: pytest.FixtureRequest, service: Service) -> AsyncIterator[Host]:
    async with host_of(request.param, service) as host:
        yield host


# --- exactly once --------------------------------------------------------------------------------------


async def test_a_mutating_command_that_comes_again_is_not_carried_out_again(service: Service) -> None:
    session = service.attach(TENANT)
    request = Request(3, 1, MakeNode(1, b"d", DIRECTORY, 0, 0, b""))
    first, _, _ = await session.execute(request)
    again, _, _ = await session.execute(request)
    assert first == again
    assert first.status == Status.OK
    assert service.metrics.counters.replayed_completions == 1
    removed = Request(3, 2, RemoveDirectory(1, b"d"))
    assert (await session.execute(removed))[0] == (await session.execute(removed))[0]
    late, _, _ = await session.execute(request)
    assert late.status == Status.PROTOCOL


async def test_a_failed_command_had_no_effect_and_may_come_again(service: Service) -> None:
    session = service.attach(TENANT)
    request = Request(0, 5, RemoveDirectory(1, b"d"))
    assert (await session.execute(request))[0].status == Status.NOT_FOUND
    await session.execute(Request(1, 6, MakeNode(1, b"d", DIRECTORY, 0, 0, b"")))
    assert (await session.execute(request))[0].status == Status.OK


async def test_a_completion_outlives_its_session(service: Service) -> None:
    session = service.attach(TENANT)
    request = Request(7, 9, Rename(1, b"a", 1, b"b", 0, False))
    await session.execute(Request(0, 1, MakeNode(1, b"a", DIRECTORY, 0, 0, b"")))
    first, _, _ = await session.execute(request)
    resumed = service.attach(TENANT, resume=session.attachment)
    assert (await resumed.execute(request))[0] == first
    assert service.metrics.counters.replayed_completions == 1


@pytest.mark.parametrize(("cid", "sequence"), [(-1, 1), (limits.QUEUE_DEPTH, 1), (0, 0), (0, -1), (0, 1 << 63)])
async def test_an_identity_out_of_range_is_refused(service: Service, cid: int, sequence: int) -> None:
    session = service.attach(TENANT)
    done, _, _ = await session.execute(Request(cid, sequence, MakeNode(1, b"d", DIRECTORY, 0, 0, b"")))
    assert done.status == Status.PROTOCOL


# --- the queue pair itself -----------------------------------------------------------------------------


async def test_a_queue_pair_is_one(service: Service) -> None:
    pair: QueuePair = InProcessQueuePair(service.attach(TENANT))
    assert (await pair.submit(AllocateIno())).payload.nbytes == 0


async def test_commands_that_need_no_media_never_suspend(service: Service) -> None:
    host = Host(InProcessQueuePair(service.attach(TENANT)))
    with trio.CancelScope() as scope:
        scope.cancel()  # the first checkpoint would raise
        ino = await host.allocate()
        await host.commit(ino, 0, b"file")
        await host.lookup(b"file")
        await host.submit(Unlink(1, b"file", False))
    assert not scope.cancelled_caught


async def test_more_commands_than_slots_wait_for_one(service: Service, host: Host) -> None:
    attributes = await host.store(b"file", b"data")
    results: list[bytes] = []

    async def read() -> None:
        results.append(await host.read_block(attributes.ino))

    async with trio.open_nursery() as nursery:
        for _ in range(limits.QUEUE_DEPTH + 50):
            nursery.start_soon(read)
        await trio.lowlevel.checkpoint()
        assert (await host.lookup(b"file")).ino == attributes.ino, "a lookup does not queue behind data"
    assert results == [b"data"] * (limits.QUEUE_DEPTH + 50)


async def test_a_command_that_is_not_done_in_time_fails(
    service: Service, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    host = Host(InProcessQueuePair(service.attach(TENANT)))
    monkeypatch.setattr(service, "_gate", Hanging())
    started = trio.current_time()
    with pytest.raises(DeadlineExceededError, match="Sync"):
        await host.submit(Sync())
    assert trio.current_time() - started == pytest.approx(limits.COMMAND_DEADLINE_MS / 1000)
    monkeypatch.undo()
    await host.submit(Sync())


class Hanging:
    async def sync(self) -> None:
        await trio.sleep_forever()


async def test_events_go_to_the_other_mounts_of_the_tenant(service: Service, host: Host) -> None:
    sibling = TRANSPORTS["codec"](service.attach(TENANT))
    stranger = InProcessQueuePair(service.attach(OTHER))
    attributes = await host.store(b"file", b"data")
    assert sibling.take_events() == [EntryGone(1, b"file"), ObjectChanged(attributes.ino)]
    with pytest.raises(NotFoundError):
        await host.submit(Unlink(1, b"none", False))
    assert sibling.take_events() == [], "a command that failed is no news"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sibling.wait_event)
        await trio.testing.wait_all_tasks_blocked()
        await host.submit(SetAttributes(1, 0o700, None, None, None, None, 5))
    assert sibling.take_events() == [ObjectChanged(1)]
    assert host.pair.take_events() == stranger.take_events() == []


async def test_too_many_events_become_one(service: Service) -> None:
    session = service.attach(TENANT)
    for number in range(5000):
        service.tell(session.tenant, EntryGone(1, b"%d" % number))
    events = session.events.take()
    assert events[0] == ObjectChanged(0)
    assert len(events) <= 1024


async def test_a_detached_session_takes_no_commands_and_leaves_nothing(service: Service, host: Host) -> None:
    attributes = await host.store(b"kept", b"data")
    await host.submit(Unlink(1, b"kept", True))
    ino = await host.allocate()
    await host.write_block(ino, 0, b"staged")
    await host.pair.aclose()
    await host.pair.aclose()
    with pytest.raises(ProtocolError):
        await host.allocate()
    row = service.pool.tenants.show(TENANT)
    assert (row.used_bytes, row.used_objects) == (0, 0)
    other = Host(InProcessQueuePair(service.attach(TENANT)))
    usage = (await other.submit(StatFilesystem())).result
    assert (usage.used_bytes, usage.used_objects) == (0, 0)
    with pytest.raises(NotFoundError):
        await other.read_block(attributes.ino)
    assert service.catalog.blocks.staged_bytes(1) == 0


def test_statuses_count_from_zero_without_a_gap() -> None:
    assert [int(status) for status in Status] == list(range(len(Status)))

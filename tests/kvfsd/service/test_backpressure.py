"""Commands that change something wait for a metadata log that is behind: bounded, in time, and in nobody's way."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from kvfs import limits
from kvfs.commands import Lookup, MakeNode, ReleaseUnlinked, SetXattr, Unlink
from kvfs.errors import (
    DeadlineExceededError,
    FailsafeError,
    KvfsError,
    MediumUnavailableError,
    NotFoundError,
    PoolFullError,
    ProtocolError,
)
from kvfsd.metalog.backlog import LOW_ENTRIES
from kvfsd.pool.pool import Pool
from kvfsd.service.service import STOP_DEADLINE_S, Service
from tests.kvfsd.serving import (
    ALL_TRANSPORTS,
    OTHER,
    TENANT,
    TRANSPORTS,
    Host,
    Layout,
    host_of,
    make_pool,
    reopen_pool,
    serving,
)

DIRECTORY = stat.S_IFDIR | 0o755
BOUND = limits.METADATA_LOG_BACKLOG_MAX


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(await make_pool(tmp_path, Layout(medium_bytes=256 * limits.MIB))) as service:
        yield service


@pytest.fixture(params=ALL_TRANSPORTS)
async def host(request: pytest.FixtureRequest, service: Service) -> AsyncIterator[Host]:
    async with host_of(request.param, service) as host:
        yield host


@pytest.fixture
def near(service: Service) -> Host:
    """A host half in the same process, for tests of time and of slots."""
    return Host(TRANSPORTS["codec"](service.attach(TENANT)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """A bound of a few entries, so that a test reaches it at once."""
    monkeypatch.setattr(limits, "METADATA_LOG_BACKLOG_MAX", 8)
    monkeypatch.setattr("kvfsd.metalog.backlog.LOW_ENTRIES", 4)
    return 8


class StuckLog:
    """The medium does not take log records until it is told to; `error` is raised instead of waiting."""

    def __init__(self, service: Service, patch: pytest.MonkeyPatch) -> None:
        self.error: KvfsError | None = None
        self.healed = trio.Event()
        self._append = service.metadata_log._append
        patch.setattr(service.metadata_log, "_append", self.append)

    async def append(self, *arguments: object) -> object:
        if not self.healed.is_set() and self.error is not None:
            raise self.error
        await self.healed.wait()
        return await self._append(*arguments)  # type: ignore[arg-type]


@pytest.fixture
def stuck(service: Service, monkeypatch: pytest.MonkeyPatch) -> StuckLog:
    return StuckLog(service, monkeypatch)


def make(host: Host, name: bytes) -> Callable[[], object]:
    return lambda: host.submit(MakeNode(1, name, DIRECTORY, 0, 0, b""))


async def fill(service: Service, host: Host, bound: int) -> None:
    number = 0
    while service.catalog.log_rows.backlog() < bound:
        await host.submit(MakeNode(1, b"fill%d" % number, DIRECTORY, 0, 0, b""))
        number += 1


# --- the bound -----------------------------------------------------------------------------------------


async def test_a_flood_without_a_checkpoint_is_held_at_the_bound(tmp_path: Path) -> None:
    most, count = 0, 3 * BOUND
    async with serving(await make_pool(tmp_path, Layout(medium_bytes=256 * limits.MIB))) as service:
        host = Host(TRANSPORTS["direct"](service.attach(TENANT)))
        for number in range(count):
            await host.submit(MakeNode(1, b"d%d" % number, DIRECTORY, 0, 0, b""))
            most = max(most, service.catalog.log_rows.backlog())
        assert service.metrics.counters.metadata_log_waits > 0
        gauges = service.metrics.gauges
        assert gauges["metadata_log_backlog_entries"]() == service.catalog.log_rows.backlog()
        assert gauges["metadata_log_backlog_bytes"]() == service.catalog.database.outbox.bytes
    assert LOW_ENTRIES < most <= BOUND
    assert service.catalog.log_rows.backlog() == 0


async def test_a_flood_of_large_entries_is_held_in_bytes(service: Service, host: Host) -> None:
    most = 0
    value = bytes(limits.XATTR_VALUE_MAX_BYTES)
    for number in range(3 * limits.METADATA_LOG_BACKLOG_MAX_BYTES // len(value)):
        name = b"d%d" % number
        await host.submit(MakeNode(1, name, DIRECTORY, 0, 0, b""))
        ino = (await host.lookup(name)).ino
        await host.submit(SetXattr(ino, b"user.x", value, 0))
        most = max(most, service.catalog.database.outbox.bytes)
    assert most < limits.METADATA_LOG_BACKLOG_MAX_BYTES + 8 * len(value), "a command, and a step of a snapshot"
    assert most < limits.METADATA_LOG_BACKLOG_MAX_BYTES or service.metrics.counters.metadata_log_waits > 0


async def test_several_workers_pass_the_bound_by_one_command_each_at_most(
    service: Service, host: Host, small: int
) -> None:
    most = 0

    async def work(worker: int) -> None:
        nonlocal most
        for number in range(20):
            await host.submit(MakeNode(1, b"%d-%d" % (worker, number), DIRECTORY, 0, 0, b""))
            most = max(most, service.catalog.log_rows.backlog())

    async with trio.open_nursery() as nursery:
        for worker in range(30):
            nursery.start_soon(work, worker)
    assert small <= most <= small + 30


async def test_a_log_that_is_late_is_waited_for_below_the_bound(service: Service, host: Host) -> None:
    await host.submit(MakeNode(1, b"a", DIRECTORY, 0, 0, b""))
    await trio.lowlevel.checkpoint()  # the log's task runs from here on
    service.metadata_log.backlog._caught_up -= limits.METADATA_LOG_LAG_MS / 1000
    assert service.metadata_log.backlog.lag_s > limits.METADATA_LOG_LAG_MS / 1000
    await host.submit(MakeNode(1, b"b", DIRECTORY, 0, 0, b""))
    assert service.catalog.log_rows.backlog() == 1
    assert service.metadata_log.backlog.lag_s < limits.METADATA_LOG_LAG_MS / 1000


# --- while a command waits ------------------------------------------------------------------------------


async def test_a_command_that_waits_holds_nothing(service: Service, host: Host, stuck: StuckLog, small: int) -> None:
    stored = await host.store(b"file", b"content")
    other = Host(TRANSPORTS["codec"](service.attach(OTHER)))
    theirs = await other.store(b"file", b"other content")
    await fill(service, host, small)
    done = []

    async def waits() -> None:
        await host.submit(MakeNode(1, b"waits", DIRECTORY, 0, 0, b""))
        done.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        assert not service.catalog.database.in_transaction
        assert await host.load(b"file") == b"content"
        assert await other.load(b"file") == b"other content"
        assert await other.read_block(theirs.ino) == b"other content"
        ino = await host.allocate()
        await host.write_block(ino, 0, b"staged")
        await host.submit(ReleaseUnlinked(stored.ino))
        with pytest.raises(NotFoundError):
            await host.lookup(b"waits")
        assert not done
        stuck.healed.set()
    assert done
    assert (await host.lookup(b"waits")).ino
    assert service.metrics.counters.metadata_log_waits == 1


async def test_more_commands_wait_than_there_are_slots(
    service: Service, near: Host, stuck: StuckLog, small: int
) -> None:
    await fill(service, near, small)
    async with trio.open_nursery() as nursery:
        for number in range(limits.QUEUE_DEPTH + 50):
            nursery.start_soon(make(near, b"w%d" % number))
        await trio.testing.wait_all_tasks_blocked()
        assert (await near.lookup(b"fill0")).ino, "a lookup does not queue behind them"
        stuck.healed.set()
    for number in range(limits.QUEUE_DEPTH + 50):
        assert (await near.lookup(b"w%d" % number)).ino


async def test_a_command_that_waits_too_long_fails_and_has_no_effect(
    service: Service, near: Host, stuck: StuckLog, small: int, autojump_clock: MockClock
) -> None:
    stuck.error = MediumUnavailableError("medium 0 is away")
    await fill(service, near, small)
    started = trio.current_time()
    with pytest.raises(DeadlineExceededError, match="MakeNode"):
        await make(near, b"late")()  # type: ignore[misc]
    assert trio.current_time() - started == pytest.approx(limits.COMMAND_DEADLINE_MS / 1000)
    assert service.metadata_log.backlog.lag_s >= limits.COMMAND_DEADLINE_MS / 1000
    stuck.healed.set()
    with pytest.raises(NotFoundError):
        await near.lookup(b"late")
    await make(near, b"late")()  # type: ignore[misc]


async def test_on_full_media_removals_go_on_and_the_rest_is_refused(
    service: Service, near: Host, stuck: StuckLog, small: int, autojump_clock: MockClock
) -> None:
    attributes = await near.store(b"file", b"content")
    stuck.error = PoolFullError("medium 0 is full")
    await fill(service, near, small)
    with pytest.raises(PoolFullError, match="metadata log"):
        await make(near, b"more")()  # type: ignore[misc]
    await near.submit(Unlink(1, b"file", False))
    with pytest.raises(NotFoundError):
        await near.submit(Lookup(1, b"file"))
    assert service.catalog.inodes.find(service.pool.tenants.show(TENANT).number, attributes.ino) is None
    stuck.healed.set()
    await trio.sleep(1)
    await make(near, b"more")()  # type: ignore[misc]


async def test_detaching_ends_the_wait(service: Service, near: Host, stuck: StuckLog, small: int) -> None:
    await fill(service, near, small)
    refusals: list[KvfsError] = []

    async def waits() -> None:
        try:
            await near.submit(MakeNode(1, b"waits", DIRECTORY, 0, 0, b""))
        except KvfsError as error:
            refusals.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        await near.pair.aclose()
    assert [type(error) for error in refusals] == [ProtocolError]
    stuck.healed.set()


async def test_failsafe_ends_the_wait(service: Service, host: Host, stuck: StuckLog, small: int) -> None:
    await fill(service, host, small)
    async with trio.open_nursery() as nursery:

        async def waits() -> None:
            with pytest.raises(FailsafeError, match="damaged"):
                await host.submit(MakeNode(1, b"waits", DIRECTORY, 0, 0, b""))

        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        service.enter_failsafe("the catalog is damaged")
    stuck.healed.set()


# --- the end -------------------------------------------------------------------------------------------


async def test_a_service_with_a_full_backlog_and_commands_that_wait_stops_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, autojump_clock: MockClock
) -> None:
    pool: Pool = await make_pool(tmp_path)
    refused = []

    async def waits(host: Host, number: int) -> None:
        try:
            await host.submit(MakeNode(1, b"waits%d" % number, DIRECTORY, 0, 0, b""))
        except ProtocolError as error:
            refused.append(error)

    async with trio.open_nursery() as outside, serving(pool) as service:
        stuck = StuckLog(service, monkeypatch)
        host = Host(TRANSPORTS["direct"](service.attach(TENANT)))
        await fill(service, host, small)
        for number in range(5):
            outside.start_soon(waits, host, number)
        await trio.testing.wait_all_tasks_blocked()
        assert not refused
        started = trio.current_time()
        stuck.healed.set()
    assert trio.current_time() - started < STOP_DEADLINE_S / 10
    again = await reopen_pool(tmp_path)
    assert again.catalog.database.was_clean
    assert again.catalog.log_rows.backlog() == 0
    await again.aclose()

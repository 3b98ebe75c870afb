"""The service on a real pool: what is stored comes back, also after a kill; quotas are exact; trouble is contained."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from kvfs import limits
from kvfs.commands import (
    Discard,
    FilesystemUsage,
    GetAttributes,
    OpenObject,
    ReleaseUnlinked,
    Rename,
    StatFilesystem,
    Sync,
    Unlink,
)
from kvfs.errors import FailsafeError, InternalError, NotFoundError, QuotaExceededError, TooManyOpenError
from kvfsd.catalog.check import check
from kvfsd.pool.pool import Pool
from kvfsd.service import accesses, background, session_lookups
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service, ServiceOptions
from tests.kvfsd.serving import (
    OTHER,
    TENANT,
    TEST_OPTIONS,
    TRANSPORTS,
    Host,
    Layout,
    SteppingClock,
    killed_at_end,
    make_pool,
    ports,
    reopen_pool,
    serving,
)

MIB = limits.MIB


def host_of(service: Service, name: str = TENANT) -> Host:
    return Host(InProcessQueuePair(service.attach(name)))


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(await make_pool(tmp_path)) as service:
        yield service


# --- what is stored comes back -------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_file_comes_back_in_the_same_service_after_reopening_and_after_a_kill(
    tmp_path: Path, transport: str
) -> None:
    data = os.urandom(2 * MIB + 4097)
    pool = await make_pool(tmp_path)
    async with serving(pool) as service:
        host = Host(TRANSPORTS[transport](service.attach(TENANT)))
        attributes = await host.store(b"block.bin", data)
        assert attributes.size == attributes.stored_bytes == len(data)
        assert await host.load(b"block.bin") == data
        await host.pair.aclose()
    async with killed_at_end(await reopen_pool(tmp_path)) as service:
        host = Host(TRANSPORTS[transport](service.attach(TENANT)))
        assert await host.load(b"block.bin") == data
        await host.store(b"second", data[:5])
        ino = await host.allocate()
        await host.write_block(ino, 0, data[:100])
    async with serving(await reopen_pool(tmp_path)) as service:
        host = Host(TRANSPORTS[transport](service.attach(TENANT)))
        assert await host.load(b"block.bin") == data
        assert await host.load(b"second") == data[:5]
        with pytest.raises(NotFoundError):
            await host.read_block(ino)
        tenant = service.pool.tenants.show(TENANT)
        assert (tenant.used_bytes, tenant.used_objects) == (len(data) + 5, 2)


async def test_random_work_with_kills_loses_nothing_and_accounts_exactly(tmp_path: Path) -> None:
    dice = random.Random(20260731)
    pool = await make_pool(tmp_path)
    expected: dict[bytes, bytes] = {}
    for _ in range(6):
        async with killed_at_end(pool) as service:
            host = host_of(service)
            for _ in range(30):
                await one_step(host, expected, dice)
            ino = await host.allocate()  # and one that is cut off
            await host.write_block(ino, 0, b"never committed")
        pool = await reopen_pool(tmp_path)
        assert not check(pool.catalog.database)
    async with serving(pool) as service:
        host = host_of(service)
        for name, data in expected.items():
            assert await host.load(name) == data
        row = service.pool.tenants.show(TENANT)
        assert row.used_bytes == sum(map(len, expected.values()))
        assert row.used_objects == len(expected)


async def one_step(host: Host, expected: dict[bytes, bytes], dice: random.Random) -> None:
    name, other = (b"f%d" % dice.randrange(8) for _ in range(2))
    action = dice.choice(["store", "store", "rewrite", "unlink", "rename"])
    if action == "store":
        expected[name] = dice.randbytes(dice.choice([0, 1, 4096, 70_000, MIB + 1]))
        await host.store(name, expected[name])
    elif name not in expected:
        with pytest.raises(NotFoundError):
            await host.lookup(name)
    elif action == "rewrite":
        attributes = await host.lookup(name)
        data = dice.randbytes(dice.randrange(1, 5000))
        await host.write_block(attributes.ino, 0, data)
        await host.commit(attributes.ino, len(data))
        expected[name] = data
    elif action == "unlink":
        await host.submit(Unlink(1, name, False))
        del expected[name]
    elif name != other:
        await host.submit(Rename(1, name, 1, other, 0, False))
        expected[other] = expected.pop(name)


async def test_space_of_removed_files_is_used_again(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path)
    async with serving(pool) as service:
        host = host_of(service)
        data = os.urandom(MIB)
        for number in range(120):  # three times the pool
            await host.store(b"f%d" % (number % 6), data)
        for number in range(6):
            assert await host.load(b"f%d" % number) == data
        assert service.collector.stats.segments_freed > 10


# --- quota ---------------------------------------------------------------------------------------------


async def usage(host: Host) -> FilesystemUsage:
    result = (await host.submit(StatFilesystem())).result
    assert isinstance(result, FilesystemUsage)
    return result


async def test_the_byte_quota_is_exact_from_the_first_write_to_the_last_release(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path, Layout(quota_bytes=1000))
    async with serving(pool) as service:
        host, other = host_of(service), host_of(service)
        one = await host.allocate()
        await host.write_block(one, 0, bytes(600))
        with pytest.raises(QuotaExceededError):
            await other.write_block(await other.allocate(), 0, bytes(401))
        two = await other.allocate()
        await other.write_block(two, 0, bytes(400))
        assert (await usage(host)).used_bytes == 1000
        await host.commit(one, 600, b"one")
        assert (await usage(host)).used_bytes == 1000
        await other.submit(Discard(two, 0))
        assert (await usage(host)).used_bytes == 600
        await host.write_block(one, 1, bytes(400))
        with pytest.raises(QuotaExceededError):
            await host.write_block(one, 2, bytes(1))
        await host.commit(one, MIB + 400, base=600)
        assert (await usage(host)).used_bytes == 1000
        await host.submit(Unlink(1, b"one", True))
        assert (await usage(host)).used_bytes == 1000, "open and unlinked still counts"
        await host.submit(ReleaseUnlinked(one))
        assert (await usage(host)).used_bytes == 0
        assert service.metrics.counters.quota_refusals == 2


async def test_the_object_quota_counts_files_that_are_being_created(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path, Layout(quota_objects=3))
    async with serving(pool) as service:
        host = host_of(service)
        inos = [await host.allocate() for _ in range(3)]
        with pytest.raises(QuotaExceededError):
            await host.allocate()
        await host.submit(ReleaseUnlinked(inos[0]))
        await host.submit(Discard(inos[1], 0))
        assert (await usage(host)).used_objects == 1
        again = [await host.allocate() for _ in range(2)]
        with pytest.raises(QuotaExceededError):
            await host.write_block(inos[1], 0, b"x")  # truncated, and its place is taken by now
        await host.submit(ReleaseUnlinked(again[0]))
        await host.write_block(inos[1], 0, b"x")
        for ino in (inos[1], inos[2], again[1]):
            await host.commit(ino, 0, b"f%d" % ino)
        row = service.pool.tenants.show(TENANT)
        assert (row.used_objects, row.used_bytes) == (3, 1)
        assert service.admission.reserved_objects(row.number) == service.admission.reserved_bytes(row.number) == 0


async def test_one_tenant_at_its_quota_does_not_touch_the_others(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path, Layout(quota_bytes=10))
    async with serving(pool) as service:
        full, free = host_of(service), host_of(service, OTHER)
        with pytest.raises(QuotaExceededError):
            await full.store(b"f", bytes(11))
        await free.store(b"f", bytes(11))
        assert (await usage(free)).quota_bytes == 0


async def test_reservations_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPEN_FILES_MAX", 4)
    host = host_of(service)
    for _ in range(4):
        await host.allocate()
    with pytest.raises(TooManyOpenError):
        await host.allocate()


# --- stable storage ------------------------------------------------------------------------------------


async def test_sync_flushes_media_before_the_catalog(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for one in service.pool.media.values():
        monkeypatch.setattr(one.medium, "flush", noting(order, "medium"))
    database = service.catalog.database
    right = database.sync_call()
    monkeypatch.setattr(type(database), "sync_call", lambda _: lambda: (order.append("catalog"), right())[1])
    host = host_of(service)
    ino = (await host.store(b"file", b"x")).ino
    await host.submit(OpenObject(ino))
    assert len(service.accesses) == 1
    await host.submit(Sync())
    assert order == ["medium", "catalog"]
    assert len(service.accesses) == 0, "access times go with it"
    assert service.catalog.inodes.get(host.pair._session.tenant, ino).atime_ns > 1


def noting(order: list[str], what: str) -> Callable[[], object]:
    async def flush() -> None:
        order.append(what)

    return flush


async def test_overlapping_syncs_share_the_work(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    may_end = trio.Event()

    async def slow() -> None:
        nonlocal runs
        runs += 1
        await may_end.wait()

    monkeypatch.setattr(service._gate, "_sync_now", slow)
    host = host_of(service)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.submit, Sync())
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            nursery.start_soon(host.submit, Sync())
        await trio.testing.wait_all_tasks_blocked()
        may_end.set()
    assert runs == 2, "the one that ran when the others asked, and one for all of them"


async def test_access_times_survive_a_reopening(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path)
    async with serving(pool) as service:
        host = host_of(service)
        ino = (await host.store(b"file", b"x")).ino
        seen = (await host.submit(OpenObject(ino))).result.attributes.atime_ns
    async with serving(await reopen_pool(tmp_path)) as service:
        assert (await host_of(service).lookup(b"file")).atime_ns == seen


async def test_every_use_counts_and_is_written_once_in_a_batch(tmp_path: Path) -> None:
    clock = SteppingClock()
    pool = await make_pool(tmp_path, the_ports=ports(clock))
    async with serving(pool) as service:
        host = host_of(service)
        ino = (await host.store(b"file", b"x")).ino
        first = (await host.submit(OpenObject(ino))).result.attributes.atime_ns
        clock.advance_ms(1)
        second = (await host.submit(OpenObject(ino))).result.attributes.atime_ns
        assert second >= first + 1_000_000
        assert service.accesses.flush() == 1
        assert (await host.submit(GetAttributes(ino))).result.attributes.atime_ns == second
        opened = OpenObject(ino, serial=1, reading=False)
        assert (await host.submit(opened)).result.attributes.atime_ns == second, "a writer is no reader"


async def test_uses_are_bounded_and_written_early_when_there_are_many(
    service: Service, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(accesses, "PENDING_SOFT", 5)
    monkeypatch.setattr(accesses, "PENDING_MAX", 9)
    host = host_of(service)
    inos = [(await host.store(b"%d" % number, b"")).ino for number in range(10)]
    for ino in inos:
        await host.submit(OpenObject(ino))
    assert len(service.accesses) == 0, "the tenth wrote them all"
    for ino in inos[:5]:
        await host.submit(OpenObject(ino))
    await trio.sleep(1)
    assert len(service.accesses) == 0, "long before their period is over"
    for ino in inos[:4]:
        await host.submit(OpenObject(ino))
    await trio.sleep(1)
    assert len(service.accesses) == 4
    await trio.sleep(background.ACCESSES_PERIOD_MS / 1000)
    assert len(service.accesses) == 0


# --- metadata log and background -----------------------------------------------------------------------


async def test_nothing_waits_for_the_metadata_log_after_a_stop(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path)) as service:
        await host_of(service).store(b"file", b"x")
        assert service.catalog.database.one("SELECT count(*) FROM outbox") != (0,)
    pool = await reopen_pool(tmp_path)
    assert pool.catalog.database.one("SELECT count(*) FROM outbox") == (0,)
    assert pool.catalog.database.was_clean
    await pool.aclose()


async def test_the_metadata_log_follows_within_its_lag(
    service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    await host_of(service).store(b"file", b"x")
    await trio.sleep(limits.METADATA_LOG_LAG_MS / 1000)
    assert service.catalog.database.one("SELECT count(*) FROM outbox") == (0,)


async def test_blocks_of_a_large_removed_file_are_reaped(
    service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    host = host_of(service)
    ino = await host.allocate()
    for block in range(300):
        await host.write_block(ino, block, b"x")
    await host.commit(ino, 300 * MIB, b"large")
    await host.submit(Unlink(1, b"large", False))
    await trio.sleep(1)
    assert service.catalog.database.one("SELECT count(*) FROM block") == (0,)
    assert service.catalog.database.one("SELECT count(*) FROM doomed") == (0,)


async def test_a_background_task_that_fails_starts_again(
    service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    runs = 0

    async def flaky(_: Service) -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise QuotaExceededError("not this time")
        await trio.sleep_forever()

    with trio.move_on_after(60):
        await background.supervise(service, flaky)
    assert runs == 4


async def test_a_bug_in_a_background_task_is_counted_and_raised_in_tests(
    service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    async def broken(_: Service) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await background.supervise(service, broken)
    assert service.metrics.counters.internal_errors == 1


# --- trouble -------------------------------------------------------------------------------------------


async def test_a_bug_is_a_status_and_leaves_the_service_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(await make_pool(tmp_path), ServiceOptions()) as service:
        host = host_of(service)
        await host.store(b"file", b"data")

        def broken(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(session_lookups, "attributes_of", broken)
            with pytest.raises(InternalError, match="internal error in GetAttributes"):
                await host.submit(GetAttributes(1))
        assert "ZeroDivisionError" in caplog.text
        assert service.metrics.counters.internal_errors == 1
        assert await host.load(b"file") == b"data"


async def test_a_bug_inside_a_transaction_undoes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(await make_pool(tmp_path), ServiceOptions()) as service:
        host = host_of(service)
        await host.store(b"file", b"data")

        def broken(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(type(service.catalog.attachments), "store_completion", broken)
            with pytest.raises(InternalError):
                await host.submit(Unlink(1, b"file", False))
        assert await host.load(b"file") == b"data"


async def test_a_damaged_catalog_refuses_writes_and_reads_go_on(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path)
    async with serving(pool) as service:
        host = host_of(service)
        await host.store(b"file", b"data")
        service.enter_failsafe("catalog: malformed")
        assert await host.load(b"file") == b"data"
        for attempt in (host.allocate(), host.submit(Unlink(1, b"file", False)), host.submit(Sync())):
            with pytest.raises(FailsafeError, match="malformed"):
                await attempt
        assert service.metrics.gauges["failsafe"]() == 1
        service.failsafe_reason = ""


async def test_an_error_of_the_database_leads_to_failsafe(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of(service)
    await host.store(b"file", b"data")

    def corrupt(*_: object) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        raise FailsafeError(f"catalog: {error}") from error

    with monkeypatch.context() as patch:
        patch.setattr(type(service.catalog.namespace), "remove_entry", corrupt)
        with pytest.raises(FailsafeError, match="malformed"):
            await host.submit(Unlink(1, b"file", False))
    assert "malformed" in service.failsafe_reason
    with pytest.raises(FailsafeError):
        await host.submit(Unlink(1, b"file", False))
    assert await host.load(b"file") == b"data"
    service.failsafe_reason = ""


async def test_attaching_to_no_tenant_is_refused(service: Service) -> None:
    with pytest.raises(NotFoundError):
        service.attach("nobody")


async def test_no_plaintext_of_names_or_data_is_on_disk(tmp_path: Path) -> None:
    name, data = b"needle-in-a-haystack-name", os.urandom(64) * 64
    pool = await make_pool(tmp_path)
    async with serving(pool) as service:
        await host_of(service).store(name, data)
    for path in sorted(tmp_path.rglob("*")):  # noqa: ASYNC240 -- nothing else runs any more
        if path.is_file():
            content = path.read_bytes()
            assert name not in content, path
            assert data[:32] not in content, path


async def test_a_pool_stays_its_openers(tmp_path: Path) -> None:
    pool: Pool = await make_pool(tmp_path)
    for _ in range(2):
        async with Service.open(pool, TEST_OPTIONS) as service:
            assert service.pool is pool
    await pool.aclose()

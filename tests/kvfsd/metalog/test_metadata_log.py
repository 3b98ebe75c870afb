"""The outbox reaches the media in time and in order, survives failures, and is compacted."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from kvfs import limits
from kvfs.errors import MediumUnavailableError, PoolFullError
from kvfsd.catalog.check import check
from kvfsd.catalog.database import Hooks
from kvfsd.catalog.log_rows import SNAPSHOT_BYTES
from kvfsd.catalog.rows import Location
from kvfsd.metalog.metadata_log import LogPayload, SealedLogPayload
from kvfsd.metalog.rebuild import rebuild
from kvfsd.ondisk.metalog import PutEntry, decode_batch, decode_system
from kvfsd.ondisk.record import RecordHeader, RecordType
from tests.kvfsd.catalog.world import made_catalog
from tests.kvfsd.log_world import LogWorld, seal, visible_tree


@pytest.fixture
def world(tmp_path: Path) -> LogWorld:
    return LogWorld(tmp_path)


def records(world: LogWorld, kind: RecordType) -> list[tuple[int, bytes]]:
    """(generation, payload) of one type, oldest first, however dead."""
    found = []
    for data in world.media.records.values():
        identity = RecordHeader.parse(data, "test").identity
        if identity.record_type == kind:
            found.append((identity.generation, data[128:]))
    return sorted(found)


async def test_entries_leave_the_outbox_once_they_are_on_the_medium(world: LogWorld) -> None:
    world.store("a")
    assert world.catalog.log_rows.backlog() > 0
    await world.log.drain()
    assert world.catalog.log_rows.backlog() == 0
    assert world.store_port.unsettled == []
    written = records(world, RecordType.METADATA_LOG)
    assert len(written) == 1
    assert decode_batch(written[0][1], "test").previous == 0
    world.store("b")
    await world.log.drain()
    chain = records(world, RecordType.METADATA_LOG)
    assert decode_batch(chain[1][1], "test").previous == chain[0][0]
    assert check(world.catalog.database) == []


async def test_nothing_to_say_writes_nothing(world: LogWorld) -> None:
    await world.log.drain()
    before = len(world.media.records)
    await world.log.drain()
    assert len(world.media.records) == before


async def test_the_log_is_within_its_lag(world: LogWorld, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.log.run)
        for number in range(5):
            world.store(f"n{number}")
            await trio.sleep(limits.METADATA_LOG_LAG_MS / 1000)
            assert world.catalog.log_rows.backlog() == 0
        nursery.cancel_scope.cancel()


async def test_a_failing_medium_delays_the_log_and_loses_nothing(world: LogWorld, autojump_clock: MockClock) -> None:
    world.store("a")
    world.media.failing = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.log.run)
        await trio.sleep(10)
        assert isinstance(world.log.backlog.last_error, MediumUnavailableError)
        waiting = world.catalog.log_rows.backlog()
        assert waiting > 0
        world.media.failing = False
        await trio.sleep(1)
        assert world.log.backlog.last_error is None
        assert world.catalog.log_rows.backlog() == 0
        nursery.cancel_scope.cancel()
    assert world.store_port.unsettled == []


async def test_one_tenant_without_keys_does_not_hold_up_the_others(world: LogWorld) -> None:
    root = world.add_tenant(2)
    world.store("a")
    world.tenant, world.root = 2, root
    world.store("b")

    def refuse(sealing: LogPayload) -> SealedLogPayload:
        if sealing.tenant == 1:
            raise MediumUnavailableError("tenant 1 has no key")
        return seal(sealing)

    object.__setattr__(world.log._ports, "seal", refuse)
    with pytest.raises(MediumUnavailableError, match="no key"):
        await world.log.drain()
    assert world.catalog.log_rows.waiting_tenants() == [1]


async def test_closing_drains_and_flushes(world: LogWorld) -> None:
    world.store("a")
    flushes = world.store_port.flushes
    await world.log.close()
    assert world.catalog.log_rows.backlog() == 0
    assert world.store_port.flushes > flushes


async def test_a_large_backlog_takes_several_records(world: LogWorld) -> None:
    for number in range(40):
        ino = world.store(f"n{number}", [])
        with world.catalog.transaction():
            world.catalog.xattrs.put(1, ino, b"n", bytes(60_000))
    await world.log.drain()
    written = records(world, RecordType.METADATA_LOG)
    assert len(written) == 3
    previous = [decode_batch(payload, "test").previous for _, payload in written]
    assert previous == [0, written[0][0], written[1][0]]


async def test_a_crash_between_record_and_catalog_writes_the_entries_again(world: LogWorld) -> None:
    world.store("a")

    class CrashError(Exception):
        """The process ends here."""

    def crash(locations: object) -> None:
        raise CrashError

    await world.log.write_system()
    original = world.catalog.log_rows.append
    world.log._rows.append = lambda record, through: crash(record)  # type: ignore[method-assign]
    with pytest.raises(CrashError):
        await world.log.drain()
    world.log._rows.append = original  # type: ignore[method-assign]
    await world.log.drain()
    written = records(world, RecordType.METADATA_LOG)
    first, second = (decode_batch(payload, "test") for _, payload in written)
    assert first == second  # both say "nothing before me": only the one the catalog knows goes on


async def test_compaction_drops_what_the_snapshot_says_again(world: LogWorld) -> None:
    for _ in range(30):
        world.store("same", [7])
        await world.log.drain()
    live_before = world.catalog.log_rows.state(1)
    await world.log.compact(1)
    state = world.catalog.log_rows.state(1)
    assert state.log_bytes < live_before.log_bytes / 4
    assert state.snapshot_bytes > 0
    kept = world.catalog.database.all("SELECT generation FROM log_record WHERE tenant=1")
    assert len(kept) <= 3
    assert check(world.catalog.database) == []


async def test_compaction_starts_by_itself_in_the_background(
    world: LogWorld, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvfsd.metalog.compaction.COMPACT_MIN_BYTES", 4000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.log.run)
        nursery.start_soon(world.log.compaction.run)
        for _ in range(60):
            world.store("same", [7])
            await trio.sleep(0.3)
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    state = world.catalog.log_rows.state(1)
    assert state.snapshot_bytes > 0
    assert state.log_bytes <= max(4000, 4 * state.snapshot_bytes) + 2000


async def test_old_records_stay_until_the_snapshot_is_flushed(world: LogWorld) -> None:
    world.store("a")
    await world.log.drain()
    order: list[str] = []
    flush, drop = world.store_port.flush, world.catalog.log_rows.drop_before

    async def note_flush() -> None:
        order.append("flush")
        await flush()

    def note_drop(tenant: int, generation: int, limit: int = 1024) -> bool:
        order.append("drop")
        return drop(tenant, generation, limit)

    world.log.compaction._flush = note_flush
    world.log._rows.drop_before = note_drop  # type: ignore[method-assign]
    await world.log.compact(1)
    assert order[0] == "flush"
    assert "drop" in order


@pytest.mark.parametrize("failing", range(12))
async def test_snapshot_has_every_row_though_a_commit_of_it_fails(world: LogWorld, failing: int) -> None:
    for number in range(3):
        world.store(f"file-{number}", [number])
    await world.log.drain()
    commits = iter(range(1000))

    def fail_once() -> None:
        if next(commits) == failing:
            raise PoolFullError("no room for the catalog")

    world.catalog.database._hooks = Hooks(before_commit=fail_once)
    for _ in range(2):
        with contextlib.suppress(PoolFullError):
            await world.log.compact(1)
    assert next(commits) > failing
    kept = {row[0] for row in world.catalog.database.all("SELECT generation FROM log_record WHERE tenant=1")}
    found = set()
    for generation, payload in records(world, RecordType.METADATA_LOG):
        if generation in kept:
            changes = (change for entry in decode_batch(payload, "test").entries for change in entry.changes)
            found |= {change.ino for change in changes if isinstance(change, PutEntry)}
    assert len(found) == 3


async def test_system_records_follow_every_change_and_replace_the_last(world: LogWorld) -> None:
    await world.log.drain()
    with world.catalog.transaction():
        world.catalog.tenants.set_quota(1, 77, 0)
    await world.log.drain()
    written = records(world, RecordType.SYSTEM)
    part = decode_system(written[-1][1], "test")
    assert part.snapshot == written[-1][0]
    assert [(one.tenant, one.quota_bytes, len(one.slots)) for one in part.tenants] == [(0, 0, 2), (1, 77, 2)]
    live = world.catalog.database.all("SELECT generation FROM log_record WHERE tenant=0")
    assert live == [(part.snapshot,)]
    assert check(world.catalog.database) == []


async def test_entries_of_a_tenant_that_is_being_deleted_are_dropped(world: LogWorld) -> None:
    world.store("a")
    with world.catalog.transaction():
        world.catalog.tenants.begin_delete(1)
    await world.log.drain()
    assert records(world, RecordType.METADATA_LOG) == []
    assert world.catalog.log_rows.backlog() == 0


async def test_a_tenant_deleted_while_its_record_is_written_gets_no_row(world: LogWorld) -> None:
    world.store("a")
    await world.log.write_system()
    append = world.store_port.append

    async def delete_meanwhile(*arguments: object) -> tuple[Location, ...]:
        locations = await append(*arguments)  # type: ignore[arg-type]
        with world.catalog.transaction():
            world.catalog.tenants.begin_delete(1)
        return locations

    world.store_port.append = delete_meanwhile  # type: ignore[method-assign, assignment]
    await world.log.drain()
    assert world.catalog.database.one("SELECT count(*) FROM log_record WHERE tenant=1") == (0,)
    assert world.store_port.unsettled == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE inode SET uid=uid+1 WHERE ino IN (SELECT max(ino) FROM inode)",
        "DELETE FROM dirent WHERE ino IN (SELECT max(ino) FROM dirent)",
        "DELETE FROM block WHERE ino IN (SELECT max(ino) FROM block)",
        "DELETE FROM inode WHERE ino IN (SELECT max(ino) FROM inode)",
        "UPDATE dirent SET ino=ino-1 WHERE ino IN (SELECT max(ino) FROM dirent)",
    ],
)
async def test_the_log_of_a_damaged_catalog_is_not_compacted(
    world: LogWorld, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    for number in range(70):
        world.store(f"n{number}", [5])
    await world.log.drain()
    before = world.tree()
    kept = world.catalog.database.all("SELECT generation FROM log_record WHERE tenant=1")
    assert world.catalog.database.run(damage)
    monkeypatch.setattr("kvfsd.metalog.compaction.COMPACT_MIN_BYTES", 100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.log.compaction.run)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    await world.log.drain()
    assert world.catalog.database.all("SELECT generation FROM log_record WHERE tenant=1")[: len(kept)] == kept
    rebuilt = made_catalog(world.path.with_name("rebuilt.db"))
    assert (await rebuild(rebuilt, world.media, lambda slots: None)).problems == []
    assert visible_tree(rebuilt, 1) == before
    rebuilt.close()


async def test_a_log_that_is_damaged_itself_is_replaced_by_what_is_sound(world: LogWorld) -> None:
    for number in range(10):
        world.store(f"n{number}", [5])
    world.catalog.database.run("UPDATE inode SET uid=uid+1 WHERE ino IN (SELECT max(ino) FROM inode)")
    await world.log.compact(1)
    rebuilt = made_catalog(world.path.with_name("rebuilt.db"))
    report = await rebuild(rebuilt, world.media, lambda slots: None)
    assert (report.objects, report.problems) == (1 + 9, [])
    rebuilt.close()


async def test_a_step_of_a_snapshot_is_bounded_in_bytes_too(world: LogWorld) -> None:
    for number in range(40):
        ino = world.store(f"n{number}", [])
        with world.catalog.transaction():
            world.catalog.xattrs.put(1, ino, b"n", bytes(60_000))
    await world.log.drain()
    most, tree = 0, world.tree()
    world.log.compaction.begin(1)
    while world.log.compaction.is_under_way(1):
        before = world.catalog.database.outbox.bytes
        await world.log.compaction.step(1)
        most = max(most, world.catalog.database.outbox.bytes - before)
        await world.log.drain()
    assert 60_000 < most < SNAPSHOT_BYTES + 100_000
    assert world.tree() == tree
    assert world.catalog.log_rows.state(1).snapshot_bytes > 40 * 60_000

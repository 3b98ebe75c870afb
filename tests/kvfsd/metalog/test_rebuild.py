"""A catalog rebuilt from media alone shows what the old one showed, up to the log's lag."""

from __future__ import annotations

import contextlib
import itertools
import random
from pathlib import Path

import pytest
import trio

from kvfs.commands import RENAME_EXCHANGE
from kvfs.errors import FailsafeError, KvfsError, NotFoundError
from kvfsd.catalog import Catalog
from kvfsd.catalog.check import check
from kvfsd.metalog.rebuild import RebuildReport, rebuild
from kvfsd.ondisk.record import RecordHeader, RecordType
from kvfsd.ondisk.segment import SegmentKind
from tests.kvfsd.catalog.world import DIRECTORY, POOL
from tests.kvfsd.log_world import LogWorld, MemoryMedia, MemoryStore, visible_tree

_numbers = itertools.count()


@pytest.fixture
def world(tmp_path: Path) -> LogWorld:
    return LogWorld(tmp_path)


async def rebuilt(media: MemoryMedia, directory: Path) -> tuple[Catalog, RebuildReport]:
    catalog = Catalog.create(directory / f"rebuilt-{next(_numbers)}.db", POOL)
    report = await rebuild(catalog, media, lambda slots: None)
    return catalog, report


def log_records(media: MemoryMedia) -> list[tuple[int, object]]:
    """(generation, location) of all metadata log records, oldest first."""
    headers = {location: RecordHeader.parse(data, "test").identity for location, data in media.records.items()}
    wanted = [(one.generation, at) for at, one in headers.items() if one.record_type == RecordType.METADATA_LOG]
    return sorted(wanted)


class Player:
    """Random operations; those that the catalog refuses are part of the game."""

    def __init__(self, world: LogWorld, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.directories = [world.root]

    def step(self) -> None:
        action = self.random.choice(
            [self.store, self.store, self.mkdir, self.unlink, self.rename, self.link, self.xattr]
        )
        with contextlib.suppress(KvfsError):
            action()

    def name(self) -> str:
        return f"n{self.random.randrange(12)}"

    def parent(self) -> int:
        return self.random.choice(self.directories)

    def store(self) -> None:
        world, entry = self.world, self.world.entry(self.name(), self.parent())
        known = world.catalog.namespace.lookup(*entry)
        again = known is not None and self.random.random() < 0.5
        ino = known.ino if known and again else world.catalog.database.next_ino()
        count = self.random.randrange(4)
        world.stage(ino, [world.block(n, self.random.choice([1 << 20, 5])) for n in range(count)])
        limit = self.random.randrange(4) << 20 if again else 0
        world.publish(ino, None, 4 << 20, entry=None if again else entry, base_limit_bytes=limit)

    def mkdir(self) -> None:
        world = self.world
        with world.catalog.transaction():
            row = world.catalog.namespace.insert_node(world.entry(self.name(), self.parent()), world.node(DIRECTORY))
        self.directories.append(row.ino)

    def unlink(self) -> None:
        world, entry = self.world, self.world.entry(self.name(), self.parent())
        namespace = world.catalog.namespace
        remove = self.random.choice([namespace.remove_entry, namespace.remove_directory])
        with world.catalog.transaction():
            remove(entry, world.now())

    def rename(self) -> None:
        world = self.world
        source, target = (world.entry(self.name(), self.parent()) for _ in range(2))
        with world.catalog.transaction():
            world.catalog.renames.rename(source, target, self.random.choice([0, 0, RENAME_EXCHANGE]), world.now())

    def link(self) -> None:
        world, entry = self.world, self.world.entry(self.name(), self.parent())
        row = world.catalog.namespace.visible(world.entry(self.name(), self.parent()))
        with world.catalog.transaction():
            world.catalog.namespace.add_link(entry, row.ino, world.now())

    def xattr(self) -> None:
        world = self.world
        row = world.catalog.namespace.visible(world.entry(self.name(), self.parent()))
        attribute = (b"sealed name %d" % self.random.randrange(3), b"sealed value")
        with world.catalog.transaction():
            world.catalog.xattrs.set(1, row.ino, attribute, 0, world.now())


@pytest.mark.parametrize("seed", range(12))
async def test_random_operations_come_back(tmp_path: Path, seed: int) -> None:
    world = LogWorld(tmp_path)
    player = Player(world, seed)
    for _ in range(250):
        player.step()
        if player.random.random() < 0.05:
            await world.log.drain()
        if player.random.random() < 0.01:
            await world.log.compact(1)
    await world.log.close()
    catalog, report = await rebuilt(world.media, tmp_path)
    assert check(world.catalog.database) == []
    assert report.problems == []
    assert report.log_gaps == []
    assert catalog.tenants.get(1) == world.catalog.tenants.get(1)
    assert visible_tree(catalog, 1) == world.tree()
    assert len(world.tree()) > 5


async def test_a_snapshot_is_exact_while_the_tree_changes_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvfsd.catalog.log_rows.SNAPSHOT_ROWS", 3)
    world = LogWorld(tmp_path)
    player = Player(world, 99)
    for _ in range(150):
        player.step()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.log.compact, 1)
        for _ in range(200):
            player.step()
            await trio.lowlevel.checkpoint()
    await world.log.drain()
    catalog, report = await rebuilt(world.media, tmp_path)
    assert report.problems == []
    assert visible_tree(catalog, 1) == world.tree()


async def test_what_is_not_drained_is_not_there_and_nothing_else_is_missing(world: LogWorld, tmp_path: Path) -> None:
    world.store("kept")
    await world.log.drain()
    before = world.tree()
    world.store("too late")
    catalog, report = await rebuilt(world.media, tmp_path)
    assert visible_tree(catalog, 1) == before
    assert report.objects == 2


async def test_unlinked_objects_stay_away_though_their_records_are_there(world: LogWorld, tmp_path: Path) -> None:
    world.store("gone")
    await world.log.drain()
    world.unlink("gone")
    await world.log.drain()
    catalog, report = await rebuilt(world.media, tmp_path)
    assert catalog.namespace.lookup(*world.entry("gone")) is None
    assert report.blocks == 0
    assert catalog.tenants.get(1).used_bytes == 0
    assert all(row.live_bytes == 0 for row in catalog.segments.all() if row.kind == SegmentKind.DATA)


async def test_an_object_without_one_of_its_blocks_is_left_out(world: LogWorld, tmp_path: Path) -> None:
    ino = world.store("holed")
    world.store("whole")
    await world.log.drain()
    row = world.catalog.blocks.locate(1, ino, 1)
    assert row is not None
    del world.media.records[row.locations[0]]
    catalog, report = await rebuilt(world.media, tmp_path)
    assert catalog.namespace.lookup(*world.entry("holed")) is None
    assert catalog.namespace.lookup(*world.entry("whole")) is not None
    assert (report.objects_lost, report.names_dropped, report.problems) == (1, 1, [])


async def test_an_older_version_of_a_block_does_not_count(world: LogWorld, tmp_path: Path) -> None:
    ino = world.store("file", [1 << 20])
    old = world.catalog.blocks.locate(1, ino, 0)
    world.stage(ino, [world.block(0)])
    world.publish(ino, None, 1 << 20, base_limit_bytes=1 << 20)
    await world.log.drain()
    new = world.catalog.blocks.locate(1, ino, 0)
    catalog, _ = await rebuilt(world.media, tmp_path)
    assert old != new
    assert catalog.blocks.locate(1, ino, 0) == new


async def test_records_of_a_past_that_a_power_loss_undid_do_not_count(world: LogWorld, tmp_path: Path) -> None:
    world.store("kept")
    await world.log.drain()
    # A record is written, and then the catalog forgets it and all that it says.
    database = world.catalog.database
    head = world.catalog.log_rows.state(1)
    world.store("undone")
    undone = world.tree()
    await world.log.drain()
    world.unlink("undone")
    with world.catalog.transaction():
        database.run("DELETE FROM log_record WHERE generation>?", (head.head_generation,))
        database.run("DELETE FROM outbox")
        world.catalog.log_rows.set_state(1, head)
    world.store("after")
    await world.log.drain()
    catalog, report = await rebuilt(world.media, tmp_path)
    assert len(undone) == 3
    assert {entry for path in visible_tree(catalog, 1) for entry in path} == {
        world.entry("kept").name,
        world.entry("after").name,
    }
    assert report.problems == []


async def test_a_missing_log_record_is_reported_and_costs_what_it_said(world: LogWorld, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        world.store(name)
        await world.log.drain()
    _, location = log_records(world.media)[1]
    world.media.records[location] = world.media.records[location][:128] + b"damaged"  # type: ignore[index]
    catalog, report = await rebuilt(world.media, tmp_path)
    names = {entry for path in visible_tree(catalog, 1) for entry in path}
    assert names == {world.entry("first").name, world.entry("third").name}
    assert report.log_gaps
    assert report.problems == []


async def test_a_deleted_tenant_does_not_come_back(world: LogWorld, tmp_path: Path) -> None:
    world.add_tenant(2)
    world.store("mine")
    await world.log.drain()
    with world.catalog.transaction():
        world.catalog.tenants.begin_delete(1)
    await world.log.drain()
    catalog, _ = await rebuilt(world.media, tmp_path)
    assert [row.tenant for row in catalog.tenants.all()] == [2]
    assert catalog.tenants.slots(1) == []
    assert {row.live_bytes for row in catalog.segments.all() if row.tenant == 1} == {0}


async def test_numbers_go_on_above_everything_that_was_ever_seen(world: LogWorld, tmp_path: Path) -> None:
    world.store("file")
    await world.log.drain()
    ino = world.catalog.database.next_ino()
    world.stage(ino, [world.block(0)])  # never committed, yet its record is on the medium
    generation = world.catalog.database.next_generation()
    catalog, _ = await rebuilt(world.media, tmp_path)
    assert catalog.database.next_ino() > ino
    assert catalog.database.next_generation() >= generation


async def test_the_log_goes_on_after_a_rebuild(world: LogWorld, tmp_path: Path) -> None:
    world.store("old")
    await world.log.drain()
    world.catalog, _ = await rebuilt(world.media, tmp_path)
    world.start()
    world.store("new")
    await world.log.drain()
    before = world.tree()
    catalog, report = await rebuilt(world.media, tmp_path)
    assert visible_tree(catalog, 1) == before
    assert report.problems == []


async def test_a_tenant_without_its_log_is_back_empty_and_told(world: LogWorld, tmp_path: Path) -> None:
    world.store("file")
    await world.log.drain()
    for _, location in log_records(world.media):
        del world.media.records[location]  # type: ignore[arg-type]
    catalog, report = await rebuilt(world.media, tmp_path)
    assert list(visible_tree(catalog, 1)) == [()]
    assert "tenant 1: no log record" in report.log_gaps[0]
    assert report.problems == []


async def test_media_without_a_system_record_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no system record"):
        await rebuilt(MemoryMedia(), tmp_path)


def test_the_store_of_these_tests_keeps_records_apart(world: LogWorld) -> None:
    store = MemoryStore(world.catalog, world.media)
    first, second = (store.place(SegmentKind.DATA, 1, 1, 8192) for _ in range(2))
    assert second.offset - first.offset == 2


@pytest.mark.parametrize("failing", range(1, 8))
async def test_a_step_of_a_snapshot_whose_commit_fails_is_done_again(
    world: LogWorld, failing: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("kvfsd.catalog.log_rows.SNAPSHOT_ROWS", 3)
    for number in range(5):
        world.store(f"n{number}", [7])
    await world.log.drain()
    count = 0

    def refuse() -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise FailsafeError("the disk under the catalog is full")

    database = world.catalog.database
    monkeypatch.setattr(database, "_hooks", type(database._hooks)(before_commit=refuse))
    with contextlib.suppress(FailsafeError):
        await world.log.compact(1)
    assert count >= failing, "the compaction got that far"
    await world.log.compact(1)
    catalog, report = await rebuilt(world.media, tmp_path)
    assert visible_tree(catalog, 1) == world.tree()
    assert report.log_gaps == []

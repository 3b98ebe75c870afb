"""Blocks: staged, published, replaced, moved, and released with exact counts."""

from __future__ import annotations

import pytest

from kvfs.errors import (
    FileTooLargeError,
    FormatError,
    InvalidArgumentError,
    IsDirectoryError,
    NotFoundError,
    QuotaExceededError,
)
from kvfsd.catalog.doomed import RELEASE_BATCH
from kvfsd.catalog.rows import Location, RemovedName, pack_locations, unpack_locations
from kvfsd.ondisk.record import record_bytes
from tests.kvfsd.catalog.world import ATTACHMENT, FULL, World


def live(world: World, segment: int = 0, medium: int = 0) -> int:
    return world.catalog.segments.get(medium, segment).live_bytes


def test_staged_blocks_are_seen_by_their_attachment_only(world: World) -> None:
    ino = world.store("a")
    old, new = world.catalog.blocks.locate(1, ino, 0), world.block(0)
    world.stage(ino, [new])
    blocks = world.catalog.blocks
    assert blocks.locate(1, ino, 0) == old
    assert blocks.locate_staged(ATTACHMENT, 1, ino, 0) == new
    assert blocks.locate_staged(ATTACHMENT + 1, 1, ino, 0) == old
    assert blocks.locate_staged(ATTACHMENT, 1, ino, 1) == blocks.locate(1, ino, 1)
    assert blocks.staged_bytes(1) == FULL


def test_staging_again_replaces_and_releases(world: World) -> None:
    ino = world.catalog.database.next_ino()
    world.stage(ino, [world.block(0)])
    with world.catalog.transaction():
        assert world.catalog.blocks.stage(ATTACHMENT, 1, ino, world.block(0, 100)) == 100 - FULL
    assert live(world) == record_bytes(100)


@pytest.mark.parametrize("block", [-1, 1 << 26, 1 << 62])
def test_block_numbers_are_bounded(world: World, block: int) -> None:
    with pytest.raises(InvalidArgumentError), world.catalog.transaction():
        world.catalog.blocks.stage(ATTACHMENT, 1, 50, world.block(0)._replace(block=block))


def test_publishing_again_keeps_what_is_below_the_base_limit(world: World) -> None:
    ino = world.store("a", [FULL] * 4)
    kept = world.catalog.blocks.locate_range(1, ino, 0, 2)
    new = world.block(3, 500)
    world.stage(ino, [new])
    published = world.publish(ino, None, 3 * FULL + 500, base_limit_bytes=FULL + 1)
    assert world.catalog.blocks.locate_range(1, ino, 0, 10) == [*kept, new]
    assert published.inode.stored_bytes == 2 * FULL + 500
    assert world.catalog.tenants.get(1).used_bytes == 2 * FULL + 500
    assert live(world) == 2 * record_bytes(FULL) + record_bytes(500)


def test_a_replaced_block_below_the_limit_is_released(world: World) -> None:
    ino = world.store("a")
    new = world.block(0, 10)
    world.stage(ino, [new])
    world.publish(ino, None, 2 * FULL, base_limit_bytes=2 * FULL)
    assert world.catalog.blocks.locate(1, ino, 0) == new
    assert world.catalog.tenants.get(1).used_bytes == FULL + 10


def test_truncation_to_nothing_and_a_file_of_holes(world: World) -> None:
    ino = world.store("a")
    row = world.publish(ino, None, 1 << 40).inode
    assert (row.size, row.stored_bytes) == (1 << 40, 0)
    assert live(world) == 0


def test_publishing_over_a_name_replaces_its_object(world: World) -> None:
    old = world.store("a")
    new = world.catalog.database.next_ino()
    world.stage(new, [world.block(0)])
    assert world.publish(new, "a", FULL).replaced == RemovedName(old, 0)
    tenant = world.catalog.tenants.get(1)
    assert (tenant.used_bytes, tenant.used_objects) == (FULL, 1)
    third = world.catalog.database.next_ino()
    assert world.publish(third, "a", 0, keep_open=True).replaced == RemovedName(new, 0)
    assert world.catalog.inodes.get(1, new).nlink == 0


def test_publications_that_are_refused_change_nothing(world: World) -> None:
    directory = world.mkdir("d")
    ino = world.store("a")
    staged = world.catalog.database.next_ino()
    world.stage(staged, [world.block(0)])
    with pytest.raises(IsDirectoryError):
        world.publish(staged, "d", FULL)
    with pytest.raises(NotFoundError):
        world.publish(staged, None, FULL)
    with pytest.raises(FileTooLargeError):
        world.publish(staged, "b", 1 << 47)
    with pytest.raises(InvalidArgumentError):
        world.publish(directory, None, 0)
    with pytest.raises(InvalidArgumentError):
        world.publish(ino, "a", 0)
    with pytest.raises(InvalidArgumentError):
        world.publish(staged, "b", 0, mode=0o40755)
    assert world.catalog.blocks.staged_bytes(1) == FULL


def test_the_byte_quota_is_exact_and_counts_what_a_replacement_frees(world: World) -> None:
    with world.catalog.transaction():
        world.catalog.tenants.set_quota(1, 2 * FULL, 0)
    world.store("a")
    with pytest.raises(QuotaExceededError):
        world.store("b", [1])
    with world.catalog.transaction():
        world.catalog.attachments.recover_some(None)
    world.store("a")
    assert world.catalog.tenants.get(1).used_bytes == 2 * FULL


def test_a_large_object_goes_at_once_and_its_blocks_in_batches(world: World) -> None:
    count = 2 * RELEASE_BATCH + 1
    world.store("large", [1] * count)
    world.unlink("large")
    assert world.catalog.tenants.get(1).used_bytes == 0
    assert live(world) == (count - RELEASE_BATCH) * 4096
    steps = 0
    while True:
        with world.catalog.transaction():
            if not world.catalog.doomed.reap():
                break
        steps += 1
    assert steps == 2
    assert live(world) == 0


def test_discarding_from_a_block_on(world: World) -> None:
    ino = world.catalog.database.next_ino()
    world.stage(ino, [world.block(number) for number in range(3)])
    with world.catalog.transaction():
        assert world.catalog.blocks.drop_staged(ATTACHMENT, 1, ino, 1) == 2 * FULL
        assert world.catalog.blocks.drop_staged(ATTACHMENT, 1, ino, 1) == 0
    assert live(world) == record_bytes(FULL)


def replicated(world: World) -> tuple[int, list[Location]]:
    with world.catalog.transaction():
        for medium in (1, 2, 3):
            world.add_segment(5, medium)
    locations = [world.location(FULL), Location(1, 5, 9), Location(2, 5, 9), Location(3, 5, 9)]
    ino = world.catalog.database.next_ino()
    world.stage(ino, [world.block(0)._replace(locations=tuple(locations))])
    world.publish(ino, "replicated", FULL)
    return ino, locations


def test_every_replica_is_found_by_its_segment(world: World) -> None:
    ino, locations = replicated(world)
    world.stage(ino, [world.block(1)])
    for location in locations[1:]:
        placed = world.catalog.blocks.live_in_segment(location.medium, location.segment)
        assert [(one.ino, one.row.locations[location.medium], one.attachment) for one in placed] == [(ino, location, 0)]
    here = world.catalog.blocks.live_in_segment(0, 0)
    assert sorted((one.row.block, one.attachment) for one in here) == [(0, 0), (1, ATTACHMENT)]
    plan = world.catalog.database.all(
        "EXPLAIN QUERY PLAN SELECT ino FROM block WHERE substr(locations, 11, 6)=? AND length(locations) > 10", (b"",)
    )
    assert "block_replica_2" in plan[0][3]


def test_relocation_is_refused_once_the_block_has_changed(world: World) -> None:
    ino, locations = replicated(world)
    with world.catalog.transaction():
        world.add_segment(6, 2)
    placed = world.catalog.blocks.live_in_segment(2, 5)[0]
    old, new = locations[2], Location(2, 6, 1)
    with world.catalog.transaction():
        assert world.catalog.blocks.relocate(placed, old, new)
        assert not world.catalog.blocks.relocate(placed, old, new)
    assert (live(world, 5, 2), live(world, 6, 2)) == (0, record_bytes(FULL))
    row = world.catalog.blocks.locate(1, ino, 0)
    assert row is not None
    assert row.locations == (locations[0], locations[1], new, locations[3])
    world.unlink("replicated")
    with world.catalog.transaction():
        assert not world.catalog.blocks.relocate(placed, new, old)


def test_a_staged_block_is_relocated_even_if_it_was_committed_meanwhile(world: World) -> None:
    with world.catalog.transaction():
        world.add_segment(6)
    ino = world.catalog.database.next_ino()
    world.stage(ino, [world.block(0), world.block(1)])
    placed = world.catalog.blocks.live_in_segment(0, 0)
    with world.catalog.transaction():
        assert world.catalog.blocks.relocate(placed[0], placed[0].row.locations[0], Location(0, 6, 1))
    world.publish(ino, "a", 2 * FULL)
    with world.catalog.transaction():
        assert world.catalog.blocks.relocate(placed[1], placed[1].row.locations[0], Location(0, 6, 258))
    assert live(world) == 0
    assert live(world, 6) == 2 * record_bytes(FULL)


def test_a_bad_replica_is_forgotten_unless_it_is_the_last(world: World) -> None:
    _, locations = replicated(world)
    placed = world.catalog.blocks.live_in_segment(1, 5)[0]
    with world.catalog.transaction():
        done = [world.catalog.blocks.forget_replica(placed, location) for location in locations]
    assert done == [True, True, True, False]
    assert live(world, 5, 1) == 0


def test_a_segment_is_freed_only_when_nothing_refers_to_it(world: World) -> None:
    from kvfs.errors import InternalError

    world.store("a")
    segments = world.catalog.segments
    with pytest.raises(InternalError), world.catalog.transaction():
        segments.free(0, 0)
    world.unlink("a")
    assert segments.empty() == []
    with world.catalog.transaction():
        segments.close(0, 0)
        assert [row.segment for row in segments.empty()] == [0]
        segments.free(0, 0)
    with pytest.raises(NotFoundError):
        segments.get(0, 0)


@pytest.mark.parametrize("packed", [b"", b"x" * 9, b"x" * 11, b"x" * 50])
def test_locations_of_impossible_length(packed: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_locations(packed)


def test_locations_are_packed_within_their_ranges() -> None:
    high = Location(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    assert unpack_locations(pack_locations([high, Location(0, 0, 0)])) == (high, Location(0, 0, 0))
    for bad in ([], [high] * 5, [Location(1 << 16, 0, 0)], [Location(0, -1, 0)]):
        with pytest.raises(InvalidArgumentError):
            pack_locations(bad)

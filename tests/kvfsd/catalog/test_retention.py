"""Rows behind eviction: flags packed and read, the order of use and its index, removal with all names, policies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs import limits, retention
from kvfs.errors import InvalidArgumentError, NotFoundError
from kvfsd.catalog import retention_flags as flags
from kvfsd.catalog import retention_rows
from kvfsd.catalog.retention_rows import TenantPolicy
from tests.kvfsd.catalog.world import World

VALUES = {
    retention.PIN: st.sampled_from([0, 1]),
    retention.PRIORITY: st.integers(retention.PRIORITY_MIN, retention.PRIORITY_MAX),
    retention.TTL: st.integers(0, retention.TTL_MAX_S),
}


@given(
    st.lists(
        st.sampled_from(retention.SETTINGS).flatmap(lambda name: st.tuples(st.just(name), st.none() | VALUES[name])),
        max_size=12,
    ),
    st.booleans(),
)
def test_settings_of_a_directory_are_what_was_set_last(
    changes: list[tuple[bytes, int | None]], quarantined: bool
) -> None:
    bits = int(quarantined)
    expected: dict[bytes, int | None] = dict.fromkeys(retention.SETTINGS)
    for name, value in changes:
        bits = flags.with_setting(bits, name, value, value or 0)
        expected[name] = value
    assert 0 <= bits < 1 << 63
    assert bits & 1 == int(quarantined)
    assert flags.settings_of_directory(bits) == flags.Settings(
        expected[retention.PIN], expected[retention.PRIORITY], expected[retention.TTL]
    )
    assert flags.priority_of(bits) == (expected[retention.PRIORITY] or 0)
    assert bool(bits & flags.PINNED) == bool(expected[retention.PIN])


def test_a_file_expires_at_its_second() -> None:
    bits = flags.with_setting(0, retention.TTL, 5, 1_000)
    assert flags.expiry_s(bits) == 1_000
    assert not flags.is_expired(bits, 999_999_999_999)
    assert flags.is_expired(bits, 1_000_000_000_000)
    assert not flags.is_expired(flags.with_setting(bits, retention.TTL, 0, 77), 1 << 62)
    assert not flags.is_expired(flags.with_setting(0, retention.PRIORITY, -1, 0), 1 << 62)


def test_settings_above_count_where_nothing_is_said() -> None:
    assert flags.Settings(None, 0, 5).under(flags.Settings(1, 7, None)) == flags.Settings(1, 0, 5)


def order(world: World, limit: int = 100) -> list[int]:
    return [row.ino for row in world.catalog.retention.oldest(1, limit)]


def flagged(world: World, ino: int, bits: int) -> None:
    with world.catalog.transaction():
        row = world.catalog.inodes.get(1, ino)
        world.catalog.inodes.update(1, row._replace(flags=row.flags | bits))


def test_objects_come_by_priority_then_last_use(world: World) -> None:
    world.mkdir("directory")
    one, two, three, four = (world.store(f"f{number}", [5]) for number in range(4))
    assert order(world) == [one, two, three, four]
    with world.catalog.transaction():
        world.catalog.inodes.note_access(1, one, world.now() + 1000)
    assert order(world) == [two, three, four, one]
    assert order(world, 2) == [two, three]
    flagged(world, one, flags.with_setting(0, retention.PRIORITY, -5, 0))
    flagged(world, two, flags.with_setting(0, retention.PRIORITY, 5, 0))
    assert order(world) == [one, three, four, two]
    assert [row.priority for row in world.catalog.retention.oldest(1, 9)] == [-5, 0, 0, 5]
    assert {row.size_bytes for row in world.catalog.retention.oldest(1, 9)} == {5}


def test_pinned_hidden_nameless_and_other_things_are_no_candidates(world: World) -> None:
    pinned, hidden, gone, stays = (world.store(name, [7]) for name in ("pinned", "hidden", "gone", "stays"))
    flagged(world, pinned, flags.PINNED)
    with world.catalog.transaction():
        world.catalog.quarantine.hide(1, hidden, "bad", 1)
    world.unlink("gone", keep_for=7)
    with world.catalog.transaction():
        world.catalog.namespace.insert_node(world.entry("fifo"), world.node(0o010644))
    assert order(world) == [stays]
    assert world.catalog.retention.pinned_use(1) == (7, 1)
    assert gone not in order(world)
    with world.catalog.transaction():
        world.catalog.inodes.release_unlinked(7, 1, gone)


def test_the_order_is_read_from_an_index_not_sorted(world: World) -> None:
    for sql, parameters in (
        (retention_rows._OLDEST, (1, 5)),
        (retention_rows._EXPIRED, (1, 5)),
    ):
        plan = " ".join(str(row[3]) for row in world.catalog.database.all(f"EXPLAIN QUERY PLAN {sql}", parameters))
        assert "USING INDEX inode_" in plan
        assert "TEMP B-TREE" not in plan


def test_expired_objects_are_found_pinned_or_not(world: World) -> None:
    early, late, pinned = (world.store(name, [1]) for name in ("early", "late", "pinned"))
    for ino, second in ((early, 10), (late, 20), (pinned, 15)):
        flagged(world, ino, flags.with_setting(0, retention.TTL, 1, second))
    flagged(world, pinned, flags.PINNED)
    found = world.catalog.retention.expired
    assert found(9, 10) == []
    assert found(15, 10) == [(1, early), (1, pinned)]
    assert found(99, 2) == [(1, early), (1, pinned)]
    assert order(world) == [early, late]


def test_removal_takes_all_names_data_and_charge_and_touches_each_directory_once(world: World) -> None:
    directory = world.mkdir("directory")
    ino = world.store("name", [100, 200])
    with world.catalog.transaction():
        world.catalog.namespace.add_link(world.entry("link", directory), ino, world.now())
    now = world.now() + 500
    with world.catalog.transaction():
        entries = world.catalog.retention.remove(1, ino, now)
        world.catalog.retention.touch(entries, now)
    assert {one.entry for one in entries} == {world.entry("name"), world.entry("link", directory)}
    assert world.lookup("name") is None
    assert world.lookup("link", directory) is None
    assert world.catalog.inodes.find(1, ino) is None
    assert world.catalog.tenants.get(1).used_bytes == 0
    assert world.catalog.tenants.get(1).used_objects == 1
    assert world.catalog.inodes.get(1, directory).mtime_ns == now == world.catalog.inodes.get(1, world.root).mtime_ns
    with pytest.raises(NotFoundError), world.catalog.transaction():
        world.catalog.retention.remove(1, ino, now)


def test_what_is_open_keeps_its_data_until_the_last_has_closed_it(world: World) -> None:
    ino = world.store("name", [100])
    with world.catalog.transaction():
        world.catalog.retention.touch(world.catalog.retention.remove(1, ino, world.now(), [7, 8]), world.now())
    assert world.lookup("name") is None
    assert world.catalog.tenants.get(1).used_bytes == 100
    for attachment, left in ((7, 100), (8, 0)):
        with world.catalog.transaction():
            world.catalog.inodes.release_unlinked(attachment, 1, ino)
        assert world.catalog.tenants.get(1).used_bytes == left


def test_policies_are_kept_checked_and_forgotten(world: World) -> None:
    assert world.catalog.retention.policy(1) == TenantPolicy()
    assert TenantPolicy().high_percent == limits.TENANT_HIGH_PERCENT
    asked = TenantPolicy(5, 80, 60, 0, 0)
    with world.catalog.transaction():
        world.catalog.retention.set_policy(1, asked)
    world.reopen()
    assert world.catalog.retention.policy(1) == asked == TenantPolicy.of([5, 80, 60, 0, 0, 99])
    assert TenantPolicy.of([5]) == TenantPolicy(5)
    for bad in ((-1, 9, 9, 1), (0, 9, 10, 1), (0, 101, 9, 1), (0, 9, 0, 1), (0, 9, 9, 2), (0, 9, 9, 1, 2)):
        with pytest.raises(InvalidArgumentError), world.catalog.transaction():
            world.catalog.retention.set_policy(1, TenantPolicy(*bad))
    with world.catalog.transaction():
        world.catalog.tenants.begin_delete(1)
    more = True
    while more:
        with world.catalog.transaction():
            more = world.catalog.purge.purge_some(1)
    assert world.catalog.retention.policy(1) == TenantPolicy()

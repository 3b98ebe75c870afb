"""Tenants: rows, keys, quotas, deletion."""

from __future__ import annotations

import pytest

from kvfs import limits
from kvfs.errors import InternalError, InvalidArgumentError, NotFoundError, QuotaExceededError
from kvfsd.catalog.check import check
from kvfsd.catalog.rows import KeySlotRow
from kvfsd.catalog.schema import META_SYSTEM_VERSION, TenantState
from tests.kvfsd.catalog.world import FULL, World


def version(world: World) -> int:
    value: int = world.catalog.database.meta(META_SYSTEM_VERSION)
    return value


def test_every_change_of_tenants_or_keys_is_counted(world: World) -> None:
    tenants = world.catalog.tenants
    world.add_tenant(2)
    for change in (
        lambda: tenants.set_quota(2, 5, 6),
        lambda: tenants.rename(2, b"other"),
        lambda: tenants.put_slots([KeySlotRow(2, 2, b"new")]),
        lambda: tenants.drop_slot(2, 1),
        lambda: tenants.begin_delete(2),
    ):
        before = version(world)
        with world.catalog.transaction():
            change()
        assert version(world) > before
    row = tenants.get(2)
    assert (row.quota_bytes, row.quota_objects, row.sealed_name, row.state) == (5, 6, b"other", TenantState.DELETING)
    before = version(world)
    world.store("a")
    assert version(world) == before


def test_slots_are_listed_by_epoch_and_replaced(world: World) -> None:
    tenants = world.catalog.tenants
    with world.catalog.transaction():
        tenants.put_slots([KeySlotRow(1, 1, b"wrapped anew")])
    assert tenants.slots(1) == [KeySlotRow(1, 0, b"n"), KeySlotRow(1, 1, b"wrapped anew")]
    with world.catalog.transaction():
        tenants.begin_delete(1)
    assert tenants.slots(1) == []


def test_tenants_that_are_not_there(world: World) -> None:
    for call in (
        lambda: world.catalog.tenants.get(5),
        lambda: world.catalog.tenants.set_quota(5, 1, 1),
        lambda: world.catalog.tenants.charge(5, 1, 1),
        lambda: world.catalog.tenants.begin_delete(5),
    ):
        with pytest.raises(NotFoundError), world.catalog.transaction():
            call()


@pytest.mark.parametrize("number", [0, -1, 1 << 32])
def test_tenant_numbers_are_bounded(world: World, number: int) -> None:
    with pytest.raises(InvalidArgumentError):
        world.add_tenant(number)


def test_the_number_of_tenants_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TENANTS_MAX", 1)
    with pytest.raises(InvalidArgumentError):
        world.add_tenant(2)


def test_a_number_is_not_given_again_after_deletion(world: World) -> None:
    numbers = []
    for _ in range(3):
        with world.catalog.transaction():
            numbers.append(world.catalog.tenants.next_number())
    assert len(set(numbers)) == 3


def test_negative_quotas(world: World) -> None:
    for quota in ((-1, 0), (0, -1)):
        with pytest.raises(InvalidArgumentError), world.catalog.transaction():
            world.catalog.tenants.set_quota(1, *quota)


def test_growth_over_a_quota_is_refused_and_shrinking_never(world: World) -> None:
    world.store("a")
    tenants = world.catalog.tenants
    with world.catalog.transaction():
        tenants.set_quota(1, 10, 1)
    for delta in ((1, 0), (0, 1), (1, -1), (-1, 1)):
        with pytest.raises(QuotaExceededError), world.catalog.transaction():
            tenants.charge(1, *delta)
    world.unlink("a")
    with world.catalog.transaction():
        tenants.charge(1, 10, 1)
        with pytest.raises(QuotaExceededError):
            tenants.charge(1, 1, 0)
        tenants.charge(1, -10, -1)


def test_deletion_frees_everything_and_nothing_of_others(world: World) -> None:
    other = world.store("kept")
    root = world.add_tenant(2)
    world.tenant, first_root, world.root = 2, world.root, root
    directory = world.mkdir("d")
    ino = world.store("file")
    with world.catalog.transaction():
        world.catalog.namespace.add_link(world.entry("link", directory), ino, 5)
        world.catalog.xattrs.set(2, ino, (b"n", b"v"), 0, 5)
    world.store("large", [1] * 600)
    world.store("open")
    world.unlink("open", keep_for=7)
    hidden = world.store("put aside")
    with world.catalog.transaction():
        world.catalog.quarantine.unlink_into(world.entry("put aside"), "fault", 5)
    world.stage(5555, [world.block(0)])
    assert world.catalog.inodes.find(2, hidden) is not None
    with world.catalog.transaction():
        world.catalog.tenants.begin_delete(2)
    assert world.catalog.purge.deleting() == [2]
    steps = 0
    more = True
    while more:
        with world.catalog.transaction():
            more = world.catalog.purge.purge_some(2)
        steps += 1
        assert check(world.catalog.database) == []
    assert steps > 3
    with pytest.raises(NotFoundError):
        world.catalog.tenants.get(2)
    for table in ("inode", "dirent", "xattr", "block", "staged_block", "open_unlinked", "quarantine", "outbox"):
        rows = world.catalog.database.all(f"SELECT DISTINCT tenant FROM {table}")
        assert (2,) not in rows, table
    world.tenant, world.root = 1, first_root
    assert world.catalog.inodes.get(1, other).stored_bytes == 2 * FULL
    assert world.catalog.segments.get(0, 0).live_bytes == 2 * (FULL + 4096)


def test_charging_outside_a_transaction_is_a_bug(world: World) -> None:
    with pytest.raises(InternalError):
        world.catalog.tenants.charge(1, 1, 1)

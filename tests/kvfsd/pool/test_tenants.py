"""Tenants of an open pool: names sealed at rest, exact quotas, refusals, and nothing half made."""

from __future__ import annotations

import stat

import pytest

from kvfs import limits
from kvfs.errors import (
    ExistsError,
    InvalidArgumentError,
    KvfsError,
    NotEmptyError,
    NotFoundError,
    QuotaExceededError,
    WrongKeyError,
)
from kvfsd.catalog.rows import TenantRow
from kvfsd.catalog.schema import TenantState
from kvfsd.crypto.kek import RawKeyFile
from kvfsd.pool.pool import Pool
from kvfsd.pool.poolmaking import PoolPlan, create_pool, default_medium
from kvfsd.ports import InlineOffload, Ports, SystemRandomness


class FixedClock:
    def wall_ns(self) -> int:
        return 1234

    def monotonic_ns(self) -> int:
        return 1


PORTS = Ports(offload=InlineOffload(), clock=FixedClock())


@pytest.fixture
async def pool(tmp_path):
    (tmp_path / "keys").mkdir(mode=0o700)
    kek = RawKeyFile.create(tmp_path / "keys" / "kek", SystemRandomness())
    plan = PoolPlan(media=[default_medium(tmp_path / "pool", 32 * limits.MIB)])
    made = await create_pool(tmp_path / "pool", plan, kek, ports=PORTS)
    yield made
    await made.aclose()


async def reopened(pool: Pool) -> Pool:
    await pool.aclose()
    return await Pool.open(pool.directory, ports=PORTS)


async def test_a_tenant_has_keys_and_a_root_of_its_own(pool):
    one = pool.tenants.create("alice", quota_bytes=10, quota_objects=20, uid=1000, gid=100)
    two = pool.tenants.create("bob")
    assert (one.number, one.name, one.quota_bytes, one.quota_objects) == (1, "alice", 10, 20)
    assert (one.used_bytes, one.used_objects, one.created_ns) == (0, 0, 1234)
    root = pool.catalog.inodes.get(one.number, one.root_ino)
    assert (root.mode, root.nlink, root.uid, root.gid) == (stat.S_IFDIR | 0o755, 2, 1000, 100)
    assert one.root_ino != two.root_ino
    sealed = {pool.ring.names(number).seal_name(one.root_ino, b"x") for number in (1, 2)}
    assert len(sealed) == 2
    again = await reopened(pool)
    assert again.tenants.list() == [one, two]
    assert again.ring.current_epoch(one.number) == 1
    assert again.ring.names(1).seal_name(one.root_ino, b"x") in sealed
    await again.aclose()


async def test_names_are_sealed_at_rest(pool):
    pool.tenants.create("marker-of-a-tenant")
    again = await reopened(pool)
    await again.aclose()
    content = b"".join(path.read_bytes() for path in pool.directory.iterdir())
    assert b"SQLite format 3" in content  # the search does find what is there
    assert b"marker-of-a-tenant" not in content


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "a\n", "a\0", "ä", "x" * 65, "a@b", "\udcff", "#1"])
async def test_names_are_of_a_small_alphabet(pool, name):
    for use in (pool.tenants.create, pool.tenants.show, pool.tenants.delete):
        with pytest.raises(InvalidArgumentError, match="tenant name"):
            use(name)


@pytest.mark.parametrize("name", ["a", "x" * 64, "A.b_c-9", "...", "-", "_", ".hidden"])
async def test_any_such_name_works(pool, name):
    assert pool.tenants.create(name).name == name
    assert pool.tenants.show(name).name == name
    pool.tenants.delete(name)


async def test_a_name_is_taken_once_and_free_after_deletion(pool):
    first = pool.tenants.create("alice")
    with pytest.raises(ExistsError, match="alice"):
        pool.tenants.create("alice")
    pool.tenants.delete("alice")
    second = pool.tenants.create("alice")
    assert second.number > first.number
    assert [tenant.number for tenant in pool.tenants.list()] == [second.number]


async def test_unknown_names(pool):
    for use in (pool.tenants.show, pool.tenants.delete, pool.tenants.set):
        with pytest.raises(NotFoundError, match="no tenant alice"):
            use("alice")


async def test_quotas_are_set_one_by_one_and_hold(pool):
    pool.tenants.create("alice", quota_bytes=10)
    assert pool.tenants.set("alice", quota_objects=3) == pool.tenants.show("alice")
    changed = pool.tenants.set("alice", quota_bytes=20)
    assert (changed.quota_bytes, changed.quota_objects) == (20, 3)
    with pool.catalog.transaction():
        pool.catalog.tenants.charge(changed.number, 20, 3)
    for more in ((1, 0), (0, 1)):
        with pytest.raises(QuotaExceededError), pool.catalog.transaction():
            pool.catalog.tenants.charge(changed.number, *more)
    assert pool.tenants.set("alice", quota_bytes=5).used_bytes == 20
    assert pool.tenants.set("alice", quota_bytes=0, quota_objects=0).quota_bytes == 0


@pytest.mark.parametrize(
    "bad", [{"quota_bytes": -1}, {"quota_objects": -1}, {"quota_bytes": 2**63}, {"quota_objects": 2**80}]
)
async def test_quotas_are_bounded(pool, bad):
    with pytest.raises(InvalidArgumentError, match="quota"):
        pool.tenants.create("alice", **bad)
    pool.tenants.create("alice")
    with pytest.raises(InvalidArgumentError, match="quota"):
        pool.tenants.set("alice", **bad)


@pytest.mark.parametrize("bad", [{"uid": -1}, {"gid": 2**32}])
async def test_owners_are_bounded(pool, bad):
    with pytest.raises(InvalidArgumentError, match="out of range"):
        pool.tenants.create("alice", **bad)


async def test_a_tenant_with_objects_is_deleted_only_by_force(pool):
    alice = pool.tenants.create("alice")
    with pool.catalog.transaction():
        pool.catalog.tenants.charge(alice.number, 100, 1)
    with pytest.raises(NotEmptyError, match="1 objects"):
        pool.tenants.delete("alice")
    assert pool.tenants.show("alice").used_objects == 1
    pool.tenants.delete("alice", force=True)
    with pytest.raises(NotFoundError):
        pool.tenants.show("alice")


async def test_deleting_drops_the_keys_from_memory_and_catalog(pool):
    alice = pool.tenants.create("alice")
    pool.tenants.delete("alice")
    with pytest.raises(WrongKeyError):
        pool.ring.names(alice.number)
    assert pool.catalog.tenants.slots(alice.number) == []
    again = await reopened(pool)
    with pytest.raises(WrongKeyError):
        again.ring.current_epoch(alice.number)
    assert again.catalog.tenants.get(alice.number).state == TenantState.DELETING
    await again.aclose()


async def test_a_tenant_that_could_not_be_stored_is_nowhere(pool, monkeypatch):
    def fail(*arguments):
        raise KvfsError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(type(pool.catalog.tenants), "create", fail)
        with pytest.raises(KvfsError, match="disk full"):
            pool.tenants.create("alice")
    assert pool.tenants.list() == []
    with pytest.raises(WrongKeyError):
        pool.ring.current_epoch(1)
    assert pool.tenants.create("alice").name == "alice"


async def test_a_damaged_name_hides_no_tenant(pool):
    alice = pool.tenants.create("alice")
    row: TenantRow = pool.catalog.tenants.get(alice.number)
    with pool.catalog.transaction():
        pool.catalog.tenants.rename(alice.number, row.sealed_name[:-1] + b"?")
    assert [tenant.name for tenant in pool.tenants.list()] == ["#1"]

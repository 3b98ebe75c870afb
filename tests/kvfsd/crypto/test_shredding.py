"""Shred on a real pool, cut off at every step: opened again, or rebuilt from the media without a catalog."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvfs.errors import ConfigError, KvfsError, NotFoundError, PoolBusyError, WrongKeyError
from kvfs_tools.media_records import MediaSource
from kvfs_tools.rebuilding import Wanted, rebuild_pool
from kvfsd.catalog import Catalog
from kvfsd.cli.options import KekOptions
from kvfsd.crypto.keyfile import SlotKeyFile
from kvfsd.crypto.shredding import shred_tenant
from kvfsd.metalog.rebuild import rebuild
from kvfsd.pool.pool import Pool
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.kvfsd.serving import OTHER, TENANT, Host, killed_at_end, make_pool, ports, reopen_pool, serving

STEPS = ("propose", "mark", "append", "flush", "commit", "sync", "settle")


class CutOffError(KvfsError):
    """The process dies here."""


def cut(owner: Any, name: str, *, after: bool, when: Callable[[], bool] = lambda: True) -> None:
    """Let the method `name` of `owner` end the process, before or after its work."""
    real = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        if not when():
            return real(*arguments)
        if after:
            real(*arguments)
        raise CutOffError(name)

    async def wait(*arguments: Any) -> Any:
        if not when():
            return await real(*arguments)
        if after:
            await real(*arguments)
        raise CutOffError(name)

    owner.__dict__[name] = wait if name in ("append", "sync") else call


def cut_at(pool: Pool, service: Service, step: str, *, after: bool) -> None:
    """Have the shred die at `step`."""
    log, rows = service.metadata_log, service.catalog.log_rows
    if step in ("propose", "settle"):
        cut(pool.key_file, step, after=after)
    elif step == "mark":
        cut(service.catalog.database, "set_meta", after=after)
    elif step == "append":
        cut(log._ports.store, "append", after=after)
    elif step == "flush":
        cut_flush(log, after=after)
    elif step == "commit":
        cut(rows, "drop_before", after=after)  # inside the transaction: both are before
    else:
        cut(pool, "sync", after=after, when=lambda: pool.ring.slot_key != FIRST[pool.uuid])


FIRST: dict[bytes, bytes] = {}


def cut_flush(log: Any, *, after: bool) -> None:
    """Die in the flush that follows the records, the second one of the shred."""
    real, count = log._ports.flush, iter(range(10))

    async def flush() -> None:
        if next(count) == 0:
            return await real()
        if after:
            await real()
        raise CutOffError("flush")

    object.__setattr__(log._ports, "flush", flush)


async def shred_cut_off(tmp_path: Path, step: str, *, after: bool) -> tuple[int, bytes]:
    """A pool with a file in each of two tenants, killed in a shred of the first -> its number, old slot key."""
    pool = await make_pool(tmp_path)
    number = pool.tenants.show(TENANT).number
    FIRST[pool.uuid] = pool.ring.slot_key
    async with killed_at_end(pool) as service:
        for tenant in (TENANT, OTHER):
            await Host(InProcessQueuePair(service.attach(tenant))).store(b"file", tenant.encode())
        await service.metadata_log.drain()
        await pool.sync()
        cut_at(pool, service, step, after=after)
        with pytest.raises(CutOffError):
            await shred_tenant(pool, service.metadata_log, number)
    return number, FIRST[pool.uuid]


async def contents(pool: Pool) -> dict[str, bytes]:
    """What each tenant's file holds."""
    found = {}
    async with serving(pool) as service:
        for tenant in pool.tenants.list():
            pair = InProcessQueuePair(service.attach(tenant.name))
            found[tenant.name] = await Host(pair).load(b"file")
            await pair.aclose()
    return found


def key_file_of(tmp_path: Path, pool: bytes) -> SlotKeyFile:
    return SlotKeyFile(tmp_path / "keys", pool, ports().randomness)


async def rebuild_here(tmp_path: Path) -> None:
    """The catalog is lost; a new one is made from media and key file, as `kvfsctl rebuild` does."""
    for path in (tmp_path / "pool").glob("catalog.db*"):
        path.unlink()
    await rebuild_pool(Wanted(directory=tmp_path / "pool", kek=KekOptions(kek=str(tmp_path / "kek"))))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("lost", ["nothing", "catalog at once", "catalog after the next opening"])
async def test_a_shred_that_is_cut_off_is_before_or_after(tmp_path: Path, step: str, after: bool, lost: str) -> None:
    await shred_cut_off(tmp_path, step, after=after)
    if lost == "catalog at once":
        await rebuild_here(tmp_path)
    found = await contents(await reopen_pool(tmp_path))
    if lost == "catalog after the next opening":
        await rebuild_here(tmp_path)
        assert await contents(await reopen_pool(tmp_path)) == found
    done = step in ("sync", "settle") or (lost == "catalog at once" and records_written(step, after=after))
    assert found == ({OTHER: OTHER.encode()} if done else {TENANT: TENANT.encode(), OTHER: OTHER.encode()})


def records_written(step: str, *, after: bool) -> bool:
    """Whether the new snapshot was on the medium when the shred was cut off: without a catalog, that is the shred."""
    return step in ("flush", "commit") or (step == "append" and after)


async def shredded(tmp_path: Path) -> tuple[Pool, int, bytes]:
    """An open pool after a shred -> the pool, the tenant's number, the old slot key."""
    pool = await make_pool(tmp_path)
    number, old = pool.tenants.show(TENANT).number, pool.ring.slot_key
    async with Service.open(pool) as service:
        for tenant in (TENANT, OTHER):
            pair = InProcessQueuePair(service.attach(tenant))
            await Host(pair).store(b"file", tenant.encode())
            await pair.aclose()
        await service.metadata_log.drain()
        await shred_tenant(pool, service.metadata_log, number)
    return pool, number, old


async def snapshot_tenants(pool: Pool, slot_keys: tuple[bytes, ...], directory: Path) -> set[str]:
    """The tenants that somebody with these slot keys rebuilds from the media, with all that is on them."""
    catalog = Catalog.create(directory / "stolen.db", pool.uuid)
    with contextlib.closing(catalog):
        source = MediaSource(pool.uuid, pool.media, slot_keys, pool.ports)
        await rebuild(catalog, source, source.unlock)
        return {
            source._ring.names(0).open_name(0, row.sealed_name).decode()
            for row in catalog.tenants.all()
            if source._ring.current_epoch(row.tenant)
        }


async def test_what_an_old_snapshot_opens_with(tmp_path: Path) -> None:
    """docs/THREATS.md: the old slot key opens what lies on the media still, the new one only what stays."""
    pool, number, old = await shredded(tmp_path)
    new = pool.ring.slot_key
    assert key_file_of(tmp_path, pool.uuid).paths[0].exists()
    assert pool.key_file._open_keys().candidates == (new,)
    (tmp_path / "thief").mkdir()
    assert await snapshot_tenants(pool, (old,), tmp_path / "thief") == {TENANT, OTHER}
    (tmp_path / "owner").mkdir()
    assert await snapshot_tenants(pool, (new,), tmp_path / "owner") == {OTHER}
    with pytest.raises(WrongKeyError):
        pool.ring.current_epoch(number)
    (tmp_path / "stranger").mkdir()
    with pytest.raises(NotFoundError, match="no system record"):
        await snapshot_tenants(pool, (bytes(32),), tmp_path / "stranger")
    await pool.aclose()


async def test_nothing_is_shredded_if_a_tenant_is_made_meanwhile(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path)
    old = pool.ring.slot_key
    async with serving(pool) as service:
        append = service.store.append_each

        async def make_one(*arguments: Any) -> Any:
            if pool.tenants.list()[-1].name != "late":
                pool.tenants.create("late")
            return await append(*arguments)

        service.store.append_each = make_one  # type: ignore[method-assign]
        with pytest.raises(PoolBusyError, match="during the shred"):
            await shred_tenant(pool, service.metadata_log, pool.tenants.show(TENANT).number)
        await service.metadata_log.drain()
        assert pool.ring.slot_key == old
    pool = await reopen_pool(tmp_path)
    assert {tenant.name for tenant in pool.tenants.list()} == {TENANT, OTHER, "late"}
    await pool.aclose()
    await rebuild_here(tmp_path)
    pool = await reopen_pool(tmp_path)
    assert {tenant.name for tenant in pool.tenants.list()} == {TENANT, OTHER, "late"}
    await pool.aclose()


async def test_a_key_file_that_cannot_be_settled_leaves_a_pool_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await make_pool(tmp_path)

    def refuse(slot_key: bytes) -> None:
        raise ConfigError("disk full")

    monkeypatch.setattr(pool.key_file, "settle", refuse)
    async with serving(pool) as service:
        with pytest.raises(ConfigError, match="disk full"):
            await shred_tenant(pool, service.metadata_log, pool.tenants.show(TENANT).number)
        pool.tenants.create("late")
    pool = await reopen_pool(tmp_path)
    assert {tenant.name for tenant in pool.tenants.list()} == {OTHER, "late"}
    await pool.aclose()

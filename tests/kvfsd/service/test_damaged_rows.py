"""Damaged catalog rows behind a service: a miss or an error, counted, told to the mounts, and never wrong bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvfs import limits
from kvfs.commands import ObjectChanged, OpenObject, ReadDirectory
from kvfs.errors import BadRecordError, FailsafeError, NotFoundError
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.kvfsd.serving import OTHER, TENANT, Host, kill, make_pool, reopen_pool, serving

BLOCK = limits.BLOCK_BYTES


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(await make_pool(tmp_path)) as service:
        yield service


def host_of(service: Service, tenant: str = TENANT) -> Host:
    return Host(InProcessQueuePair(service.attach(tenant)))


def strike(service: Service, sql: str, *values: int) -> None:
    assert service.catalog.database.run(sql, values)


async def test_a_damaged_object_is_a_miss_counted_once_and_told_to_all_mounts(service: Service) -> None:
    host, sibling = host_of(service), host_of(service)
    attributes = await host.store(b"file", b"data")
    sibling.pair.take_events()
    strike(service, "UPDATE inode SET uid=uid+1 WHERE ino=?", attributes.ino)
    for _ in range(2):
        with pytest.raises(NotFoundError):
            await host.lookup(b"file")
        with pytest.raises(BadRecordError, match="fails its check"):
            await host.submit(OpenObject(attributes.ino))
        with pytest.raises(BadRecordError):
            await host.read_block(attributes.ino)
    assert service.metrics.counters.damaged_rows == 1
    assert sibling.pair.take_events() == [ObjectChanged(attributes.ino)]
    await host.store(b"file", b"anew")
    assert await host.load(b"file") == b"anew"


@pytest.mark.parametrize(
    "how", ["DELETE FROM block WHERE ino=? AND block=1", "UPDATE block SET block=5 WHERE ino=? AND block=1"]
)
async def test_a_lost_block_of_a_small_file_is_told_when_it_is_opened(service: Service, how: str) -> None:
    host = host_of(service)
    attributes = await host.store(b"file", bytes(2 * BLOCK))
    strike(service, how, attributes.ino)
    with pytest.raises(BadRecordError, match="blocks of object"):
        await host.submit(OpenObject(attributes.ino))
    with pytest.raises(NotFoundError):
        await host.lookup(b"file")
    assert service.metrics.counters.quarantined_objects == 1


async def test_a_lost_block_never_reads_as_a_hole(service: Service) -> None:
    host = host_of(service)
    attributes = await host.store(b"file", b"x" * 2 * BLOCK)
    await host.submit(OpenObject(attributes.ino))
    strike(service, "DELETE FROM block WHERE ino=? AND block=1", attributes.ino)
    assert await host.read_block(attributes.ino, 0) == b"x" * BLOCK
    with pytest.raises(BadRecordError, match="blocks of object"):
        await host.read_block(attributes.ino, 1)
    with pytest.raises(NotFoundError):
        await host.lookup(b"file")


async def test_a_block_whose_row_is_nonsense_hides_its_file(service: Service) -> None:
    host = host_of(service)
    attributes = await host.store(b"file", b"x")
    strike(service, "UPDATE block SET length=-1 WHERE ino=?", attributes.ino)
    with pytest.raises(BadRecordError):
        await host.read_block(attributes.ino, 0)
    with pytest.raises(NotFoundError):
        await host.lookup(b"file")
    await host.store(b"file", b"anew")
    assert await host.load(b"file") == b"anew"


async def test_a_directory_that_is_opened_or_read_as_a_file_stays(service: Service) -> None:
    host = host_of(service)
    await host.store(b"file", b"x")
    await host.submit(OpenObject(1))
    await host.read_block(service.pool.tenants.show(TENANT).root_ino)
    assert await host.load(b"file") == b"x"


async def test_lost_names_are_told_when_their_directory_is_listed(service: Service) -> None:
    host = host_of(service)
    kept, lost = await host.store(b"kept", b"x"), await host.store(b"lost", b"x")
    strike(service, "DELETE FROM dirent WHERE ino=?", lost.ino)
    listing = (await host.submit(ReadDirectory(1, 0, 10))).result
    assert [entry.attributes.ino for entry in listing.entries] == [kept.ino]
    assert service.metrics.counters.damaged_rows == 1


async def test_a_damaged_root_is_an_error_and_the_other_tenant_goes_on(service: Service) -> None:
    host, other = host_of(service), host_of(service, OTHER)
    strike(service, "UPDATE inode SET mode=mode+1 WHERE ino=?", service.pool.tenants.show(TENANT).root_ino)
    with pytest.raises(BadRecordError):
        await host.store(b"file", b"x")
    await other.store(b"file", b"x")
    assert await other.load(b"file") == b"x"


async def test_a_pool_with_a_damaged_tenant_does_not_open_and_says_what_to_do(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path)
    pool.catalog.database.run("UPDATE tenant SET quota_bytes=1")
    kill(pool)
    with pytest.raises(FailsafeError, match=r"row of tenant 1 fails its check; kvfsctl rebuild --force"):
        await reopen_pool(tmp_path)

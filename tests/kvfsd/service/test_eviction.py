"""Eviction in a service on a real pool: who goes, who stays, quotas exact, open objects readable, nothing silent."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path

import pytest
import trio

from kvfs import limits
from kvfs.commands import (
    CloseObject,
    EntryGone,
    Link,
    MakeNode,
    OpenObject,
    StatFilesystem,
    Unlink,
)
from kvfs.errors import NotFoundError, PoolFullError, QuotaExceededError, TooManyOpenError
from kvfsd.catalog.check import check
from kvfsd.eviction.policy import Watermarks
from kvfsd.pool.tenants import TenantChange
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service, ServiceOptions
from tests.kvfsd.serving import (
    OTHER,
    TENANT,
    TEST_OPTIONS,
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
    host = Host(InProcessQueuePair(service.attach(name)))
    host.now_ns = service.pool.ports.clock.wall_ns
    return host


async def store(host: Host, *names: str, size: int = 100) -> None:
    for name in names:
        await host.store(name.encode(), bytes(size))


async def names(host: Host, *asked: str) -> str:
    """Those of the names that are there."""
    there = []
    for name in asked:
        try:
            await host.lookup(name.encode())
        except NotFoundError:
            continue
        there.append(name)
    return "".join(there)


async def use(host: Host, *used: str) -> None:
    for name in used:
        await host.load(name.encode())


def used_bytes(service: Service, name: str = TENANT) -> int:
    return service.pool.tenants.show(name).used_bytes


# --- at a quota ----------------------------------------------------------------------------------------


async def test_at_its_quota_a_tenants_oldest_objects_make_room(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=300))) as service:
        host = host_of(service)
        await store(host, "a", "b", "c")
        await use(host, "a")
        await store(host, "d")
        assert await names(host, *"abcd") == "acd"
        await use(host, "c", "d", "a")
        await store(host, "e", "f")
        assert await names(host, *"abcdef") == "aef"
        assert used_bytes(service) == 300
        counters = service.metrics.counters
        assert (counters.evicted_objects, counters.evicted_bytes) == (3, 300)


async def test_only_as_much_goes_as_is_needed(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=1000))) as service:
        host = host_of(service)
        await store(host, *"abcdefghij")
        await store(host, "k", size=250)
        assert await names(host, *"abcdefghijk") == "defghijk"
        assert used_bytes(service) == 950


async def test_at_its_quota_of_objects_files_and_directories_find_room(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_objects=3))) as service:
        host = host_of(service)
        await store(host, *"abc", size=0)
        await store(host, "d", size=0)
        assert await names(host, *"abcd") == "bcd"
        await host.submit(MakeNode(1, b"dir", 0o040755, 0, 0, b""))
        assert await names(host, *"bcd") == "cd"
        assert service.pool.tenants.show(TENANT).used_objects == 3
        await host.submit(MakeNode(1, b"dir2", 0o040755, 0, 0, b""))
        await host.submit(MakeNode(1, b"dir3", 0o040755, 0, 0, b""))
        with pytest.raises(QuotaExceededError):
            await host.submit(MakeNode(1, b"dir4", 0o040755, 0, 0, b""))
        with pytest.raises(QuotaExceededError):
            await host.allocate()


async def test_a_file_larger_than_the_quota_is_refused(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=300))) as service:
        host = host_of(service)
        await store(host, "a")
        with pytest.raises(QuotaExceededError):
            await store(host, "large", size=301)
        assert service.metrics.counters.quota_refusals >= 1


async def test_with_eviction_off_a_quota_refuses_at_once(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=300, eviction=False))) as service:
        host = host_of(service)
        await store(host, *"abc")
        with pytest.raises(QuotaExceededError):
            await store(host, "d")
        assert await names(host, *"abc") == "abc"
        service.pool.tenants.change(TENANT, TenantChange(eviction=True))
        await store(host, "d")
        assert await names(host, *"abcd") == "bcd"


async def test_all_names_of_an_object_go_together_and_every_mount_is_told(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=100))) as service:
        host, other = host_of(service), host_of(service)
        directory = (await host.submit(MakeNode(1, b"dir", 0o040755, 0, 0, b""))).result.attributes.ino
        ino = (await host.store(b"name", bytes(100))).ino
        await host.submit(Link(ino, directory, b"link"))
        host.pair.take_events(), other.pair.take_events()
        await store(host, "next")
        with pytest.raises(NotFoundError):
            await host.lookup(b"link", directory)
        expected = {EntryGone(1, b"name"), EntryGone(directory, b"link")}
        assert set(host.pair.take_events()) == expected
        assert expected <= set(other.pair.take_events())


async def test_eviction_is_told_in_the_log_once_in_a_while(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = SteppingClock()
    with caplog.at_level(logging.INFO, "kvfsd.eviction"):
        async with serving(await make_pool(tmp_path, Layout(quota_bytes=100), the_ports=ports(clock))) as service:
            host = host_of(service)
            await store(host, *"abcd")
            assert [record.getMessage() for record in caplog.records] == [
                "tenant 1: 1 objects, 100 bytes gone: its quota"
            ]
            clock.advance_ms(11_000)
            await store(host, "e")
            assert caplog.records[-1].getMessage() == "tenant 1: 3 objects, 300 bytes gone: its quota"


async def test_other_tenants_are_not_touched_by_a_quota(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=100))) as service:
        host, other = host_of(service), host_of(service, OTHER)
        await store(other, *"ab")
        await store(host, *"abc")
        assert await names(other, *"ab") == "ab"
        assert await names(host, *"abc") == "c"


# --- open objects --------------------------------------------------------------------------------------


async def test_what_a_mount_has_open_is_not_evicted_until_it_is_closed(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=300))) as service:
        host, other = host_of(service), host_of(service)
        await store(host, *"abc")
        ino = (await other.lookup(b"a")).ino
        await other.submit(OpenObject(ino, serial=1))
        await other.submit(OpenObject(ino, serial=2, reading=False))
        await store(host, *"de")
        assert await names(host, *"abcde") == "ade"
        assert await other.read_block(ino) == bytes(100)
        await other.submit(CloseObject(ino, 1))
        await store(host, *"fg")
        assert await names(host, *"adefg") == "afg"
        await other.submit(CloseObject(ino, 2))
        await other.submit(CloseObject(ino, 2))
        await store(host, *"hij")
        assert await names(host, *"afghij") == "hij"


async def test_an_object_that_is_being_rewritten_stays(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=300))) as service:
        host = host_of(service)
        await store(host, *"ab")
        ino = (await host.lookup(b"a")).ino
        await host.write_block(ino, 0, bytes(50))
        await store(host, "c", size=150)
        assert await names(host, *"abc") == "ac"
        await host.commit(ino, 50)
        assert used_bytes(service) == 200


async def test_with_everything_open_there_is_no_room(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=200))) as service:
        host = host_of(service)
        await store(host, *"ab")
        for name in "ab":
            await host.submit(OpenObject((await host.lookup(name.encode())).ino, serial=1))
        with pytest.raises(QuotaExceededError):
            await store(host, "c")
        await host.pair.aclose()
        await store(host_of(service), "c")


async def test_opens_are_bounded_and_end_with_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPEN_FILES_MAX", 3)
    async with serving(await make_pool(tmp_path)) as service:
        host = host_of(service)
        await store(host, "a")
        ino = (await host.lookup(b"a")).ino
        for serial in (1, 2, 3, 3, 1):
            await host.submit(OpenObject(ino, serial=serial))
        with pytest.raises(TooManyOpenError):
            await host.submit(OpenObject(ino, serial=4))
        await host.submit(CloseObject(ino, 2))
        await host.submit(OpenObject(ino, serial=4))
        await host.submit(CloseObject(999, 1))


# --- exact after a kill --------------------------------------------------------------------------------


async def test_the_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    the_ports = ports()
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=300), the_ports=the_ports)) as service:
        host = host_of(service)
        await store(host, *"abc")
        await use(host, "b", "a")
    async with serving(await reopen_pool(tmp_path, the_ports=the_ports)) as service:
        host = host_of(service)
        await store(host, *"de")
        assert await names(host, *"abcde") == "ade"


async def test_uses_that_are_not_written_yet_count_among_many_objects(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_objects=100))) as service:
        host = host_of(service)
        every = [f"{number:02}" for number in range(100)]
        await store(host, *every, size=1)
        await use(host, *every[:70])
        assert len(service.accesses) == 70
        await store(host, "x", size=1)
        assert await names(host, "00", "69", "70", "71") == "006971"
        await use(host, *every[71:])
        await store(host, "y", size=1)
        assert await names(host, "00", "01", "71") == "0171"


async def test_random_work_at_a_quota_with_kills_stays_exact(tmp_path: Path) -> None:
    dice = random.Random(20261123)
    pool = await make_pool(tmp_path, Layout(quota_bytes=50_000, quota_objects=12))
    written: dict[bytes, bytes] = {}
    for _ in range(5):
        async with killed_at_end(pool) as service:
            host = host_of(service)
            for _ in range(60):
                name = b"f%d" % dice.randrange(30)
                data = dice.randbytes(dice.choice([0, 1, 4096, 9_000]))
                await host.store(name, data)
                written[name] = data
                row = service.catalog.tenants.get(1)
                assert row.used_bytes <= 50_000
                assert row.used_objects <= 12
            await host.write_block(await host.allocate(), 0, b"never committed")
        pool = await reopen_pool(tmp_path)
        assert not check(pool.catalog.database)
    async with serving(pool) as service:
        host = host_of(service)
        there = 0
        for name, data in written.items():
            try:
                assert await host.load(name) == data
                there += 1
            except NotFoundError:
                continue
        assert service.pool.tenants.show(TENANT).used_objects == there > 3


async def test_what_was_evicted_stays_gone_in_a_rebuilt_pool(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path, Layout(quota_bytes=200))
    async with serving(pool) as service:
        host = host_of(service)
        await store(host, *"abc")
        await service.metadata_log.drain()
        dropped = service.catalog.database.one("SELECT count(*) FROM outbox")
        assert dropped == (0,)
        await store(host, "d")
        changes = service.catalog.database.all("SELECT blob FROM outbox")
        assert any(b"\x92\x05" in blob or b"\x93\x05" in blob for (blob,) in changes), "a tombstone is queued"


# --- a full pool ---------------------------------------------------------------------------------------


async def test_a_full_pool_takes_from_whoever_is_furthest_above_its_minimum(tmp_path: Path) -> None:
    options = ServiceOptions(raise_internal_errors=True, medium_deadline_ms=200, pool_watermarks=Watermarks(100, 100))
    async with serving(await make_pool(tmp_path), options) as service:
        service.pool.tenants.change(TENANT, TenantChange(min_bytes=8 * MIB))
        host, other = host_of(service), host_of(service, OTHER)
        data = os.urandom(MIB)
        for number in range(10):
            await host.store(b"%d" % number, data)
        for number in range(60):
            await other.store(b"%d" % number, data)
        assert used_bytes(service) >= 8 * MIB
        assert await other.load(b"59") == data
        assert used_bytes(service, OTHER) > 10 * MIB
        assert service.metrics.counters.evicted_objects >= 60 + 10 - 45
        for number in range(60, 75):
            await host.store(b"%d" % number, data)
            await host.load(b"%d" % number)
        assert used_bytes(service) > 15 * MIB


async def test_no_one_is_brought_below_its_minimum_and_then_the_pool_is_full(tmp_path: Path) -> None:
    options = ServiceOptions(raise_internal_errors=True, medium_deadline_ms=200, pool_watermarks=Watermarks(100, 100))
    async with serving(await make_pool(tmp_path), options) as service:
        service.pool.tenants.change(TENANT, TenantChange(min_bytes=60 * MIB))
        service.pool.tenants.change(OTHER, TenantChange(eviction=False))
        host, other = host_of(service), host_of(service, OTHER)
        data = os.urandom(MIB)
        for number in range(20):
            await host.store(b"%d" % number, data)

        async def fill() -> None:
            for number in range(60):
                await other.store(b"%d" % number, data)

        with pytest.raises(PoolFullError):
            await fill()
        for number in range(20):
            assert await host.load(b"%d" % number) == data
        assert service.metrics.counters.evicted_objects == 0
        await host.store(b"own", data)
        assert await host.load(b"own") == data, "below its minimum it makes room of its own"


# --- ahead of need -------------------------------------------------------------------------------------


async def test_room_is_made_ahead_of_need(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    layout = Layout(quota_bytes=10_000, quota_objects=1000, watermarks=(90, 50))
    async with serving(await make_pool(tmp_path, layout)) as service:
        host = host_of(service)
        for number in range(90):
            await host.store(b"%d" % number, bytes(100))
        await trio.sleep(1)
        assert service.pool.tenants.show(TENANT).used_objects == 90
        await host.store(b"90", bytes(100))
        await trio.sleep(1)
        assert used_bytes(service) == 5_000
        assert await names(host, "40", "41", "90") == "4190"


async def test_a_pool_is_kept_below_its_watermark(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    options = ServiceOptions(raise_internal_errors=True, pool_watermarks=Watermarks(50, 25))
    async with serving(await make_pool(tmp_path), options) as service:
        service.pool.tenants.change(OTHER, TenantChange(min_bytes=20 * MIB))
        host, other = host_of(service), host_of(service, OTHER)
        for number in range(12):
            await host.store(b"%d" % number, bytes(MIB))
            await other.store(b"%d" % number, bytes(MIB))
        await trio.sleep(2)
        usage = (await host.submit(StatFilesystem())).result
        assert usage.pool_bytes - usage.pool_free_bytes <= usage.pool_bytes * 50 // 100
        assert used_bytes(service, OTHER) == 12 * MIB, "it is below its minimum"
        assert used_bytes(service) < 8 * MIB


async def test_unlinked_and_open_objects_do_not_confuse_it(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=200))) as service:
        host = host_of(service)
        await store(host, *"ab")
        await host.submit(Unlink(1, b"a", True))
        with pytest.raises(QuotaExceededError):
            await store(host, "c", size=150)
        await store(host, "c")
        assert await names(host, *"abc") == "c"
        assert TEST_OPTIONS.pool_watermarks.high_percent == limits.POOL_HIGH_PERCENT

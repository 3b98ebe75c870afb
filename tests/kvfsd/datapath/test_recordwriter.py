"""Media that are full, fail or hang: records go elsewhere if that is as safe, and else the write says why not."""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from kvfs import limits
from kvfs.commands import Unlink
from kvfs.errors import MediumUnavailableError, PoolFullError
from kvfsd.crypto.kek import RawKeyFile
from kvfsd.datapath.recordwriter import AWAY_MS
from kvfsd.media.faulty import Fault, FaultKind, Operation
from kvfsd.pool.poolmaking import PoolPlan, create_pool
from kvfsd.pool.poolmedia import MediumSpec
from kvfsd.pool.tenants import TenantChange
from kvfsd.ports import InlineOffload, Ports, SystemRandomness
from tests.kvfsd.path_bench import Bench, FaultyMedia
from tests.kvfsd.serving import TENANT, Host, SteppingClock, serving

MIB = limits.MIB
FAILING = Fault(FaultKind.ERROR, Operation.WRITE, probability=1.0)
HANGING = Fault(FaultKind.DELAY, Operation.WRITE, probability=1.0, delay_ms=10**9)
DEADLINE_S = 0.2
"""`medium_deadline_ms` of the tests' services."""


class Repeatable:
    """The same pool and media each time, so that the same blocks prefer the same media."""

    def __init__(self) -> None:
        self._random = random.Random(1)

    def token(self, length_bytes: int) -> bytes:
        return self._random.randbytes(length_bytes)


@contextlib.asynccontextmanager
async def bench_of(
    tmp_path: Path, sizes: list[int], *, replicas: int = 1, domains: tuple[str, ...] = ()
) -> AsyncIterator[Bench]:
    """A service on faulty media of these sizes in MiB, all of the same weight."""
    driver = FaultyMedia()
    named = domains or ("",) * len(sizes)
    specs = [
        MediumSpec(path=tmp_path / f"m{n}", size_bytes=size * MIB, weight=1, failure_domain=named[n])
        for n, size in enumerate(sizes)
    ]
    plan = PoolPlan(media=specs, replicas=replicas, segment_bytes=4 * MIB, key_directory=tmp_path / "keys")
    source = RawKeyFile.create(tmp_path / "kek", SystemRandomness())
    the_ports = Ports(SteppingClock(), Repeatable(), InlineOffload())
    pool = await create_pool(tmp_path / "pool", plan, source, ports=the_ports, driver=driver)
    pool.tenants.create(TENANT)
    pool.tenants.change(TENANT, TenantChange(high_percent=100, low_percent=100, eviction=False))
    async with serving(pool) as service:
        try:
            yield Bench(service, service.attach(TENANT), driver.opened)
        finally:
            for medium in driver.opened:
                medium.set_faults(())


async def store(bench: Bench, count: int, size: int = 1000, *, first: int = 0) -> Counter[int]:
    """New files of one block each -> how many copies lie on each medium."""
    places: Counter[int] = Counter()
    for number in range(first, first + count):
        attributes = await bench.host.store(b"%d" % number, b"%d" % number * (size // len(b"%d" % number)))
        row = bench.service.catalog.blocks.locate(bench.session.tenant, attributes.ino, 0)
        assert row is not None
        places.update(place.medium for place in row.locations)
    return places


async def all_read(bench: Bench, count: int) -> bool:
    for number in range(count):
        data = await bench.host.load(b"%d" % number)
        if set(data.split(b"%d" % number)) != {b""}:
            return False
    return True


# --- full ----------------------------------------------------------------------------------------------


async def fill(host: Host, data: bytes) -> int:
    """Store whole blocks until there is no room -> how many."""
    for number in range(1000):
        try:
            await host.store(b"%d" % number, data)
        except PoolFullError:
            return number
    raise AssertionError("the pool never gets full")


async def test_a_full_medium_is_passed_over_until_all_are_full(tmp_path: Path) -> None:
    async with bench_of(tmp_path, [32, 96, 64]) as bench:
        stored = await fill(bench.host, os.urandom(MIB))
        spaces = bench.service.store.spaces
        assert bench.service.store.without_room == set(spaces)
        want = sum(3 * (space.superblock.segment_count - 2) for space in spaces.values())
        kept = 3 * (len(spaces) + 2)  # a segment of system records on each medium, one of each tenant's log
        assert want - kept <= stored <= want
        assert bench.service.metrics.counters.placed_elsewhere > 0
        with pytest.raises(PoolFullError):
            await bench.host.store(b"more", os.urandom(MIB))
        assert bench.holds_nothing()


async def test_a_block_is_rewritten_where_it_was_while_there_is_room(tmp_path: Path) -> None:
    async with bench_of(tmp_path, [32, 64]) as bench:
        first = await bench.host.store(b"file", b"1")
        blocks, tenant = bench.service.catalog.blocks, bench.session.tenant
        for number in range(5):
            await bench.host.write_block(first.ino, 0, b"%d" % number)
            staged = blocks.locate_staged(bench.session.attachment, tenant, first.ino, 0)
            committed = blocks.locate(tenant, first.ino, 0)
            assert staged is not None
            assert committed is not None
            assert staged.locations[0].medium == committed.locations[0].medium
            await bench.host.commit(first.ino, 1)
        assert bench.service.metrics.counters.placed_elsewhere == 0


async def test_a_medium_that_gets_room_again_is_used_again(tmp_path: Path) -> None:
    async with bench_of(tmp_path, [32, 256]) as bench:
        data = os.urandom(MIB)
        number = 0
        while 0 not in bench.service.store.without_room:
            await bench.host.store(b"%d" % number, data)
            number += 1
        await bench.host.store(b"more", data)
        for gone in range(number):
            await bench.host.submit(Unlink(1, b"%d" % gone, False))
        bench.service.store.close_streams(bench.session.tenant)
        while 0 in bench.service.store.without_room:
            await bench.service.collector.collect()
        places = await store(bench, 40, first=1000)
        assert places[0] > 5


# --- failing -------------------------------------------------------------------------------------------


async def test_a_medium_that_fails_a_write_is_left_out_for_a_while(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench_of(tmp_path, [64, 64]) as bench:
        counters = bench.service.metrics.counters
        assert set(await store(bench, 20)) == {0, 1}
        bench.media[0].set_faults([FAILING])
        started = trio.current_time()
        assert set(await store(bench, 20, first=20)) == {1}
        assert trio.current_time() == started, "nobody waits for it"
        assert len(bench.media[0].strikes) == 1, "one write in AWAY_MS finds out"
        assert counters.placed_elsewhere > 5
        assert counters.medium_retries == 0
        said = [record for record in caplog.records if "medium 0 takes no records" in record.getMessage()]
        assert len(said) == 1
        bench.media[0].set_faults(())
        assert set(await store(bench, 20, first=40)) == {1}
        await trio.sleep(AWAY_MS / 1000)
        assert set(await store(bench, 20, first=60)) == {0, 1}
        assert await all_read(bench, 80)
        assert bench.holds_nothing()


async def test_when_every_medium_fails_the_write_waits_and_says_so(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench_of(tmp_path, [64, 64]) as bench:
        for medium in bench.media:
            medium.set_faults([FAILING])
        started = trio.current_time()
        with pytest.raises(MediumUnavailableError, match=r"tenant 1, object \d+, block 0 gave up after 200 ms"):
            await store(bench, 1)
        assert DEADLINE_S <= trio.current_time() - started <= 3 * DEADLINE_S
        assert bench.service.metrics.counters.medium_retries > 0
        assert bench.holds_nothing()


async def test_a_medium_whose_file_system_is_full_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench_of(tmp_path, [64, 64]) as bench:

        async def full(offset: int, data: memoryview) -> None:
            raise PoolFullError("medium m0: write: No space left on device")

        monkeypatch.setattr(bench.media[0], "write", full)
        assert set(await store(bench, 20)) == {1}
        monkeypatch.undo()


# --- hanging -------------------------------------------------------------------------------------------


async def test_a_medium_that_hangs_costs_one_write_half_the_deadline(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench_of(tmp_path, [64, 64]) as bench:
        await store(bench, 20)  # segments are open
        bench.media[0].set_faults([HANGING])
        started = trio.current_time()
        assert set(await store(bench, 20, first=20)) == {1}
        assert trio.current_time() - started == pytest.approx(DEADLINE_S / 2)
        assert bench.holds_nothing()
        assert await all_read(bench, 40)


async def test_a_hanging_medium_that_is_alone_costs_the_deadline(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench_of(tmp_path, [64]) as bench:
        await store(bench, 1)
        bench.media[0].set_faults([HANGING])
        started = trio.current_time()
        with pytest.raises(MediumUnavailableError, match="did not answer in 200 ms"):
            await store(bench, 1, first=1)
        assert trio.current_time() - started == pytest.approx(DEADLINE_S)
        assert bench.holds_nothing()


# --- replicas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [FAILING, HANGING], ids=["failing", "hanging"])
async def test_replicas_of_a_medium_that_fails_go_to_another_one(
    tmp_path: Path, autojump_clock: MockClock, fault: Fault
) -> None:
    async with bench_of(tmp_path, [64, 64, 64], replicas=2) as bench:
        await store(bench, 20)
        bench.media[1].set_faults([fault])
        places = await store(bench, 20, first=20)
        assert places == {0: 20, 2: 20}
        assert bench.service.metrics.counters.placed_elsewhere > 0
        assert bench.holds_nothing()
        assert await all_read(bench, 40)


async def test_the_copy_that_was_written_stays_and_is_not_written_again(tmp_path: Path) -> None:
    async with bench_of(tmp_path, [64, 64, 64], replicas=2) as bench:
        await store(bench, 20)
        before = [sum(space.in_use[n].end for n in space.in_use) for space in bench.service.store.spaces.values()]
        bench.media[1].set_faults([FAILING])
        places = await store(bench, 1, first=20)
        after = [sum(space.in_use[n].end for n in space.in_use) for space in bench.service.store.spaces.values()]
        assert [now - then for now, then in zip(after, before, strict=True) if now != then][:2] == [4096, 4096]
        assert after[0] - before[0] == after[2] - before[2] == 4096
        assert places == {0: 1, 2: 1}


async def test_fewer_copies_than_asked_for_are_no_store_at_all(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench_of(tmp_path, [64, 64], replicas=2) as bench:
        await store(bench, 5)
        bench.media[1].set_faults([FAILING])
        with pytest.raises(MediumUnavailableError, match="gave up"):
            await store(bench, 1, first=5)
        bench.media[1].set_faults(())
        await trio.sleep(1)  # the metadata log had half a record, too
        assert bench.holds_nothing()
        assert await store(bench, 5, first=6) == {0: 5, 1: 5}


async def test_copies_in_one_failure_domain_are_no_store_at_all(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with bench_of(tmp_path, [64, 64, 64], replicas=2, domains=("a", "b", "b")) as bench:
        await store(bench, 5)
        bench.media[0].set_faults([FAILING])
        with pytest.raises(MediumUnavailableError, match="gave up"):
            await store(bench, 1, first=5)
        bench.media[0].set_faults(())
        bench.media[1].set_faults([FAILING])
        assert await store(bench, 20, first=6) == {0: 20, 2: 20}


# --- the metadata log ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [FAILING, HANGING], ids=["failing", "hanging"])
@pytest.mark.parametrize("away", [0, 1])
async def test_the_metadata_log_goes_to_another_medium_too(
    tmp_path: Path, autojump_clock: MockClock, fault: Fault, away: int
) -> None:
    async with bench_of(tmp_path, [64, 64]) as bench:
        await bench.service.metadata_log.drain()
        before = bench.service.catalog.log_rows.state(1).head_generation
        bench.media[away].set_faults([fault])
        await store(bench, 5)
        bench.service.pool.tenants.create("late")  # system records have a copy on each medium that takes one
        await bench.service.metadata_log.drain()
        assert bench.service.catalog.log_rows.backlog() == 0
        rows = bench.service.catalog.log_rows
        assert {place.medium for record in rows.records_after(1, before) for place in record.locations} == {1 - away}

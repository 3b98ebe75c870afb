import random

import pytest
import trio
import xxhash
from segment_fakes import POOL, FakeCatalog, append, opened, store_over, superblock_of

from kvfs import limits
from kvfs.errors import MediumUnavailableError, PoolFullError
from kvfsd.catalog.rows import BlockRow, Location
from kvfsd.media.append_only import AppendOnlyMedium
from kvfsd.media.faulty import Fault, FaultKind, FaultyMedium, Operation
from kvfsd.media.memory import MemoryMedium
from kvfsd.media.volatile import CrashMode, VolatileMedium
from kvfsd.ondisk.record import OVERHEAD_BYTES, RecordHeader, RecordIdentity, RecordType, record_bytes
from kvfsd.ondisk.segment import SegmentKind
from kvfsd.segments.gc import STEP_BYTES, STEP_PAUSE_MS, SegmentCollector
from kvfsd.segments.space import OpenMedium

SEGMENT = limits.SEGMENT_MIN_BYTES
MIB = limits.MIB


class Pool:
    """A store over a fake catalog, with blocks whose records have fitting checksums, and a collector."""

    def __init__(self, *media, catalog: FakeCatalog | None = None) -> None:
        self.catalog = catalog or FakeCatalog()
        self.store = store_over(self.catalog, *(media or (opened(0),)))
        self.bad: list[tuple[int, Location, str]] = []
        self.collector = SegmentCollector(
            self.store,
            self.catalog,
            self.catalog,
            self.catalog.transaction,
            lambda placed, location, error: self.bad.append((placed.ino, location, str(error))),
        )
        self.generation = 0
        self.expected: dict[tuple[int, int], bytes] = {}

    def sealed(self, tenant: int, ino: int, length: int) -> bytes:
        self.generation += 1
        stored = bytearray(record_bytes(length))
        end = OVERHEAD_BYTES + length
        stored[128:end] = random.Random(self.generation).randbytes(16).ljust(end - 128, b"\x07")
        identity = RecordIdentity(POOL, RecordType.DATA, tenant, 1, ino, 0, self.generation, length)
        checksum = xxhash.xxh3_64_intdigest(bytes(stored[128:end]))
        stored[:128] = RecordHeader(identity, bytes(16), checksum).pack()
        return bytes(stored)

    async def put(self, ino: int, length: int = MIB, tenant: int = 1, media=(0,)) -> tuple[Location, ...]:
        record = self.sealed(tenant, ino, length)
        locations = await append(self.store, tenant, 1, media, memoryview(record), SegmentKind.DATA)
        row = BlockRow(0, self.generation, length, 1, bytes(16), locations)
        self.catalog.put_block(tenant, ino, row)
        self.store.settle(locations)
        self.expected[tenant, ino] = record
        return locations

    def drop(self, ino: int, tenant: int = 1) -> None:
        self.catalog.drop_block(tenant, ino, 0)
        del self.expected[tenant, ino]

    def locations(self, ino: int, tenant: int = 1) -> tuple[Location, ...]:
        return self.catalog.blocks[tenant, ino, 0].locations

    async def check(self) -> None:
        """Every live block reads back byte for byte from each of its replicas."""
        assert {key[:2] for key in self.catalog.blocks} == set(self.expected)
        for (tenant, ino), record in self.expected.items():
            for location in self.locations(ino, tenant):
                buffer = bytearray(len(record))
                await self.store.read_into(location, memoryview(buffer))
                assert bytes(buffer) == record

    async def fill(self, inos: range) -> None:
        for ino in inos:
            await self.put(ino)


async def test_empty_segments_are_freed_without_copying():
    pool = Pool()
    await pool.fill(range(6))
    for ino in range(3):
        pool.drop(ino)
    assert await pool.collector.collect() == 1
    assert pool.collector.stats.bytes_copied == 0
    assert pool.store.spaces[0].free_segments == 6
    await pool.check()


@pytest.mark.parametrize("serial", [False, True])
async def test_live_records_are_copied_byte_for_byte_and_the_segment_freed(serial):
    medium = MemoryMedium("m0", limits.MEDIUM_MIN_BYTES)
    pool = Pool(opened(0, AppendOnlyMedium(medium, SEGMENT) if serial else medium))
    await pool.fill(range(15))
    for ino in (0, 1, 3, 4):
        pool.drop(ino)
    assert await pool.collector.collect() >= 1
    assert pool.collector.stats.records_copied >= 1
    assert pool.locations(2)[0].segment == 5, "the copy lies in a new segment"
    await pool.check()
    await pool.fill(range(100, 103))
    await pool.check()


@pytest.mark.parametrize("mode", CrashMode)
async def test_a_copy_is_on_stable_storage_before_the_catalog_points_to_it(mode):
    medium = VolatileMedium(MemoryMedium("m0", limits.MEDIUM_MIN_BYTES))
    pool = Pool(opened(0, medium))
    await pool.fill(range(15))
    for ino in (0, 1, 3, 4):
        pool.drop(ino)
    await pool.store.flush()
    assert await pool.collector.collect() >= 1
    assert pool.collector.stats.records_copied >= 1
    await medium.crash(random.Random(1), mode)
    await pool.check()


async def test_nothing_is_copied_while_there_is_enough_space():
    pool = Pool()
    await pool.fill(range(7))
    pool.drop(0)
    pool.drop(1)
    assert await pool.collector.collect() == 0
    assert pool.collector.stats.records_copied == 0


async def test_segment_with_the_least_live_bytes_goes_first():
    pool = Pool()
    await pool.fill(range(16 - 1))
    pool.drop(0)
    for ino in (6, 7):
        pool.drop(ino)
    await pool.collector.collect()
    assert pool.locations(8)[0] == (0, 5, 1)
    assert pool.locations(1)[0].segment == 5
    assert pool.locations(3)[0].segment == 1, "full segments are not copied"
    await pool.check()


async def test_pool_of_garbage_and_live_blocks_takes_writes_for_ever(autojump_clock):
    """Twenty times the pool's size goes through it: writers wait for the collector, none gets an error."""
    pool = Pool()
    random_choice = random.Random(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.collector.run)
        for number in range(560):
            await pool.put(random_choice.randrange(8))
            if number % 100 == 0:
                await pool.check()
        nursery.cancel_scope.cancel()
    await pool.check()
    assert pool.collector.last_error is None
    assert pool.collector.stats.segments_freed > 100


async def test_pool_that_is_full_of_live_blocks_says_so_before_the_deadline(autojump_clock):
    pool = Pool()
    await pool.fill(range(15))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.collector.run)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        with pytest.raises(PoolFullError):
            await pool.put(99)
        assert trio.current_time() - start < 0.5
        pool.drop(3)
        pool.drop(4)
        await pool.put(99)
        nursery.cancel_scope.cancel()
    await pool.check()


async def test_record_that_fails_its_checksum_is_reported_and_never_copied():
    pool = Pool()
    await pool.fill(range(15))
    where = pool.locations(2)[0]
    medium = pool.store.spaces[0].medium
    offset = pool.store.spaces[0].byte_offset(where, 4096)
    damaged = bytearray(pool.expected[1, 2][:4096])
    damaged[3000] ^= 4
    await medium.write(offset, memoryview(damaged))
    pool.drop(0)
    await pool.collector.collect()
    assert [(ino, location) for ino, location, _ in pool.bad] == [(2, where)]
    assert "record body checksum: want" in pool.bad[0][2]
    assert pool.locations(2) == (where,)
    assert pool.locations(1)[0].segment == 5, "its neighbour was moved"
    assert pool.catalog.get(0, 0).live_bytes == record_bytes(MIB)
    await pool.collector.collect()
    assert len(pool.bad) == 1, "it is not tried again and again"
    pool.drop(2)
    freed = await pool.collector.collect()
    assert freed == 1
    await pool.check()


@pytest.mark.parametrize("change", ["generation", "swap", "zeros"])
async def test_other_record_than_the_catalog_has_is_not_copied(change):
    pool = Pool()
    await pool.fill(range(15))
    space = pool.store.spaces[0]
    where = pool.locations(2)[0]
    other = {
        "generation": pool.sealed(1, 2, MIB),
        "swap": pool.expected[1, 7],
        "zeros": bytes(record_bytes(MIB)),
    }[change]
    await space.medium.write(space.byte_offset(where, len(other)), memoryview(other))
    pool.drop(0)
    await pool.collector.collect()
    assert [ino for ino, _, _ in pool.bad] == [2]
    assert pool.locations(2) == (where,)


async def test_record_replaced_while_it_was_copied_keeps_its_new_place():
    class Slow(MemoryMedium):
        on_write = None

        async def write(self, offset, data):
            await super().write(offset, data)
            if self.on_write is not None and len(data) > MIB:
                await self.on_write()

    medium = Slow("m0", limits.MEDIUM_MIN_BYTES)
    pool = Pool(opened(0, medium))
    await pool.fill(range(15))
    pool.drop(0)
    pool.drop(1)

    async def replace() -> None:
        medium.on_write = None
        await pool.put(2, 100)

    medium.on_write = replace
    await pool.collector.collect()
    assert pool.catalog.blocks[1, 2, 0].generation == pool.generation
    assert pool.collector.stats.records_copied == 0
    await pool.check()
    total = sum(row.live_bytes for row in pool.catalog.all())
    assert total == sum(len(record) for record in pool.expected.values())


async def test_each_tenant_keeps_its_own_segments():
    pool = Pool()
    for ino in range(3):
        await pool.put(ino, tenant=1)
        await pool.put(ino, tenant=2)
    for ino in (10, 11, 12):
        await pool.put(ino, tenant=1)
        await pool.put(ino, tenant=2)
    await pool.put(20, tenant=3)
    for ino in (0, 1):
        pool.drop(ino, tenant=1)
        pool.drop(ino, tenant=2)
    await pool.collector.collect()
    await pool.check()
    for (tenant, ino, _), row in pool.catalog.blocks.items():
        for location in row.locations:
            assert pool.catalog.get(location.medium, location.segment).tenant == tenant, (tenant, ino)


async def test_replicas_are_collected_medium_by_medium():
    pool = Pool(opened(0), opened(1))
    for ino in range(15):
        await pool.put(ino, media=(0, 1))
    for ino in (0, 1, 3, 4):
        pool.drop(ino)
    await pool.collector.collect()
    await pool.check()
    assert {location.medium for location in pool.locations(2)} == {0, 1}
    assert all(space.free_segments >= 3 for space in pool.store.spaces.values())


async def test_reader_of_a_moved_record_keeps_what_it_reads():
    pool = Pool()
    await pool.fill(range(15))
    pool.drop(0)
    pool.drop(1)
    old = pool.locations(2)[0]
    with pool.store.pin(old):
        await pool.collector.collect()
        assert pool.locations(2)[0] != old
        buffer = bytearray(record_bytes(MIB))
        await pool.store.read_into(old, memoryview(buffer))
        assert bytes(buffer) == pool.expected[1, 2]
    assert await pool.collector.collect() == 1


async def test_unreadable_record_does_not_stop_the_others():
    faulty = FaultyMedium(MemoryMedium("m0", limits.MEDIUM_MIN_BYTES), 1)
    pool = Pool(opened(0, faulty))
    await pool.fill(range(15))
    pool.drop(0)
    faulty.set_faults([Fault(FaultKind.ERROR, Operation.READ, at=frozenset({1}))])
    await pool.collector.collect()
    assert pool.collector.stats.records_unreadable == 1
    assert pool.collector.stats.records_copied == 1
    assert pool.bad == []
    await pool.check()


async def test_failing_medium_ends_the_pass_and_not_the_task(autojump_clock):
    faulty = FaultyMedium(MemoryMedium("m0", limits.MEDIUM_MIN_BYTES), 1)
    pool = Pool(opened(0, faulty))
    await pool.fill(range(15))
    pool.drop(0)
    pool.drop(1)
    faulty.set_faults([Fault(FaultKind.ERROR, Operation.WRITE, probability=1)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.collector.run)
        await trio.sleep(1.5)
        assert isinstance(pool.collector.last_error, MediumUnavailableError)
        faulty.set_faults([])
        await trio.sleep(5)
        assert pool.collector.last_error is None
        nursery.cancel_scope.cancel()
    assert pool.locations(2)[0].segment != 0
    assert pool.store.spaces[0].free_segments == 2
    await pool.check()


async def test_medium_that_does_not_answer_costs_the_deadline(autojump_clock):
    faulty = FaultyMedium(MemoryMedium("m0", limits.MEDIUM_MIN_BYTES), 1)
    pool = Pool(opened(0, faulty))
    await pool.fill(range(15))
    pool.drop(0)
    faulty.set_faults([Fault(FaultKind.DELAY, Operation.READ, at=frozenset({1}), delay_ms=60_000)])
    start = trio.current_time()
    await pool.collector.collect()
    assert trio.current_time() - start == pytest.approx(limits.MEDIUM_DEADLINE_MS / 1000)
    assert pool.collector.stats.records_unreadable == 1
    faulty.set_faults([Fault(FaultKind.DELAY, Operation.WRITE, probability=1, delay_ms=60_000)])
    pool.drop(1)
    pool.drop(3)
    with pytest.raises(MediumUnavailableError, match="did not answer in 2000 ms"):
        await pool.collector.collect()
    await pool.check()


async def test_background_collection_is_paced(autojump_clock):
    """More than one step of live bytes takes at least the pauses in between."""
    pool = Pool()
    await pool.fill(range(15))
    for ino in (0, 3, 6, 9, 12):
        pool.drop(ino)
    start = trio.current_time()
    while await pool.collector.collect():
        pass
    steps = pool.collector.stats.bytes_copied // STEP_BYTES
    assert trio.current_time() - start == pytest.approx(steps * STEP_PAUSE_MS / 1000)
    await pool.check()


async def test_crash_at_any_medium_operation_of_a_collection_loses_nothing():
    """The n-th operation fails, for all n; then the store is opened anew over what is there."""
    for nth in range(1, 60):
        inner = MemoryMedium("m0", limits.MEDIUM_MIN_BYTES)
        faulty = FaultyMedium(inner, 1)
        pool = Pool(opened(0, faulty))
        await pool.fill(range(15))
        for ino in (0, 1, 4):
            pool.drop(ino)
        faulty.set_faults([Fault(FaultKind.ERROR, at=frozenset({nth}))])
        try:
            await pool.collector.collect()
            failed = bool(pool.collector.stats.records_unreadable)
        except MediumUnavailableError:
            failed = True
        faulty.set_faults([])
        again = Pool(opened(0, inner), catalog=pool.catalog)
        again.expected, again.generation = pool.expected, pool.generation
        await again.check()
        await again.collector.collect()
        await again.check()
        assert again.store.spaces[0].free_segments >= 3
        if not failed:
            assert nth > 5
            return
    pytest.fail("the collection never ran through")


async def test_power_loss_after_a_collection_leaves_what_was_durable():
    """The catalog goes back to its last barrier: every record that it knows is still there."""
    pool = Pool()
    await pool.fill(range(15))
    for ino in (0, 1, 4):
        pool.drop(ino)
    await pool.catalog.barrier()
    expected = dict(pool.expected)
    await pool.collector.collect()
    pool.catalog.power_loss()
    again = Pool(opened(0, pool.store.spaces[0].medium), catalog=pool.catalog)
    again.expected = expected
    await again.check()


class CountingMedium(MemoryMedium):
    """Knows how often it was flushed."""

    flushes = 0

    async def flush(self) -> None:
        self.flushes += 1
        await super().flush()


def large(index: int, medium: MemoryMedium) -> OpenMedium:
    """63 segments of 4 MiB."""
    return OpenMedium(medium, superblock_of(index, 256 * MIB))


async def test_one_flush_and_one_barrier_serve_several_segments():
    medium = CountingMedium("m0", 256 * MIB)
    pool = Pool(large(0, medium))
    await pool.fill(range(3 * 50))
    for ino in range(24):
        if ino % 3:
            pool.drop(ino)  # of three records in each of eight segments one is left
    barriers = pool.catalog.barriers
    assert await pool.collector.collect() == 8
    assert pool.collector.stats.records_copied == 8
    assert medium.flushes == 1
    assert pool.catalog.barriers - barriers == 1
    await pool.check()


async def test_a_writer_that_waits_gets_the_first_segment_that_is_empty(autojump_clock):
    medium = CountingMedium("m0", 256 * MIB)
    pool = Pool(large(0, medium))
    await pool.fill(range(3 * 61))
    for ino in range(24):
        if ino % 3 == 0:
            pool.drop(ino)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.collector.run)
        await trio.testing.wait_all_tasks_blocked()
        await pool.put(1000)
        assert pool.collector.stats.segments_freed <= 3
        assert pool.collector.stats.bytes_copied <= 2 * SEGMENT
        nursery.cancel_scope.cancel()
    await pool.check()


async def test_a_medium_that_fails_does_not_stop_the_collection_of_others(autojump_clock, caplog):
    faulty = FaultyMedium(MemoryMedium("m0", limits.MEDIUM_MIN_BYTES), 1)
    pool = Pool(opened(0, faulty), opened(1))
    for index in (0, 1):
        for ino in range(100 * index, 100 * index + 15):
            await pool.put(ino, media=(index,))
        pool.drop(100 * index)
        pool.drop(100 * index + 1)
    faulty.set_faults([Fault(FaultKind.ERROR, Operation.WRITE, probability=1)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.collector.run)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert isinstance(pool.collector.last_error, MediumUnavailableError)
    assert len([record for record in caplog.records if "collecting garbage" in record.getMessage()]) == 1
    assert pool.locations(102)[0].segment != 0, "what was left of the first segment was copied"
    assert pool.store.spaces[1].free_segments > pool.store.spaces[0].free_segments
    await pool.check()

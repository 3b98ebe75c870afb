import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_fakes import FakeCatalog, append, opened, store_over, superblock_of

from kvfs import limits
from kvfs.errors import (
    FailsafeError,
    FormatError,
    InvalidArgumentError,
    MediumUnavailableError,
    NotFoundError,
    PoolFullError,
)
from kvfsd.catalog.rows import BlockRow, Location, SegmentRow
from kvfsd.catalog.schema import SegmentState
from kvfsd.media.append_only import AppendOnlyMedium
from kvfsd.media.faulty import Fault, FaultKind, FaultyMedium, Operation
from kvfsd.media.memory import MemoryMedium
from kvfsd.ondisk.segment import HEADER_BYTES, SegmentHeader, SegmentKind
from kvfsd.segments.release import BARRIER_DEADLINE_MS, TRIM_DEADLINE_MS
from kvfsd.segments.scan import read_segment_header
from kvfsd.segments.store import KEEP_FROM_WRITERS, SPACE_DEADLINE_MS, Append

UNIT = limits.RECORD_ALIGN_BYTES
SEGMENT = limits.SEGMENT_MIN_BYTES
MIB = limits.MIB
DATA = SegmentKind.DATA
LARGE = MIB + UNIT
"""A full record: three fit into a segment of 4 MiB."""


def record(fill: int, length: int = UNIT) -> memoryview:
    return memoryview(bytes([fill]) * length)


async def put(store, fill: int, length: int = UNIT, *, tenant: int = 1, media=(0,)) -> tuple[Location, ...]:
    """Append and settle."""
    locations = await append(store, tenant, 1, media, record(fill, length), DATA)
    store.settle(locations)
    return locations


async def content(store, location: Location, length: int = UNIT) -> bytes:
    buffer = bytearray(length)
    await store.read_into(location, memoryview(buffer))
    return bytes(buffer)


def serial_medium(index: int = 0) -> AppendOnlyMedium:
    return AppendOnlyMedium(MemoryMedium(f"tape{index}", limits.MEDIUM_MIN_BYTES), SEGMENT)


@pytest.fixture(params=["parallel", "serial"])
def medium(request):
    return MemoryMedium("m0", limits.MEDIUM_MIN_BYTES) if request.param == "parallel" else serial_medium()


async def test_append_and_read_back(medium):
    store = store_over(FakeCatalog(), opened(0, medium))
    first = (await put(store, 1))[0]
    second = (await put(store, 2, 3 * UNIT))[0]
    assert first == Location(0, 0, 1)
    assert second == Location(0, 0, 2)
    assert await content(store, first) == bytes([1]) * UNIT
    assert await content(store, second, 3 * UNIT) == bytes([2]) * 3 * UNIT


async def test_segment_starts_with_its_header_and_has_its_row_first(medium):
    catalog = FakeCatalog()
    fault = Fault(FaultKind.ERROR, Operation.WRITE, at=frozenset({1}))
    store = store_over(catalog, opened(0, FaultyMedium(medium, 1, [fault])))
    with pytest.raises(MediumUnavailableError, match="injected"):
        await put(store, 1)
    assert catalog.get(0, 0).state == SegmentState.CLOSED, "the row was there before the header was written"
    await append(store, 7, 3, [0], record(1), SegmentKind.METADATA_LOG)
    header = await read_segment_header(medium, superblock_of(0), 1)
    assert header == SegmentHeader(SegmentKind.METADATA_LOG, bytes(range(16)), b"\1" * 16, 0, 1, 7, 3)
    assert catalog.get(0, 1) == SegmentRow(0, 1, SegmentState.OPEN, SegmentKind.METADATA_LOG, 7, 3, HEADER_BYTES, 0)


async def test_tenants_epochs_and_kinds_do_not_share_segments(medium):
    store = store_over(FakeCatalog(), opened(0, medium))
    streams = [(1, 1, DATA), (2, 1, DATA), (1, 2, DATA), (1, 1, SegmentKind.METADATA_LOG)]
    found = [(await append(store, tenant, epoch, [0], record(1), kind))[0] for tenant, epoch, kind in streams]
    assert len({location.segment for location in found}) == 4
    again = await append(store, 1, 1, [0], record(2), DATA)
    assert again[0].segment == found[0].segment


async def test_full_segment_is_closed_and_the_next_one_opened(medium):
    catalog = FakeCatalog()
    store = store_over(catalog, opened(0, medium))
    found = [(await put(store, fill, LARGE))[0] for fill in range(4)]
    assert [location.segment for location in found] == [0, 0, 0, 1]
    assert catalog.get(0, 0).state == SegmentState.CLOSED
    assert catalog.get(0, 1).state == SegmentState.OPEN
    assert await content(store, found[2], LARGE) == bytes([2]) * LARGE


async def test_replicas_go_to_each_medium_and_come_back_in_order():
    store = store_over(FakeCatalog(), opened(0), opened(1), opened(2, serial_medium(2)))
    await put(store, 9, media=(1,))
    found = await put(store, 5, media=(2, 0, 1))
    assert found == (Location(2, 0, 1), Location(0, 0, 1), Location(1, 0, 2))
    for location in found:
        assert await content(store, location) == bytes([5]) * UNIT


async def test_one_failed_replica_leaves_the_others_to_the_caller():
    bad = FaultyMedium(MemoryMedium("bad", limits.MEDIUM_MIN_BYTES), 1, [Fault(FaultKind.ERROR, probability=1)])
    store = store_over(FakeCatalog(), opened(0), opened(1, bad))
    done, errors = await store.append_each(Append(1, 1, record(1), DATA), [0, 1, 7])
    assert list(done) == [0]
    assert {index: type(error) for index, error in errors.items()} == dict.fromkeys((1, 7), MediumUnavailableError)
    assert "medium bad: TRIM" in str(errors[1])
    assert "medium 7 of the pool is not open" in str(errors[7])
    assert store.spaces[0].in_use[0].unsettled == 1
    store.settle(done.values())
    assert store.spaces[0].in_use[0].unsettled == 0


async def test_an_error_that_is_no_medium_s_leaves_nothing():
    store = store_over(FakeCatalog(), opened(0), opened(1))

    async def damaged(*_):
        raise FailsafeError("the catalog is damaged")

    store._appender._open_segment, working = damaged, store._appender._open_segment
    with pytest.raises(FailsafeError):
        await store.append_each(Append(1, 1, record(1), DATA), [0, 1])
    store._appender._open_segment = working
    assert not store.spaces[0].in_use


async def test_a_medium_that_does_not_answer_is_an_error_in_time(autojump_clock):
    slow = FaultyMedium(MemoryMedium("slow", limits.MEDIUM_MIN_BYTES), 1)
    store = store_over(FakeCatalog(), opened(0, slow))
    await append(store, 1, 1, [0], record(1), DATA)
    slow.set_faults([Fault(FaultKind.DELAY, Operation.WRITE, probability=1, delay_ms=10**6)])
    done, errors = await store.append_each(Append(1, 1, record(1), DATA, deadline_ms=300), [0])
    assert not done
    assert "did not answer in 300 ms" in str(errors[0])
    assert trio.current_time() == pytest.approx(0.3)
    assert store.spaces[0].in_use[0].unsettled == 1, "the first one's"


class Gate(MemoryMedium):
    """Holds every write until it is let go; knows how many wait, and the order in which they were asked for."""

    def __init__(self, capabilities=None) -> None:
        super().__init__("gate", limits.MEDIUM_MIN_BYTES)
        if capabilities is not None:
            self.capabilities = capabilities
        self.open = trio.Event()
        self.open.set()
        self.waiting = 0
        self.offsets: list[int] = []

    async def write(self, offset: int, data: memoryview) -> None:
        self.offsets.append(offset)
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        await super().write(offset, data)


async def test_appends_to_one_segment_are_in_flight_together():
    gate = Gate()
    store = store_over(FakeCatalog(), opened(0, gate))
    await put(store, 0)
    gate.open = trio.Event()
    found: dict[int, Location] = {}

    async def one(fill: int) -> None:
        found[fill] = (await put(store, fill))[0]

    async with trio.open_nursery() as nursery:
        for fill in range(1, 9):
            nursery.start_soon(one, fill)
        await trio.testing.wait_all_tasks_blocked()
        assert gate.waiting == 8
        gate.open.set()
    assert sorted(location.offset for location in found.values()) == list(range(2, 10))
    for fill, location in found.items():
        assert await content(store, location) == bytes([fill]) * UNIT


async def test_appends_on_a_serial_medium_wait_for_each_other():
    inner = Gate()
    store = store_over(FakeCatalog(), opened(0, AppendOnlyMedium(inner, SEGMENT)))
    await put(store, 0)
    inner.open = trio.Event()
    async with trio.open_nursery() as nursery:
        for fill in range(1, 9):
            nursery.start_soon(put, store, fill)
        await trio.testing.wait_all_tasks_blocked()
        assert inner.waiting == 1
        inner.open.set()
    assert inner.offsets == sorted(inner.offsets)
    assert len(inner.offsets) == 10


async def test_many_first_appends_open_one_segment():
    gate = Gate()
    gate.open = trio.Event()
    catalog = FakeCatalog()
    store = store_over(catalog, opened(0, gate))
    async with trio.open_nursery() as nursery:
        for fill in range(6):
            nursery.start_soon(put, store, fill)
        await trio.testing.wait_all_tasks_blocked()
        assert gate.waiting == 1, "only the header is being written"
        gate.open.set()
    assert len(catalog.segments) == 1


async def test_failed_write_leaves_a_hole_where_order_is_free_and_closes_the_segment_where_it_is_not(medium):
    catalog = FakeCatalog()
    faulty = FaultyMedium(medium, 1)
    store = store_over(catalog, opened(0, faulty))
    await put(store, 1)
    faulty.set_faults([Fault(FaultKind.ERROR, Operation.WRITE, at=frozenset({1}))])
    with pytest.raises(MediumUnavailableError):
        await put(store, 2)
    after = (await put(store, 3))[0]
    serial = store.spaces[0].serial
    assert after == (Location(0, 1, 1) if serial else Location(0, 0, 3))
    assert catalog.get(0, 0).state == (SegmentState.CLOSED if serial else SegmentState.OPEN)
    assert await content(store, after) == bytes([3]) * UNIT
    assert store.spaces[0].in_use[0].unsettled == 0


async def test_cancelled_append_is_not_counted_as_unsettled():
    gate = Gate()
    store = store_over(FakeCatalog(), opened(0, gate), opened(1))
    await put(store, 1)
    gate.open = trio.Event()
    for media in ((0,), (0, 1)):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, store, 2, UNIT)
                nursery.start_soon(lambda media=media: put(store, 3, media=media))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    assert store.spaces[0].in_use[0].unsettled == 0
    assert store.spaces[1].in_use[0].unsettled == 0


async def test_full_pool_keeps_spare_segments_for_the_log_and_the_collector(medium):
    store = store_over(FakeCatalog(), opened(0, medium))
    assert store.free_bytes() == 5 * (SEGMENT - HEADER_BYTES)
    last = None
    for _ in range(15):
        assert not store.without_room or last.segment == 4
        last = (await put(store, 1, LARGE))[0]
    await put(store, 1, UNIT)
    with pytest.raises(PoolFullError, match=r"medium 0 .* is full: 2 segments left"):
        await put(store, 1, LARGE)
    assert store.without_room == {0}
    assert store.free_bytes() == 0
    copy = await store.append_copy(last, record(1, LARGE))
    assert copy.segment == 5
    for _ in range(2):
        await store.append_copy(last, record(1, LARGE))
    with pytest.raises(PoolFullError, match="is full: 1 segments left"):
        await store.append_copy(last, record(1, LARGE))
    assert (await append(store, 1, 1, [0], record(1), SegmentKind.METADATA_LOG))[0].segment == 6


async def test_released_segment_is_trimmed_after_the_barrier_and_used_again(medium):
    catalog = FakeCatalog()
    store = store_over(catalog, opened(0, medium))
    for fill in range(4):
        await put(store, fill + 1, LARGE)
    assert store.free_bytes() == 3 * (SEGMENT - HEADER_BYTES)
    assert await store.release_empty() == 1
    assert catalog.barriers == 1
    with pytest.raises(NotFoundError):
        catalog.get(0, 0)
    assert await content(store, Location(0, 0, 1)) == bytes(UNIT)
    assert store.free_bytes() == 4 * (SEGMENT - HEADER_BYTES)
    assert (await put(store, 9, tenant=2))[0] == Location(0, 0, 1)
    assert await store.release_empty() == 0
    assert catalog.barriers == 1, "no barrier without need"


async def test_nothing_is_trimmed_before_the_barrier():
    catalog = FakeCatalog()
    medium = MemoryMedium("m0", limits.MEDIUM_MIN_BYTES)
    entered, go_on = trio.Event(), trio.Event()
    store = store_over(catalog, opened(0, medium))

    async def barrier() -> None:
        entered.set()
        await go_on.wait()
        await catalog.barrier()

    store._barrier = barrier
    for fill in range(4):
        await put(store, fill + 1, LARGE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.release_empty)
        await entered.wait()
        assert await content(store, Location(0, 0, 1)) == bytes([1]) * UNIT
        assert store.spaces[0].free_segments == 5
        go_on.set()
    assert await content(store, Location(0, 0, 1)) == bytes(UNIT)


async def test_pinned_segment_is_trimmed_once_its_reader_has_left(medium):
    store = store_over(FakeCatalog(), opened(0, medium))
    found = [(await put(store, fill + 1, LARGE))[0] for fill in range(4)]
    with store.pin(found[1]):
        assert await store.release_empty() == 0
        assert await content(store, found[1]) == bytes([2]) * UNIT
        with pytest.raises(NotFoundError, match="segment 0 is free"), store.pin(found[0]):
            pass
    assert await store.release_empty() == 1
    assert await content(store, found[1]) == bytes(UNIT)


async def test_segment_with_unsettled_appends_is_not_released(medium):
    store = store_over(FakeCatalog(), opened(0, medium))
    held = await append(store, 1, 1, [0], record(1, LARGE), DATA)
    for _ in range(3):
        await put(store, 1, LARGE)
    assert await store.release_empty() == 0
    store.settle(held)
    assert await store.release_empty() == 1


async def test_segment_with_live_records_is_not_released(medium):
    catalog = FakeCatalog()
    store = store_over(catalog, opened(0, medium))
    locations = await put(store, 1, LARGE)
    catalog.put_block(1, 5, BlockRow(0, 1, MIB, 1, bytes(16), locations))
    for _ in range(3):
        await put(store, 1, LARGE)
    assert await store.release_empty() == 0
    catalog.drop_block(1, 5, 0)
    assert await store.release_empty() == 1


async def test_failed_barrier_or_trim_is_taken_up_again(medium, caplog):
    catalog = FakeCatalog()
    faulty = FaultyMedium(medium, 1)
    store = store_over(catalog, opened(0, faulty))
    for _ in range(4):
        await put(store, 1, LARGE)

    async def failing() -> None:
        raise MediumUnavailableError("disk of the catalog")

    store._barrier, good = failing, store._barrier
    with pytest.raises(MediumUnavailableError, match="catalog"):
        await store.release_empty()
    store._barrier = good
    faulty.set_faults([Fault(FaultKind.ERROR, Operation.TRIM, at=frozenset({1, 2}))])
    assert [await store.release_empty() for _ in range(2)] == [0, 0]
    assert store.spaces[0].free_segments == 5
    assert [record.getMessage().count("injected") for record in caplog.records] == [1], "said once"
    assert await store.release_empty() == 1
    assert store.spaces[0].free_segments == 6


async def test_a_barrier_or_trim_that_hangs_costs_its_deadline_and_is_taken_up_again(autojump_clock):
    faulty = FaultyMedium(MemoryMedium("m0", limits.MEDIUM_MIN_BYTES), 1)
    store = store_over(FakeCatalog(), opened(0, faulty), opened(1))
    for index in (0, 1):
        for _ in range(4):
            await put(store, 1, LARGE, media=(index,))

    store._barrier, good = trio.sleep_forever, store._barrier
    with pytest.raises(MediumUnavailableError, match="not synced within"):
        await store.release_empty()
    assert trio.current_time() == pytest.approx(BARRIER_DEADLINE_MS / 1000)
    store._barrier = good
    faulty.set_faults([Fault(FaultKind.DELAY, Operation.TRIM, probability=1, delay_ms=10**9)])
    started = trio.current_time()
    assert await store.release_empty() == 1, "the other medium's"
    assert trio.current_time() - started == pytest.approx(TRIM_DEADLINE_MS / 1000)
    faulty.set_faults([])
    assert await store.release_empty() == 1
    assert [store.spaces[index].free_segments for index in (0, 1)] == [6, 6]


async def test_one_barrier_serves_all_that_is_empty():
    catalog = FakeCatalog()
    store = store_over(catalog, opened(0), opened(1))
    for index in (0, 1):
        for _ in range(10):
            await put(store, 1, LARGE, media=(index,))
    assert await store.release_empty() == 6
    assert catalog.barriers == 1


async def test_restart_resumes_behind_what_the_catalog_knows():
    catalog, medium = FakeCatalog(), MemoryMedium("m0", limits.MEDIUM_MIN_BYTES)
    store = store_over(catalog, opened(0, medium))
    kept = await put(store, 1)
    catalog.put_block(1, 5, BlockRow(0, 1, 100, 1, bytes(16), kept))
    await put(store, 2)  # never committed
    again = store_over(catalog, opened(0, medium))
    assert (await put(again, 3))[0] == Location(0, 0, 2)
    assert await content(again, kept[0]) == bytes([1]) * UNIT
    assert await content(again, Location(0, 0, 2)) == bytes([3]) * UNIT


async def test_restart_closes_open_segments_of_serial_media():
    catalog, medium = FakeCatalog(), serial_medium()
    store = store_over(catalog, opened(0, medium))
    kept = await put(store, 1)
    catalog.put_block(1, 5, BlockRow(0, 1, 100, 1, bytes(16), kept))
    again = store_over(catalog, opened(0, medium))
    assert catalog.get(0, 0).state == SegmentState.CLOSED
    assert (await put(again, 3))[0] == Location(0, 1, 1)
    assert await content(again, kept[0]) == bytes([1]) * UNIT


@pytest.mark.parametrize("lost", ["zeros", "garbage", "foreign"])
async def test_restart_does_not_go_on_in_a_segment_whose_header_was_lost(lost):
    catalog, medium = FakeCatalog(), MemoryMedium("m0", limits.MEDIUM_MIN_BYTES)
    store = store_over(catalog, opened(0, medium))
    await put(store, 1)
    header = {
        "zeros": bytes(HEADER_BYTES),
        "garbage": b"\x55" * HEADER_BYTES,
        "foreign": SegmentHeader(DATA, bytes(16), bytes(16), 0, 0, 1, 1).pack(),
    }[lost]
    await medium.write(superblock_of(0).segment_offset(0), memoryview(header))
    again = store_over(catalog, opened(0, medium))
    assert (await put(again, 3))[0] == Location(0, 1, 1)
    assert await again.release_empty() == 1


async def test_segment_that_was_free_at_start_is_trimmed_before_use(medium):
    """A crash between the catalog's forgetting and the trim must not let old records show up again."""
    catalog = FakeCatalog()
    store = store_over(catalog, opened(0, medium))
    for fill in range(3):
        await put(store, fill + 1, LARGE)
    with catalog.transaction():
        catalog.close(0, 0)
        catalog.free(0, 0)
    again = store_over(catalog, opened(0, medium))
    assert (await put(again, 9))[0] == Location(0, 0, 1)
    assert await content(again, Location(0, 0, 2), LARGE) == bytes(LARGE)


async def test_rows_that_do_not_fit_the_medium_are_refused():
    base = SegmentRow(0, 0, SegmentState.OPEN, DATA, 1, 1, HEADER_BYTES, 0)
    for row, text in (
        (base._replace(segment=7), "the medium has 7 segments"),
        (base._replace(write_offset=SEGMENT + UNIT), "write offset"),
        (base._replace(write_offset=100), "write offset 100"),
        (base._replace(kind=9), "9 is not a valid SegmentKind"),
        (base._replace(state=9), "9 is not a valid SegmentState"),
    ):
        catalog = FakeCatalog()
        catalog.segments[0, row.segment] = row
        with pytest.raises(FormatError, match=text):
            store_over(catalog, opened(0))


async def test_segments_of_a_medium_that_is_away_are_left_alone():
    catalog = FakeCatalog()
    catalog.segments[3, 0] = SegmentRow(3, 0, SegmentState.CLOSED, DATA, 1, 1, HEADER_BYTES, 0)
    store = store_over(catalog, opened(0))
    assert await store.release_empty() == 0
    assert catalog.get(3, 0)
    with pytest.raises(MediumUnavailableError, match="medium 3"):
        await store.read_into(Location(3, 0, 1), memoryview(bytearray(UNIT)))


@pytest.mark.parametrize("length", [0, 100, SEGMENT, SEGMENT - UNIT + 1])
async def test_record_lengths_are_bounded(length):
    store = store_over(FakeCatalog(), opened(0))
    with pytest.raises(InvalidArgumentError, match="record of"):
        await append(store, 1, 1, [0], memoryview(bytes(length)), DATA)


@pytest.mark.parametrize(
    ("location", "length"),
    [
        (Location(0, 0, 0), UNIT),
        (Location(0, 0, 1024), UNIT),
        (Location(0, 0, 1023), 2 * UNIT),
        (Location(0, 7, 1), UNIT),
        (Location(0, 0, 2**32 - 1), UNIT),
        (Location(0, 2**32 - 1, 1), UNIT),
    ],
)
async def test_reads_outside_a_segment_are_refused(location, length):
    store = store_over(FakeCatalog(), opened(0))
    with pytest.raises(InvalidArgumentError):
        await store.read_into(location, memoryview(bytearray(length)))


async def test_closing_the_streams_of_a_tenant_makes_its_segments_collectable():
    catalog = FakeCatalog()
    store = store_over(catalog, opened(0))
    for tenant in (1, 2):
        await put(store, tenant, tenant=tenant)
    await append(store, 1, 2, [0], record(1), DATA)
    store.close_streams(1, 1)
    assert [row.state for row in catalog.all()] == [SegmentState.CLOSED, SegmentState.OPEN, SegmentState.OPEN]
    store.close_streams(1)
    assert [row.state for row in catalog.all()] == [SegmentState.CLOSED, SegmentState.OPEN, SegmentState.CLOSED]
    assert (await put(store, 3, tenant=2))[0].segment == 1


async def test_writer_waits_for_the_collector_and_gives_up_at_the_deadline(autojump_clock):
    catalog = FakeCatalog()
    store = store_over(catalog, opened(0))
    woken = []
    store.collect_with(lambda: woken.append(trio.current_time()))
    held = [await append(store, 1, 1, [0], record(1, LARGE), DATA) for _ in range(15)]
    start = trio.current_time()
    with pytest.raises(PoolFullError):
        await put(store, 1, LARGE)
    assert trio.current_time() - start == pytest.approx(SPACE_DEADLINE_MS / 1000)
    assert woken == [start]
    assert store.spaces[0].waiters == []

    async def collector() -> None:
        await trio.sleep(0.5)
        for locations in held:
            store.settle(locations)
        assert await store.release_empty() == 5

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector)
        await put(store, 1, LARGE)
    assert trio.current_time() - start == pytest.approx(0.5)
    assert KEEP_FROM_WRITERS == 2


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "drop", "release", "restart"]), st.integers(0, 5), st.integers(1, 257)),
    max_size=60,
)


@settings(max_examples=60)
@given(OPERATIONS, st.booleans())
def test_committed_records_stay_whatever_happens(operations, serial):
    """Random appends, drops, releases and restarts: every committed record reads back, no space is lost."""

    async def main() -> None:
        catalog = FakeCatalog()
        medium = serial_medium() if serial else MemoryMedium("m0", limits.MEDIUM_MIN_BYTES)
        store = store_over(catalog, opened(0, medium))
        model: dict[int, tuple[int, int]] = {}
        for number, (kind, ino, units) in enumerate(operations):
            fill = number % 255 + 1
            if kind == "put":
                try:
                    locations = await put(store, fill, units * UNIT)
                except PoolFullError:
                    assert store.without_room == {0}
                    continue
                catalog.put_block(1, ino, BlockRow(0, number, min(units * UNIT - 152, MIB), 1, bytes(16), locations))
                model[ino] = (fill, units)
            elif kind == "drop":
                catalog.drop_block(1, ino, 0)
                model.pop(ino, None)
            elif kind == "release":
                await store.release_empty()
            else:
                store = store_over(catalog, opened(0, medium))
            for key, (value, length) in model.items():
                location = catalog.blocks[1, key, 0].locations[0]
                assert await content(store, location, length * UNIT) == bytes([value]) * length * UNIT
        store.close_streams(1)
        await store.release_empty()
        used = {location.segment for row in catalog.blocks.values() for location in row.locations}
        assert store.spaces[0].free_segments == 7 - len(used)

    trio.run(main)

"""The stages of the data paths, one by one: what each does and refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import xxhash

from kvfs import limits
from kvfs.commands import Done, ReadBlock, WriteBlock
from kvfs.errors import (
    BadRecordError,
    FileTooLargeError,
    InvalidArgumentError,
    MediumUnavailableError,
    NotFoundError,
    PoolFullError,
    QuotaExceededError,
    Status,
)
from kvfsd.catalog.rows import PlacedBlock
from kvfsd.crypto import sealing
from kvfsd.datapath import pipeline, stages
from kvfsd.datapath.scheduler import Scheduler
from kvfsd.datapath.stages import WriteRequest
from kvfsd.media.faulty import Fault, FaultKind, Operation
from kvfsd.service.inprocess import InProcessQueuePair
from tests.kvfsd.path_bench import Bench, bench, mirrored
from tests.kvfsd.serving import TENANT, Host, Layout, make_pool, serving

__all__ = ["bench", "mirrored"]

MIB = limits.MIB

# --- admit, schedule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "block", "error"),
    [
        (0, 0, InvalidArgumentError),
        (MIB + 1, 0, InvalidArgumentError),
        (1, -1, FileTooLargeError),
        (1, limits.FILE_MAX_BYTES // limits.BLOCK_BYTES, FileTooLargeError),
        (1, 1 << 62, FileTooLargeError),
    ],
)
async def test_admit_refuses_what_no_file_can_have(
    bench: Bench, length: int, block: int, error: type[Exception]
) -> None:
    request = await bench.write_request(bytes(length), block)
    with pytest.raises(error):
        await pipeline.write_block(bench.path, request)
    assert bench.holds_nothing()


async def test_admit_counts_what_is_in_flight_against_the_quota(bench: Bench) -> None:
    requests = [await bench.write_request(bytes(MIB), block) for block in range(9)]
    for request in requests[:8]:
        pipeline.admit(bench.path, request)
    with pytest.raises(QuotaExceededError, match="over its quota"):
        pipeline.admit(bench.path, requests[8])
    bench.service.admission.settle_bytes(requests[0].reservation, MIB, 0)
    pipeline.admit(bench.path, requests[8])
    for request in requests[1:]:
        bench.service.admission.settle_bytes(request.reservation, MIB, 0)


async def test_the_schedule_bounds_what_runs_and_lets_tenants_take_turns() -> None:
    scheduler = Scheduler(2)
    order: list[int] = []

    async def command(tenant: int) -> None:
        slot = await scheduler.acquire(tenant)
        assert scheduler.running <= 2
        order.append(tenant)
        await trio.lowlevel.checkpoint()
        slot.release()

    held = [await scheduler.acquire(9), await scheduler.acquire(9)]
    async with trio.open_nursery() as nursery:
        for tenant in [1] * 6 + [2] * 2:
            nursery.start_soon(command, tenant)
        while scheduler.waiting < 8:
            await trio.lowlevel.checkpoint()
        for slot in held:
            slot.release()
    assert scheduler.running == scheduler.waiting == 0
    assert set(order[:4]) == {1, 2}, "the short queue is not behind the long one"
    assert order.index(2) < 2
    assert [index for index, tenant in enumerate(order) if tenant == 2][-1] < 5


async def test_a_slot_that_comes_to_a_cancelled_waiter_is_not_lost(autojump_clock: trio.testing.MockClock) -> None:
    scheduler = Scheduler(1)
    slot = await scheduler.acquire(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.acquire, 2)
        await trio.testing.wait_all_tasks_blocked()
        slot.release()  # granted and cancelled before the waiter runs
        nursery.cancel_scope.cancel()
    with trio.fail_after(1):
        if scheduler.running:  # the waiter returned before its cancellation: its slot is that of the test
            scheduler.release()
        await scheduler.acquire(3)
    with trio.move_on_after(1):
        await scheduler.acquire(4)
    assert scheduler.waiting == 0
    scheduler.release()
    assert scheduler.running == 0


# --- digest, seal, place, write, commit ----------------------------------------------------------------


async def test_digest_and_seal_bind_the_bytes_that_were_admitted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    request = await bench.write_request(b"honest bytes")
    right = pipeline.digest

    def tampered(path: pipeline.DataPath, scheduled: stages.Scheduled) -> stages.Digested:
        digested = right(path, scheduled)
        assert digested.payload.checksum == xxhash.xxh3_64_intdigest(b"honest bytes")
        return stages.Digested(digested.target, sealing.Payload(b"wicked bytes", digested.payload.checksum))

    monkeypatch.setattr(pipeline, "digest", tampered)
    await pipeline.write_block(bench.path, request)
    with pytest.raises(BadRecordError, match="inner checksum"):
        await bench.read(request.target)


async def test_sealing_twice_gives_another_record_each_time(bench: Bench) -> None:
    request = await bench.write_request(b"same bytes")
    scheduled = await pipeline.schedule(bench.path, pipeline.admit(bench.path, request))
    digested = pipeline.digest(bench.path, scheduled)
    one, other = (pipeline.seal(bench.path, digested) for _ in range(2))
    assert one.identity.generation != other.identity.generation
    assert bytes(one.record) != bytes(other.record)
    assert b"same bytes" not in bytes(one.record)
    assert one.tag != other.tag
    scheduled.slot.release()
    bench.service.admission.settle_bytes(request.reservation, len(request.payload), 0)


async def test_placing_is_stable_and_replicas_lie_on_different_media(mirrored: Bench) -> None:
    request = await mirrored.write_request(b"data")
    await pipeline.write_block(mirrored.path, request)
    await pipeline.write_block(mirrored.path, request)
    row = mirrored.service.catalog.blocks.locate_staged(
        request.target.attachment, request.target.tenant, request.target.ino, 0
    )
    assert row is not None
    assert sorted(place.medium for place in row.locations) == [0, 1]
    stored = []
    for place in row.locations:
        buffer = bytearray(4096)
        await mirrored.service.store.read_into(place, memoryview(buffer))
        stored.append(bytes(buffer))
    assert stored[0] == stored[1]


async def test_a_write_waits_for_a_medium_that_comes_back(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    request = await bench.write_request(b"first")
    await pipeline.write_block(bench.path, request)  # the segment is open now
    bench.media[0].set_faults([Fault(FaultKind.ERROR, Operation.WRITE, at=frozenset({1, 2}))])
    request = await bench.write_request(b"data")
    await pipeline.write_block(bench.path, request)
    assert bench.service.metrics.counters.medium_retries == 2
    assert await bench.read(request.target) == b"data"


async def test_a_write_gives_up_at_the_deadline(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    request = await bench.write_request(b"data")
    bench.media[0].set_faults([Fault(FaultKind.ERROR, Operation.WRITE, probability=1.0)])
    started = trio.current_time()
    with pytest.raises(MediumUnavailableError, match="gave up after 200 ms"):
        await pipeline.write_block(bench.path, request)
    assert 0.2 <= trio.current_time() - started <= 0.5
    assert bench.holds_nothing()


async def test_commit_stages_a_row_that_nobody_else_sees(bench: Bench) -> None:
    request = await bench.write_request(b"data")
    committed = await pipeline.write_block(bench.path, request)
    assert committed.grown_bytes == 4
    target = request.target
    blocks = bench.service.catalog.blocks
    assert blocks.locate(target.tenant, target.ino, 0) is None
    row = blocks.locate_staged(target.attachment, target.tenant, target.ino, 0)
    assert row is not None
    assert (row.generation, row.length) == (committed.generation, 4)
    again = await pipeline.write_block(bench.path, WriteRequest(target, b"longer data", request.reservation))
    assert again.grown_bytes == 7
    assert bench.staged_bytes() == 11 == bench.service.admission.reserved_bytes(target.tenant)


async def test_a_full_pool_is_said_to_be_full_and_reads_go_on(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path, Layout(eviction=False))  # 16 segments of 4 MiB, 3 records of a full block in each
    async with serving(pool) as service:
        host = Host(InProcessQueuePair(service.attach(TENANT)))
        data = os.urandom(MIB)
        stored = 0

        async def fill() -> None:
            nonlocal stored
            while stored < 64:
                await host.store(b"%d" % stored, data)
                stored += 1

        with pytest.raises(PoolFullError):
            await fill()
        assert stored >= 24
        assert await host.load(b"0") == data
        assert service.metrics.counters.pool_full_refusals >= 1


# --- read path -----------------------------------------------------------------------------------------


async def test_a_hole_is_empty_and_an_unknown_object_is_not_found(bench: Bench) -> None:
    attributes = await bench.host.store(b"file", b"data")
    assert await bench.host.read_block(attributes.ino, 5) == b""
    with pytest.raises(NotFoundError):
        await bench.host.read_block(attributes.ino + 1000)
    with pytest.raises(FileTooLargeError):
        await bench.host.read_block(attributes.ino, -1)


async def test_one_bad_replica_is_passed_over(mirrored: Bench) -> None:
    attributes = await mirrored.host.store(b"file", b"data")
    await damage(mirrored, attributes.ino, replicas=1)
    assert await mirrored.host.read_block(attributes.ino) == b"data"
    assert mirrored.service.metrics.counters.bad_records == 1
    assert (await mirrored.host.lookup(b"file")).ino == attributes.ino


async def test_a_medium_that_is_away_is_passed_over(mirrored: Bench) -> None:
    attributes = await mirrored.host.store(b"file", b"data")
    row = mirrored.service.catalog.blocks.locate(mirrored.session.tenant, attributes.ino, 0)
    assert row is not None
    mirrored.media[row.locations[0].medium].set_faults([Fault(FaultKind.ERROR, Operation.READ, probability=1.0)])
    assert await mirrored.host.read_block(attributes.ino) == b"data"
    assert mirrored.service.metrics.counters.medium_retries == 0


async def test_a_read_waits_for_a_medium_that_comes_back(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    attributes = await bench.host.store(b"file", b"data")
    bench.media[0].set_faults([Fault(FaultKind.ERROR, Operation.READ, at=frozenset({1, 2, 3}))])
    assert await bench.host.read_block(attributes.ino) == b"data"
    assert bench.service.metrics.counters.medium_retries == 3


async def test_a_medium_that_hangs_costs_the_deadline_and_no_more(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    attributes = await bench.host.store(b"file", b"data")
    bench.media[0].set_faults([Fault(FaultKind.DELAY, Operation.READ, probability=1.0, delay_ms=3_600_000)])
    started = trio.current_time()
    with pytest.raises(MediumUnavailableError):
        await bench.host.read_block(attributes.ino)
    assert trio.current_time() - started < 0.5
    assert bench.holds_nothing()
    bench.media[0].set_faults(())
    assert await bench.host.read_block(attributes.ino) == b"data", "an absent medium costs no data"


async def test_a_record_that_garbage_collection_moves_under_a_read_is_found_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = await bench.host.store(b"file", b"data")
    catalog, store, tenant = bench.service.catalog, bench.service.store, bench.session.tenant
    right = pipeline.read
    moves = 0

    async def moved_meanwhile(path: pipeline.DataPath, located: stages.Located) -> stages.Fetched:
        nonlocal moves
        fetched = await right(path, located)
        if not moves:
            moves += 1
            new = await store.append_copy(located.location, fetched.record)
            with catalog.transaction():
                placed = PlacedBlock(tenant, attributes.ino, 0, located.row)
                assert catalog.blocks.relocate(placed, located.location, new)
            store.settle([new])
            fetched.record[:] = bytes(len(fetched.record))  # and the old place was used again
        return fetched

    monkeypatch.setattr(pipeline, "read", moved_meanwhile)
    assert await bench.host.read_block(attributes.ino) == b"data"
    assert moves == 1
    assert (await bench.host.lookup(b"file")).ino == attributes.ino, "not quarantined"


async def test_a_removed_object_never_reads_as_a_hole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = await bench.host.store(b"file", b"data")
    right = pipeline.schedule_read

    async def removed_meanwhile(path: pipeline.DataPath, admitted: stages.AdmittedRead) -> stages.ScheduledRead:
        scheduled = await right(path, admitted)
        row = bench.service.catalog.inodes.get(admitted.target.tenant, admitted.target.ino)
        with bench.service.catalog.transaction():
            bench.service.catalog.inodes.destroy(admitted.target.tenant, row)
        return scheduled

    monkeypatch.setattr(pipeline, "schedule_read", removed_meanwhile)
    with pytest.raises(NotFoundError):
        await bench.host.read_block(attributes.ino)


async def test_staged_blocks_are_read_by_their_writer_only(bench: Bench) -> None:
    attributes = await bench.host.store(b"file", b"old")
    await bench.host.write_block(attributes.ino, 0, b"new")
    assert await bench.host.read_block(attributes.ino, staged=True) == b"new"
    assert await bench.host.read_block(attributes.ino) == b"old"
    other = Host(InProcessQueuePair(bench.service.attach(TENANT)))
    assert await other.read_block(attributes.ino, staged=True) == b"old"


async def damage(bench: Bench, ino: int, replicas: int) -> None:
    """Flip a bit in the stored bytes of the first replicas of block 0."""
    row = bench.service.catalog.blocks.locate(bench.session.tenant, ino, 0)
    assert row is not None
    for place in row.locations[:replicas]:
        space = bench.service.store.spaces[place.medium]
        at = space.byte_offset(place, 4096)
        buffer = bytearray(4096)
        await space.medium.read_into(at, memoryview(buffer))
        buffer[130] ^= 1
        await space.medium.write(at, memoryview(buffer))


async def test_statuses_of_the_paths_reach_the_completion(bench: Bench) -> None:
    attributes = await bench.host.store(b"file", b"data")
    await damage(bench, attributes.ino, replicas=1)
    with pytest.raises(BadRecordError, match="every replica is bad"):
        await bench.host.submit(ReadBlock(attributes.ino, 0, False))
    counts = bench.service.metrics.command_counts("ReadBlock")
    assert counts[Status.BAD_RECORD] == 1
    reply = await bench.host.submit(WriteBlock(await bench.host.allocate(), 0), memoryview(b"data"))
    assert reply.result == Done()

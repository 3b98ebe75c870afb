"""Staging over the fake DPU half, which checks that payloads hold still and that no WriteBlock overlaps a Commit."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio
import trio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs.blockreads import BlockReads
from kvfs.commands import Attributes, Placement
from kvfs.errors import (
    FileTooLargeError,
    InternalError,
    KvfsError,
    MediumUnavailableError,
    PoolFullError,
    QuotaExceededError,
)
from kvfs.limits import BLOCK_BYTES, FILE_MAX_BYTES, MIB
from kvfs.openfile import OpenFile
from kvfs.staging import Staging
from tests.kvfs.fake_dpu import FakeDpu

PLACES = 4


def attributes(ino: int) -> Attributes:
    return Attributes(ino, 0o100644, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0)


@dataclass
class Bench:
    dpu: FakeDpu
    staging: Staging
    reads: BlockReads

    async def create(self, name: str) -> OpenFile:
        ino = (await self.dpu.submit(_allocate())).result.ino  # type: ignore[union-attr]
        return OpenFile(attributes(ino), entry=Placement(1, name.encode()), published=False)

    async def published(self, name: str, data: bytes) -> OpenFile:
        file = await self.create(name)
        await self.staging.write(file, 0, data)
        await self.staging.commit(file)
        self.dpu.calls.clear()
        self.reads.drop_all()
        return OpenFile(file.committed)


def _allocate() -> object:
    from kvfs.commands import AllocateIno

    return AllocateIno()


def make(dpu: FakeDpu, nursery: trio.Nursery) -> Bench:
    reads = BlockReads(dpu, nursery, cache_bytes=4 * BLOCK_BYTES)
    return Bench(dpu, Staging(dpu, nursery, reads, memory_bytes=PLACES * BLOCK_BYTES), reads)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        yield make(FakeDpu(), nursery)
        nursery.cancel_scope.cancel()


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


# --- the straight path -----------------------------------------------------------------------------------


async def test_nothing_is_visible_before_the_commit_and_all_of_it_after(bench: Bench) -> None:
    data = pattern(3 * MIB + 5)
    file = await bench.create("f")
    await bench.staging.write(file, 0, data)
    assert bench.dpu.nodes[1].entries == {}
    assert await bench.staging.commit(file)
    assert bench.dpu.content("f") == data
    assert not await bench.staging.commit(file)
    assert bench.dpu.calls["Commit"] == 1
    assert bench.staging.used_blocks == 0


async def test_full_blocks_go_in_the_background_the_rest_at_the_commit(bench: Bench) -> None:
    file = await bench.create("f")
    for start in range(0, BLOCK_BYTES + 4096, 4096):
        await bench.staging.write(file, start, pattern(4096, start))
    await trio.testing.wait_all_tasks_blocked()
    assert bench.dpu.calls["WriteBlock"] == 1
    await bench.staging.commit(file)
    assert bench.dpu.calls["WriteBlock"] == 2
    assert bench.dpu.content("f") == b"".join(pattern(4096, s) for s in range(0, BLOCK_BYTES + 4096, 4096))


async def test_requests_that_are_not_block_aligned_send_each_block_once(bench: Bench) -> None:
    data = pattern(2 * MIB)
    file = await bench.create("f")
    for start, stop in ((0, 1048528), (1048528, 2097104), (2097104, 2097152)):
        await bench.staging.write(file, start, data[start:stop])
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == data
    assert (bench.dpu.calls["WriteBlock"], bench.dpu.calls["ReadBlock"]) == (2, 0)


async def test_overwriting_in_place_from_front_to_back_reads_nothing(bench: Bench) -> None:
    file = await bench.published("f", pattern(2 * MIB))
    data = pattern(2 * MIB, 2)
    for start, stop in ((0, 1048528), (1048528, 2097104), (2097104, 2097152)):
        await bench.staging.write(file, start, data[start:stop])
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == data
    assert bench.dpu.calls["ReadBlock"] == 0


async def test_a_partial_overwrite_keeps_the_rest(bench: Bench) -> None:
    old = pattern(2 * MIB)
    file = await bench.published("f", old)
    await bench.staging.write(file, 100, b"new")
    await bench.staging.write(file, MIB, b"head")
    await bench.staging.commit(file)
    want = bytearray(old)
    want[100:103], want[MIB : MIB + 4] = b"new", b"head"
    assert bench.dpu.content("f") == want


async def test_the_committed_content_stays_until_the_commit(bench: Bench) -> None:
    old = pattern(2 * MIB)
    file = await bench.published("f", old)
    await bench.staging.truncate(file, 0)
    await bench.staging.write(file, 0, pattern(3 * MIB, 2))
    await trio.testing.wait_all_tasks_blocked()
    assert bench.dpu.content("f") == old
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == pattern(3 * MIB, 2)


async def test_second_half_first_sends_a_block_once(bench: Bench) -> None:
    data = pattern(MIB)
    file = await bench.create("f")
    await bench.staging.write(file, MIB // 2, data[MIB // 2 :])
    await bench.staging.write(file, 0, data[: MIB // 2])
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == data
    assert (bench.dpu.calls["WriteBlock"], bench.dpu.calls["ReadBlock"]) == (1, 0)


# --- sizes -----------------------------------------------------------------------------------------------


async def test_what_is_cut_off_never_comes_back(bench: Bench) -> None:
    file = await bench.published("f", b"x" * (2 * MIB + 10))
    await bench.staging.truncate(file, MIB + 7)
    await bench.staging.truncate(file, 3 * MIB)
    assert bytes(await bench.staging.read(file, MIB, 20)) == b"x" * 7 + bytes(13)
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == b"x" * (MIB + 7) + bytes(2 * MIB - 7)
    await bench.staging.truncate(file, 5)
    await bench.staging.truncate(file, MIB)
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == b"xxxxx" + bytes(MIB - 5)


async def test_what_was_cached_of_cut_off_blocks_is_not_served_again(bench: Bench) -> None:
    file = await bench.published("f", b"x" * (2 * MIB))
    await bench.reads.verify(file.ino, file.size)
    await bench.staging.truncate(file, 0)
    await bench.staging.truncate(file, 2 * MIB)
    await bench.staging.commit(file)
    assert bytes(await bench.reads.read(file.ino, file.size, MIB, MIB)) == bytes(MIB)


async def test_no_block_is_sent_while_a_commit_is_under_way(bench: Bench) -> None:
    """The fake asserts it; here a full block arrives in the middle of a commit."""
    file = await bench.create("f")
    await bench.staging.write(file, 0, b"a" * MIB)
    bench.dpu.holds["Commit"] = hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.staging.commit, file)
        await trio.testing.wait_all_tasks_blocked()
        await bench.staging.write(file, MIB, b"b" * MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.dpu.calls["WriteBlock"] == 1
        hold.set()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.dpu.calls["WriteBlock"] == 2
    assert file.dirty
    assert bench.dpu.content("f") == b"a" * MIB
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == b"a" * MIB + b"b" * MIB


async def test_blocks_that_were_sent_and_cut_off_are_discarded(bench: Bench) -> None:
    file = await bench.create("f")
    await bench.staging.write(file, 0, b"y" * (3 * MIB))
    await trio.testing.wait_all_tasks_blocked()
    await bench.staging.truncate(file, MIB + 1)
    assert bench.dpu.calls["Discard"] == 1
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == b"y" * (MIB + 1)


async def test_sparse_files_cost_nothing(bench: Bench) -> None:
    file = await bench.create("f")
    await bench.staging.truncate(file, FILE_MAX_BYTES)
    await bench.staging.write(file, 1 << 40, b"island")
    assert bytes(await bench.staging.read(file, (1 << 40) - 2, 10)) == bytes(2) + b"island" + bytes(2)
    await bench.staging.commit(file)
    assert bench.dpu.calls["WriteBlock"] == 1
    assert bench.dpu.at("f").size == FILE_MAX_BYTES


@pytest.mark.parametrize("offset", [FILE_MAX_BYTES, FILE_MAX_BYTES - 1, (1 << 63) - 2])
async def test_too_large_is_refused_and_harms_nothing(bench: Bench, offset: int) -> None:
    file = await bench.create("f")
    await bench.staging.write(file, 0, b"keep")
    with pytest.raises(FileTooLargeError):
        await bench.staging.write(file, offset, b"ab")
    with pytest.raises(FileTooLargeError):
        await bench.staging.truncate(file, offset + 2)
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == b"keep"


# --- memory ----------------------------------------------------------------------------------------------


async def test_dirty_memory_is_bounded_whatever_the_number_of_writers(bench: Bench) -> None:
    files = [await bench.create(f"f{number}") for number in range(12)]
    most = 0

    async def write(number: int, file: OpenFile) -> None:
        nonlocal most
        for step in range(6):
            await bench.staging.write(file, step * 300_000, pattern(300_000, number * 10 + step))
            most = max(most, bench.staging.used_blocks)
        await bench.staging.commit(file)

    async with trio.open_nursery() as nursery:
        for number, file in enumerate(files):
            nursery.start_soon(write, number, file)
    assert most <= PLACES
    for number in range(12):
        want = b"".join(pattern(300_000, number * 10 + step) for step in range(6))
        assert bench.dpu.content(f"f{number}") == want


async def test_the_least_recently_written_partial_block_is_sent_early(bench: Bench) -> None:
    files = [await bench.create(f"f{number}") for number in range(PLACES + 1)]
    for file in files[:PLACES]:
        await bench.staging.write(file, 0, b"a")
    await bench.staging.write(files[0], 1, b"b")
    await bench.staging.write(files[PLACES], 0, b"c")
    assert files[1].sent == {0: 1}
    assert not files[0].sent
    for file in files:
        await bench.staging.commit(file)
    assert bench.dpu.content("f0") == b"ab"


# --- poison ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MediumUnavailableError, PoolFullError, QuotaExceededError])
async def test_a_lost_block_poisons_with_its_cause(bench: Bench, error: type[KvfsError]) -> None:
    file = await bench.create("f")
    bench.dpu.fail("WriteBlock", error("gone"), nth=2)
    await bench.staging.write(file, 0, pattern(3 * MIB))  # acknowledged
    await trio.testing.wait_all_tasks_blocked()
    for call in (
        lambda: bench.staging.commit(file),
        lambda: bench.staging.write(file, 0, b"x"),
        lambda: bench.staging.truncate(file, 0),
        lambda: bench.staging.read(file, 0, 1),
        lambda: bench.staging.commit(file),
    ):
        with pytest.raises(error):
            await call()
    assert bench.dpu.nodes[1].entries == {}
    assert bench.dpu.calls["Commit"] == 0
    await bench.staging.discard(file)
    assert not bench.dpu.staged
    assert bench.staging.used_blocks == 0


async def test_poison_is_told_once_at_its_moment_and_holds_no_buffer(bench: Bench) -> None:
    file = await bench.create("f")
    told: list[OpenFile] = []
    file.on_poison = told.append
    bench.dpu.fail("WriteBlock", QuotaExceededError("full"), times=3)
    await bench.staging.write(file, 0, pattern(3 * MIB))
    assert told == []
    await trio.testing.wait_all_tasks_blocked()
    assert told == [file]
    with pytest.raises(QuotaExceededError):
        await bench.staging.write(file, 0, b"x")
    assert told == [file]
    assert isinstance(file.poison, QuotaExceededError)
    assert file.poison.__traceback__ is None, "its frames hold what the writer wrote"


@pytest.mark.parametrize("size", [100, MIB])
async def test_a_writer_that_waited_for_room_leaves_nothing_in_a_poisoned_file(bench: Bench, size: int) -> None:
    file = await bench.create("f")
    bench.dpu.holds["WriteBlock"] = trio.Event()
    bench.dpu.fail("WriteBlock", QuotaExceededError("full"))
    await bench.staging.write(file, 0, pattern(PLACES * MIB))

    async def second() -> None:
        with pytest.raises(QuotaExceededError):
            await bench.staging.write(file, PLACES * MIB, pattern(size))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.staging.used_blocks == PLACES
        bench.dpu.holds.pop("WriteBlock").set()
        await trio.testing.wait_all_tasks_blocked()
        await bench.staging.discard(file)
    await bench.staging.discard(file)
    assert bench.staging.used_blocks == 0
    assert not file.blocks


async def test_a_writer_that_waited_for_room_fetches_nothing_for_a_poisoned_file(bench: Bench) -> None:
    """What it would fetch is staged content, which readers of the committed version must not find in the cache."""
    file = await bench.published("f", pattern(MIB))
    await bench.staging.write(file, 0, pattern(MIB, 2))
    await trio.testing.wait_all_tasks_blocked()
    bench.dpu.holds["WriteBlock"] = trio.Event()
    bench.dpu.fail("WriteBlock", QuotaExceededError("full"))
    await bench.staging.write(file, MIB, pattern(PLACES * MIB))

    async def second() -> None:
        with pytest.raises(QuotaExceededError):
            await bench.staging.write(file, 500, b"leaves a gap")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        bench.dpu.holds.pop("WriteBlock").set()
    assert bench.dpu.calls["ReadBlock"] == 0


async def test_a_poisoned_file_is_discarded_once(bench: Bench) -> None:
    """What is staged of the same object later is another file's."""
    failed = await bench.published("f", b"old")
    bench.dpu.fail("WriteBlock", QuotaExceededError("full"), nth=2)
    await bench.staging.write(failed, 0, pattern(2 * MIB))
    with pytest.raises(QuotaExceededError):
        await bench.staging.commit(failed)
    await bench.staging.discard(failed)
    assert not bench.dpu.staged.get(failed.ino)
    anew = OpenFile(failed.committed)
    await bench.staging.write(anew, 0, pattern(MIB, 2))
    await trio.testing.wait_all_tasks_blocked()
    await bench.staging.discard(failed)
    await bench.staging.commit(anew)
    assert bench.dpu.content("f") == pattern(MIB, 2)


async def test_a_discard_that_fails_is_done_again(bench: Bench) -> None:
    failed = await bench.published("f", b"old")
    bench.dpu.fail("WriteBlock", QuotaExceededError("full"), nth=2)
    await bench.staging.write(failed, 0, pattern(2 * MIB))
    with pytest.raises(QuotaExceededError):
        await bench.staging.commit(failed)
    bench.dpu.fail("Discard", MediumUnavailableError("gone"))
    with pytest.raises(MediumUnavailableError):
        await bench.staging.discard(failed)
    await bench.staging.discard(failed)
    assert not bench.dpu.staged.get(failed.ino)


async def test_a_read_over_several_blocks_is_never_half_of_what_was_lost(bench: Bench) -> None:
    """The file is poisoned and discarded between the fetches of two staged blocks."""
    file = await bench.published("f", pattern(3 * MIB))
    await bench.staging.write(file, 0, pattern(3 * MIB, 2))
    await trio.testing.wait_all_tasks_blocked()
    bench.reads.drop_all()
    bench.dpu.holds["ReadBlock"] = trio.Event()

    async def read() -> None:
        with pytest.raises(QuotaExceededError):
            await bench.staging.read(file, 0, 3 * MIB)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        file.poison_with(QuotaExceededError("full"))
        await bench.staging.discard(file)
        bench.dpu.holds.pop("ReadBlock").set()


async def test_the_last_block_failing_fails_the_commit(bench: Bench) -> None:
    file = await bench.create("f")
    await bench.staging.write(file, 0, b"tail")
    bench.dpu.fail("WriteBlock", MediumUnavailableError("gone"))
    with pytest.raises(MediumUnavailableError):
        await bench.staging.commit(file)
    with pytest.raises(MediumUnavailableError):
        await bench.staging.commit(file)


@pytest.mark.parametrize("command", ["WriteBlock", "Commit"])
async def test_a_bug_below_poisons_too(bench: Bench, command: str) -> None:
    file = await bench.create("f")
    await bench.staging.write(file, 0, b"tail")
    bench.dpu.fail(command, RuntimeError("bug"))
    for _ in range(2):
        with pytest.raises(InternalError):
            await bench.staging.commit(file)


async def test_a_write_that_cannot_load_what_it_overwrites_poisons(bench: Bench) -> None:
    old = pattern(MIB)
    file = await bench.published("f", old)
    bench.dpu.fail("ReadBlock", MediumUnavailableError("gone"))
    with pytest.raises(MediumUnavailableError):
        await bench.staging.write(file, 500, b"x")
    with pytest.raises(MediumUnavailableError):
        await bench.staging.commit(file)
    await bench.staging.discard(file)
    assert bench.dpu.content("f") == old
    assert bench.staging.used_blocks == 0


async def test_a_read_that_fails_harms_nothing(bench: Bench) -> None:
    old = pattern(2 * MIB)
    file = await bench.published("f", old)
    await bench.staging.write(file, 0, b"x")
    bench.dpu.fail("ReadBlock", MediumUnavailableError("gone"))
    with pytest.raises(MediumUnavailableError):
        await bench.staging.read(file, 0, MIB)
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == b"x" + old[1:]


async def test_an_unlinked_file_is_never_published_and_discarded_whole(bench: Bench) -> None:
    file = await bench.create("f")
    await bench.staging.write(file, 0, pattern(2 * MIB + 1))
    file.unlinked = True
    assert not await bench.staging.commit(file)
    assert bytes(await bench.staging.read(file, 2 * MIB, 9)) == pattern(2 * MIB + 1)[-1:]
    await bench.staging.discard(file)
    assert not bench.dpu.staged
    assert bench.dpu.nodes[1].entries == {}


# --- all together ----------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 3 * MIB), st.sampled_from([1, 48, 4096, 300_000, MIB, MIB + 48])),
        st.tuples(st.just("aligned"), st.integers(0, 3), st.just(MIB)),
        st.tuples(st.just("truncate"), st.integers(0, 4 * MIB), st.just(0)),
        st.tuples(st.just("read"), st.integers(0, 4 * MIB), st.integers(1, 2 * MIB)),
        st.tuples(st.just("commit"), st.just(0), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=int(os.environ.get("KVFS_EXAMPLES", "60")), deadline=None)
@given(steps=STEPS, others=st.integers(0, 3))
def test_any_sequence_equals_a_bytearray(steps: list[tuple[str, int, int]], others: int) -> None:
    """`others`: dirty blocks of other files, so that this one's are sent early."""
    trio.run(_run_sequence, steps, others)


async def _run_sequence(steps: list[tuple[str, int, int]], others: int) -> None:
    async with trio.open_nursery() as nursery:
        bench = make(FakeDpu(), nursery)
        for number in range(others):
            await bench.staging.write(await bench.create(f"other{number}"), 0, b"dirty")
        file, model, committed = await bench.create("f"), bytearray(), None
        for number, (what, offset, length) in enumerate(steps):
            if what == "aligned":
                what, offset = "write", offset * MIB
            if what == "write":
                data = bytes([number + 1]) * length
                await bench.staging.write(file, offset, data)
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + length] = data
            elif what == "truncate":
                await bench.staging.truncate(file, offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            elif what == "read":
                assert await bench.staging.read(file, offset, length) == model[offset : offset + length]
            else:
                await bench.staging.commit(file)
                committed = bytes(model)
            if committed is not None:
                assert bench.dpu.content("f") == committed
        assert await bench.staging.read(file, 0, len(model) + 1) == model
        await bench.staging.commit(file)
        assert bench.dpu.content("f") == model
        assert bench.staging.used_blocks <= PLACES
        nursery.cancel_scope.cancel()


async def test_many_writers_at_offsets_of_one_file_with_commits_between(bench: Bench) -> None:
    file = await bench.create("f")
    pieces = [(start, pattern(70_001, start)) for start in range(0, 5 * MIB, 70_001)]
    random.Random(5).shuffle(pieces)

    async def write(mine: list[tuple[int, bytes]]) -> None:
        for start, data in mine:
            await bench.staging.write(file, start, data)
            await trio.lowlevel.checkpoint()

    async def commit() -> None:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
            await bench.staging.commit(file)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(write, pieces[number::8])
        nursery.start_soon(commit)
    await bench.staging.commit(file)
    assert bench.dpu.content("f") == b"".join(data for _, data in sorted(pieces))

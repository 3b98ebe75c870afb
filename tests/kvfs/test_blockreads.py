"""Reading blocks: bounded cache, one fetch per block, verify at open, look-ahead, nothing stale."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio

from kvfs.blockreads import BlockReads
from kvfs.errors import BadRecordError, InternalError, MediumUnavailableError
from kvfs.limits import BLOCK_BYTES, LOOK_AHEAD_BLOCKS
from tests.kvfs.fake_dpu import FakeDpu, Node

FILE = 7


def content(index: int) -> bytes:
    return bytes([index + 1]) * BLOCK_BYTES


@dataclass
class Bench:
    dpu: FakeDpu
    reads: BlockReads
    nursery: trio.Nursery


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    dpu = FakeDpu()
    node = dpu.nodes[FILE] = Node(FILE, 0o100644, 0, 0)
    node.blocks = {index: content(index) for index in range(16)}
    async with trio.open_nursery() as nursery:
        yield Bench(dpu, BlockReads(dpu, nursery, cache_bytes=4 * BLOCK_BYTES), nursery)
        nursery.cancel_scope.cancel()


SIZE = 16 * BLOCK_BYTES


async def test_one_block_is_a_view_of_the_cached_plaintext(bench: Bench) -> None:
    data = await bench.reads.read(FILE, SIZE, BLOCK_BYTES + 5, 100)
    assert isinstance(data, memoryview)
    assert bytes(data) == content(1)[:100]
    assert bench.dpu.calls["ReadBlock"] == 1


@pytest.mark.parametrize("offset", [BLOCK_BYTES - 48, 0, 2 * BLOCK_BYTES - 1])
@pytest.mark.parametrize("length", [96, BLOCK_BYTES, BLOCK_BYTES + 96, 3 * BLOCK_BYTES])
async def test_reads_across_blocks(bench: Bench, offset: int, length: int) -> None:
    whole = b"".join(content(index) for index in range(6))
    assert await bench.reads.read(FILE, SIZE, offset, length) == whole[offset : offset + length]


async def test_end_of_file_and_holes(bench: Bench) -> None:
    bench.dpu.nodes[FILE].blocks = {0: b"abc", 2: b"xyz"}
    size = 2 * BLOCK_BYTES + 3
    assert await bench.reads.read(FILE, size, 0, 10) == b"abc" + bytes(7)
    assert await bench.reads.read(FILE, size, BLOCK_BYTES, 8) == bytes(8)
    assert await bench.reads.read(FILE, size, 2 * BLOCK_BYTES - 2, 100) == bytes(2) + b"xyz"
    assert await bench.reads.read(FILE, size, size, 1) == b""
    assert await bench.reads.read(FILE, size, 1 << 62, 1) == b""


async def test_the_cache_is_bounded_and_gives_buffers_back(bench: Bench) -> None:
    for index in range(16):
        await bench.reads.fetch(FILE, index, staged=False)
        assert bench.reads.cache.used_bytes <= 4 * BLOCK_BYTES
    assert bench.dpu.released == 12
    bench.reads.drop(FILE)
    assert (bench.dpu.released, bench.reads.cache.used_bytes) == (16, 0)


async def test_the_number_of_cached_holes_is_bounded(bench: Bench) -> None:
    bench.dpu.nodes[FILE].blocks = {}
    for index in range(2000):
        await bench.reads.fetch(FILE, index, staged=False)
    assert len(bench.reads.cache._blocks) <= 4 * BLOCK_BYTES // 4096


async def test_a_small_block_does_not_hold_a_whole_buffer(bench: Bench) -> None:
    bench.dpu.nodes[FILE].blocks = {0: b"small"}
    view = await bench.reads.fetch(FILE, 0, staged=False)
    assert bench.dpu.released == 1
    assert bytes(view) == b"small"
    assert bench.reads.cache.used_bytes == 4096


async def test_a_block_read_to_its_end_goes_first(bench: Bench) -> None:
    for index in range(3):
        await bench.reads.fetch(FILE, index, staged=False)
    await bench.reads.read(FILE, SIZE, 2 * BLOCK_BYTES, BLOCK_BYTES)
    for index in (3, 4):
        await bench.reads.fetch(FILE, index, staged=False)
    assert sorted(bench.reads.cache.indices(FILE)) == [0, 1, 3, 4]


async def test_concurrent_readers_of_a_block_share_one_fetch(bench: Bench) -> None:
    got: list[bytes] = []

    async def read() -> None:
        got.append(bytes(await bench.reads.fetch(FILE, 3, staged=False)))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(read)
    assert got == [content(3)] * 8
    assert bench.dpu.calls["ReadBlock"] == 1


async def test_a_waiter_never_sees_a_buffer_that_was_given_back(bench: Bench) -> None:
    """The fake fills released buffers with garbage; the cache holds one block, so each fetch evicts the last."""
    reads = BlockReads(bench.dpu, bench.nursery, cache_bytes=BLOCK_BYTES)

    async def read(index: int) -> None:
        assert bytes(await reads.fetch(FILE, index, staged=False)) == content(index)

    async with trio.open_nursery() as nursery:
        for number in range(32):
            nursery.start_soon(read, number % 4)


async def test_verify_fetches_all_blocks_at_once_and_keeps_them(bench: Bench) -> None:
    bench.dpu.holds["ReadBlock"] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reads.verify, FILE, 3 * BLOCK_BYTES + 1)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.dpu.calls["ReadBlock"] == 4
        bench.dpu.holds["ReadBlock"].set()
    await bench.reads.read(FILE, SIZE, 0, 4 * BLOCK_BYTES)
    assert bench.dpu.calls["ReadBlock"] == 4


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("error", [BadRecordError, MediumUnavailableError])
async def test_verify_raises_the_failure_of_any_block(bench: Bench, nth: int, error: type) -> None:
    bench.dpu.fail("ReadBlock", error("bad"), nth)
    with pytest.raises(error):
        await bench.reads.verify(FILE, 3 * BLOCK_BYTES)


async def test_an_unexpected_error_becomes_internal_and_leaves_no_fetch_behind(bench: Bench) -> None:
    bench.dpu.fail("ReadBlock", RuntimeError("bug"))
    with pytest.raises(InternalError):
        await bench.reads.fetch(FILE, 0, staged=False)
    assert bytes(await bench.reads.fetch(FILE, 0, staged=False)) == content(0)


async def test_look_ahead_stops_at_the_end_of_the_file(bench: Bench) -> None:
    bench.reads.look_ahead(FILE, SIZE, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(bench.reads.cache.indices(FILE)) == list(range(1, 1 + LOOK_AHEAD_BLOCKS))
    bench.reads.drop(FILE)
    bench.reads.look_ahead(FILE, SIZE, 14)
    await trio.testing.wait_all_tasks_blocked()
    assert bench.reads.cache.indices(FILE) == [15]


async def test_what_changed_while_it_was_fetched_is_not_cached(bench: Bench) -> None:
    bench.dpu.holds["ReadBlock"] = hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reads.verify, FILE, BLOCK_BYTES)
        await trio.testing.wait_all_tasks_blocked()
        bench.reads.drop_block(FILE, 0)
        hold.set()
    assert bench.reads.cache.indices(FILE) == []


async def test_another_generation_drops_the_blocks_of_the_old_one(bench: Bench) -> None:
    bench.reads.note_generation(FILE, 1)
    await bench.reads.fetch(FILE, 0, staged=False)
    bench.reads.note_generation(FILE, 1)
    assert bench.reads.cache.indices(FILE) == [0]
    bench.reads.note_generation(FILE, 2, same_content=True)
    assert bench.reads.cache.indices(FILE) == [0]
    bench.reads.note_generation(FILE, 3)
    assert bench.reads.cache.indices(FILE) == []

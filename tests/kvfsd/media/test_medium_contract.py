"""One suite for every medium: what `Medium` promises holds for files, devices, fakes and wrappers alike."""

import os
import subprocess
from pathlib import Path

import pytest

from kvfs import limits
from kvfs.errors import InvalidArgumentError, KvfsError
from kvfsd.media.append_only import AppendOnlyMedium
from kvfsd.media.base import Capability
from kvfsd.media.faulty import FaultyMedium
from kvfsd.media.file import FileMedium
from kvfsd.media.memory import MemoryMedium
from kvfsd.media.superblocks import FoundSuperblock, format_medium, read_superblock, write_superblock
from kvfsd.media.volatile import VolatileMedium
from kvfsd.ondisk.superblock import DATA_OFFSET_BYTES, SLOT_OFFSETS, Superblock
from kvfsd.ports import InlineOffload, ThreadOffload

UNIT = limits.RECORD_ALIGN_BYTES
SEGMENT = limits.SEGMENT_MIN_BYTES
SIZE = limits.MEDIUM_MIN_BYTES
FIRST = DATA_OFFSET_BYTES


@pytest.fixture
def loop_device(tmp_path):
    """A loop device over a sparse file; skips where the machine gives none."""
    backing = tmp_path / "loop.img"
    with backing.open("wb") as file:
        file.truncate(SIZE)
    try:
        made = subprocess.run(
            ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError as error:
        pytest.skip(f"no losetup: {error}")
    device = made.stdout.strip()
    if made.returncode or not os.access(device, os.W_OK):
        pytest.skip(f"no loop device: {made.stderr.strip() or device}")
    yield Path(device)
    subprocess.run(["losetup", "--detach", device], timeout=10, check=True)


@pytest.fixture(params=["file", "file inline", "loop", "memory", "append-only", "faulty", "volatile"])
async def medium(request, tmp_path):
    match request.param:
        case "file":
            made = FileMedium.create(tmp_path / "medium", SIZE, ThreadOffload())
        case "file inline":
            made = FileMedium.create(tmp_path / "medium", SIZE, InlineOffload())
        case "loop":
            made = FileMedium.open(request.getfixturevalue("loop_device"), ThreadOffload())
        case "memory":
            made = MemoryMedium("memory", SIZE)
        case "append-only":
            made = AppendOnlyMedium(MemoryMedium("append-only", SIZE), SEGMENT)
        case "faulty":
            made = FaultyMedium(MemoryMedium("faulty", SIZE), seed=1)
        case "volatile":
            made = VolatileMedium(MemoryMedium("volatile", SIZE))
    yield made
    await made.aclose()


def pattern(length: int, seed: int = 1) -> memoryview:
    return memoryview(bytes((index * 31 + seed) % 251 + 1 for index in range(UNIT)) * (length // UNIT))


async def content(medium, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    await medium.read_into(offset, memoryview(buffer))
    return bytes(buffer)


async def test_says_its_size(medium):
    assert medium.size_bytes == SIZE
    assert medium.name


async def test_unwritten_space_reads_as_zeros(medium):
    assert await content(medium, FIRST, 3 * UNIT) == bytes(3 * UNIT)
    assert await content(medium, SIZE - UNIT, UNIT) == bytes(UNIT)


@pytest.mark.parametrize("length", [UNIT, 64 * 1024, 64 * 1024 + UNIT, limits.MIB + UNIT])
async def test_appends_read_back(medium, length):
    first, second = pattern(length, 1), pattern(length, 2)
    await medium.write(FIRST, first)
    await medium.write(FIRST + length, second)
    assert await content(medium, FIRST, length) == first
    assert await content(medium, FIRST + length - UNIT, 2 * UNIT) == bytes(first[-UNIT:]) + bytes(second[:UNIT])
    await medium.flush()
    assert await content(medium, FIRST + length, length) == second


async def test_a_segment_can_be_put_whole_and_again_after_trim(medium):
    offset = FIRST + 2 * SEGMENT
    await medium.write(offset, pattern(SEGMENT, 3))
    assert await content(medium, offset + SEGMENT - UNIT, UNIT) == pattern(UNIT, 3)
    await medium.trim(offset, SEGMENT)
    await medium.write(offset, pattern(UNIT, 4))
    assert await content(medium, offset, UNIT) == pattern(UNIT, 4)
    if Capability.TRIM in medium.capabilities:
        assert await content(medium, offset + UNIT, SEGMENT - UNIT) == bytes(SEGMENT - UNIT)


async def test_trim_leaves_the_neighbours(medium):
    for index in range(3):
        await medium.write(FIRST + index * SEGMENT, pattern(SEGMENT, index))
    await medium.trim(FIRST + SEGMENT, SEGMENT)
    assert await content(medium, FIRST + SEGMENT - UNIT, UNIT) == pattern(UNIT, 0)
    assert await content(medium, FIRST + 2 * SEGMENT, UNIT) == pattern(UNIT, 2)


async def test_appends_out_of_order_where_promised(medium):
    if Capability.PARALLEL_APPEND not in medium.capabilities:
        with pytest.raises(InvalidArgumentError, match="ends at 0"):
            await medium.write(FIRST + UNIT, pattern(UNIT))
        return
    await medium.write(FIRST + UNIT, pattern(UNIT, 2))
    await medium.write(FIRST, pattern(UNIT, 1))
    assert await content(medium, FIRST, 2 * UNIT) == bytes(pattern(UNIT, 1)) + bytes(pattern(UNIT, 2))


async def test_superblock_slots_are_overwritten_in_place(medium):
    for round_number in range(3):
        for slot, offset in enumerate(SLOT_OFFSETS):
            await medium.write(offset, pattern(UNIT, round_number + slot))
    assert await content(medium, SLOT_OFFSETS[1], UNIT) == pattern(UNIT, 3)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (FIRST + 512, UNIT),
        (FIRST, 512),
        (SIZE, UNIT),
        (SIZE - UNIT, 2 * UNIT),
        (-UNIT, UNIT),
        (2**63, UNIT),
        (FIRST, 0),
    ],
)
async def test_extents_outside_or_misaligned_are_refused(medium, offset, length):
    with pytest.raises(InvalidArgumentError):
        await medium.write(offset, memoryview(bytes(length)))
    if length:
        with pytest.raises(InvalidArgumentError):
            await medium.read_into(offset, memoryview(bytearray(length)))
    with pytest.raises(InvalidArgumentError):
        await medium.trim(offset, length)


async def test_nothing_works_after_close_and_closing_again_is_harmless(medium):
    await medium.aclose()
    with pytest.raises(KvfsError, match="closed"):
        await medium.read_into(FIRST, memoryview(bytearray(UNIT)))
    with pytest.raises(KvfsError, match="closed"):
        await medium.flush()
    await medium.aclose()


async def test_format_read_and_rewrite_the_superblock(medium):
    wanted = Superblock(pool=bytes(16), medium=bytes(16), medium_index=0, size_bytes=SIZE, segment_bytes=SEGMENT)
    made = await format_medium(medium, wanted)
    assert await read_superblock(medium) == made
    for weight in range(2, 6):
        made = await write_superblock(medium, made, Superblock(bytes(16), bytes(16), 0, SIZE, SEGMENT, weight=weight))
        found = await read_superblock(medium)
        assert found == FoundSuperblock(made.superblock, made.slot)
        assert found.superblock.weight == weight
    assert made.superblock.sequence == 6

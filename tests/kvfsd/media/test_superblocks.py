import dataclasses

import pytest
import trio
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs import limits
from kvfs.errors import ExistsError, FormatError, InvalidArgumentError
from kvfsd.media.faulty import Fault, FaultKind, FaultyMedium, Operation
from kvfsd.media.memory import MemoryMedium
from kvfsd.media.superblocks import format_medium, read_superblock, write_superblock
from kvfsd.ondisk.superblock import SLOT_BYTES, SLOT_OFFSETS, Superblock, UnknownFeatureError

SIZE = limits.MEDIUM_MIN_BYTES
WANTED = Superblock(
    pool=bytes(range(16)), medium=bytes(range(16, 32)), medium_index=0, size_bytes=SIZE, segment_bytes=4 << 20
)


async def made() -> MemoryMedium:
    medium = MemoryMedium("m", SIZE)
    await format_medium(medium, WANTED)
    return medium


async def damage(medium, slot: int) -> None:
    await medium.write(SLOT_OFFSETS[slot], memoryview(b"\x11" * SLOT_BYTES))


@pytest.mark.parametrize("slot", [0, 1])
async def test_one_damaged_slot_is_tolerated_named_and_repaired(slot):
    medium = await made()
    await damage(medium, slot)
    found = await read_superblock(medium)
    assert found.slot == 1 - slot
    assert f"m: superblock slot {slot}: superblock magic" in found.damage
    await write_superblock(medium, found, dataclasses.replace(found.superblock, weight=9))
    again = await read_superblock(medium)
    assert (again.slot, again.damage, again.superblock.weight) == (slot, "", 9)


async def test_two_damaged_slots_are_both_named():
    medium = await made()
    await damage(medium, 0)
    await damage(medium, 1)
    with pytest.raises(FormatError, match=r"no valid superblock: .*slot 0.*slot 1"):
        await read_superblock(medium)


async def test_feature_of_the_future_in_either_slot_refuses():
    medium = await made()
    packed = bytearray(WANTED.pack(0))
    packed[16] = 1
    packed[4088:] = xxhash.xxh3_64_intdigest(bytes(packed[:4088])).to_bytes(8, "little")
    await medium.write(SLOT_OFFSETS[0], memoryview(packed))
    with pytest.raises(UnknownFeatureError, match="unknown incompatible features 0x1"):
        await read_superblock(medium)


async def test_read_only_feature_opens_but_is_not_written():
    medium = MemoryMedium("m", SIZE)
    found = await format_medium(medium, dataclasses.replace(WANTED, ro_compat=2))
    assert (await read_superblock(medium)).superblock.read_only
    with pytest.raises(InvalidArgumentError, match="0x2 of a newer kvfs forbid writing"):
        await write_superblock(medium, found, found.superblock)


async def test_medium_that_shrank_is_refused():
    medium = MemoryMedium("m", 2 * SIZE)
    await format_medium(medium, dataclasses.replace(WANTED, size_bytes=2 * SIZE))
    medium.size_bytes = SIZE
    with pytest.raises(FormatError, match="size: want 67108864 bytes, have 33554432"):
        await read_superblock(medium)


async def test_format_refuses_what_holds_data_unless_told():
    medium = MemoryMedium("m", SIZE)
    await medium.write(8192, memoryview(b"\0" * 4095 + b"!"))
    with pytest.raises(ExistsError, match="not empty: byte 12287 is 0x21"):
        await format_medium(medium, WANTED)
    await format_medium(medium, WANTED, overwrite=True)
    with pytest.raises(ExistsError):
        await format_medium(medium, WANTED)


async def test_format_refuses_a_size_beyond_the_medium():
    with pytest.raises(InvalidArgumentError, match="size: want at most"):
        await format_medium(MemoryMedium("m", SIZE), dataclasses.replace(WANTED, size_bytes=2 * SIZE))


@settings(max_examples=60)
@given(
    st.sampled_from([FaultKind.TORN, FaultKind.LOST, FaultKind.CORRUPT, FaultKind.ERROR]),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.sampled_from([512, 4096]),
)
def test_a_fault_in_any_superblock_write_leaves_the_old_or_the_new_one(kind, nth, seed, tear):
    async def main():
        inner = await made()
        medium = FaultyMedium(inner, seed, [Fault(kind, Operation.WRITE, at=frozenset({nth}), tear_bytes=tear)])
        found = await read_superblock(inner)
        for weight in range(10, 16):
            before = found.superblock
            try:
                await write_superblock(medium, found, dataclasses.replace(before, weight=weight))
            except Exception:
                assert kind is FaultKind.ERROR
            found = await read_superblock(inner)
            assert found.superblock.weight in {before.weight, weight}
            assert found.superblock.sequence - before.sequence in {0, 1}

    trio.run(main)

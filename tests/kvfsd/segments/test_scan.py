import pytest
import trio
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_fakes import POOL, superblock_of

from kvfs import limits
from kvfs.errors import FormatError
from kvfsd.media.faulty import Fault, FaultKind, FaultyMedium, Operation
from kvfsd.media.memory import MemoryMedium
from kvfsd.ondisk.record import OVERHEAD_BYTES, RecordHeader, RecordIdentity, RecordType, record_bytes
from kvfsd.ondisk.segment import SegmentHeader, SegmentKind
from kvfsd.segments.scan import ScannedDamage, ScannedRecord, SegmentScan, read_segment_header

UNIT = limits.RECORD_ALIGN_BYTES
SUPERBLOCK = superblock_of(0)
UNITS = SUPERBLOCK.segment_bytes // UNIT
BASE = SUPERBLOCK.segment_offset(2)


def sealed(generation: int, length: int) -> bytes:
    """A record whose checksums fit; its ciphertext is a pattern, and looks like no header."""
    stored = bytearray(record_bytes(length))
    end = OVERHEAD_BYTES + length
    stored[128:end] = bytes([generation % 250 + 1]) * (end - 128)
    identity = RecordIdentity(
        pool=POOL,
        record_type=RecordType.DATA,
        tenant=1,
        epoch=1,
        object=5,
        block=generation,
        generation=generation,
        length=length,
    )
    checksum = xxhash.xxh3_64_intdigest(bytes(stored[128:end]))
    stored[:128] = RecordHeader(identity=identity, salt=bytes(16), body_checksum=checksum).pack()
    return bytes(stored)


async def medium_with(*pieces: tuple[int, bytes]) -> MemoryMedium:
    """Segment 2 of a medium, with bytes at offsets in units of 4 KiB."""
    medium = MemoryMedium("m0", limits.MEDIUM_MIN_BYTES)
    for unit, data in pieces:
        await medium.write(BASE + unit * UNIT, memoryview(data))
    return medium


async def scan(medium) -> list[tuple[int, int] | tuple[int, str]]:
    """(offset, generation) of sound records, (offset, "body") of damaged ones, (offset, "units") of other damage."""
    found = []
    async for item in SegmentScan(medium, SUPERBLOCK, 2):
        if isinstance(item, ScannedDamage):
            found.append((item.offset, f"{item.units} units"))
        elif item.damage:
            found.append((item.offset, "body"))
        else:
            assert bytes(item.record) == sealed(item.header.identity.generation, item.header.identity.length)
            found.append((item.offset, item.header.identity.generation))
    return found


async def test_empty_segment_has_nothing():
    assert await scan(await medium_with()) == []


async def test_records_are_found_in_order_over_holes():
    medium = await medium_with(
        (1, sealed(1, 10)), (2, sealed(2, 9000)), (40, sealed(3, limits.MIB)), (297, sealed(4, 0))
    )
    assert await scan(medium) == [(1, 1), (2, 2), (40, 3), (297, 4)]


async def test_records_that_cross_windows_and_reach_the_end_are_whole():
    medium = await medium_with(
        (1, sealed(1, limits.MIB)),
        (258, sealed(2, limits.MIB)),
        (515, sealed(3, limits.MIB)),
        (767, sealed(4, limits.MIB)),
    )
    assert (await scan(medium))[:2] == [(1, 1), (258, 2)]
    medium = await medium_with((500, sealed(1, limits.MIB)), (UNITS - 257, sealed(2, limits.MIB)))
    assert await scan(medium) == [(500, 1), (UNITS - 257, 2)]


async def test_damaged_header_costs_its_record_only():
    medium = await medium_with((1, sealed(1, 10)), (2, sealed(2, 3 * UNIT)), (6, sealed(3, 10)))
    await medium.write(BASE + 2 * UNIT, memoryview(b"\x99" * UNIT))
    assert await scan(medium) == [(1, 1), (2, "4 units"), (6, 3)]


async def test_damaged_body_is_told_with_its_header_and_costs_its_record_only():
    damaged = bytearray(sealed(2, 3 * UNIT))
    damaged[2 * UNIT + 5] ^= 1
    medium = await medium_with((1, sealed(1, 10)), (2, bytes(damaged)), (6, sealed(3, 10)))
    assert await scan(medium) == [(1, 1), (2, "body"), (3, "3 units"), (6, 3)]


async def test_record_torn_in_the_middle_does_not_hide_what_overwrote_it():
    medium = await medium_with((1, sealed(1, 5 * UNIT)), (3, sealed(2, 10)), (7, sealed(3, 10)))
    assert await scan(medium) == [(1, "body"), (2, "1 units"), (3, 2), (4, "3 units"), (7, 3)]


async def test_record_that_reaches_over_the_end_is_damage():
    record = sealed(1, limits.MIB)
    medium = await medium_with((UNITS - 2, record[: 2 * UNIT]))
    assert await scan(medium) == [(UNITS - 2, "body"), (UNITS - 1, "1 units")]


async def test_unreadable_unit_costs_what_is_in_it():
    inner = await medium_with((1, sealed(1, 10)), (2, sealed(2, 10)), (3, sealed(3, 10)))
    bad = BASE + 2 * UNIT

    class OneBadUnit(FaultyMedium):
        async def read_into(self, offset, buffer):
            if offset <= bad < offset + len(buffer):
                self.set_faults([Fault(FaultKind.ERROR, Operation.READ, at=frozenset({1}))])
            await super().read_into(offset, buffer)

    medium = OneBadUnit(inner, 1)
    assert await scan(medium) == [(1, 1), (2, "1 units"), (3, 3)]


async def test_scan_gives_way_to_others():
    """Each window is a checkpoint, even on a medium that never waits."""
    medium = await medium_with()
    steps = 0

    async def other() -> None:
        nonlocal steps
        while True:
            steps += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(5):
            await scan(medium)
        nursery.cancel_scope.cancel()
    assert steps >= 5


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, UNITS - 1), st.binary(min_size=1, max_size=200)), max_size=8), st.data())
def test_any_content_is_scanned_to_the_end(pieces, data):
    async def main() -> None:
        medium = await medium_with((1, sealed(1, 2 * UNIT)), (20, sealed(2, limits.MIB)), (400, sealed(3, 10)))
        for unit, value in pieces:
            await medium.write(BASE + unit * UNIT, memoryview(value.ljust(UNIT, b"\0")))
        covered = 0
        async for item in SegmentScan(medium, SUPERBLOCK, 2):
            assert item.offset >= covered
            covered = item.offset + 1
            assert isinstance(item, ScannedRecord | ScannedDamage)
        assert covered <= UNITS

    trio.run(main)


async def test_header_of_a_segment_is_checked_against_where_it_is():
    def header(**changes) -> memoryview:
        values = {"kind": SegmentKind.DATA, "pool": POOL, "medium": b"\1" * 16, "medium_index": 0, "segment": 2}
        return memoryview(SegmentHeader(**(values | changes), tenant=7, epoch=3).pack())

    medium = await medium_with()
    assert await read_segment_header(medium, SUPERBLOCK, 2) is None
    await medium.write(BASE, header())
    found = await read_segment_header(medium, SUPERBLOCK, 2)
    assert (found.tenant, found.epoch) == (7, 3)
    for change, text in (({"medium": bytes(16)}, "medium"), ({"segment": 3}, "number")):
        await medium.write(BASE, header(**change))
        with pytest.raises(FormatError, match=rf"medium m0: segment 2: .*{text}.*no sound record"):
            await read_segment_header(medium, SUPERBLOCK, 2)


async def test_segment_of_another_pool_is_free():
    """A device that was used before is not wiped: its old segments are nobody's."""
    medium = await medium_with((0, SegmentHeader(SegmentKind.DATA, bytes(16), b"\1" * 16, 0, 2, 7, 3).pack()))
    assert await read_segment_header(medium, SUPERBLOCK, 2) is None


@pytest.mark.parametrize("damage", ["bit", "zeros", "unreadable", "foreign"])
async def test_damaged_header_is_made_again_from_a_record(damage):
    stored = SegmentHeader(SegmentKind.DATA, POOL, b"\1" * 16, 0, 2, 1, 1)
    header = bytearray(stored.pack())
    if damage == "bit":
        header[50] ^= 1
    elif damage == "zeros":
        header = bytearray(4096)
    elif damage == "foreign":
        header = bytearray(SegmentHeader(SegmentKind.DATA, POOL, b"\1" * 16, 0, 3, 9, 9).pack())
    inner = await medium_with((0, bytes(header)), (1, b"\x77" * UNIT), (2, sealed(1, 10)))
    medium = FaultyMedium(inner, 1)
    if damage == "unreadable":
        medium.set_faults([Fault(FaultKind.ERROR, Operation.READ, at=frozenset({1}))])
    damages: list[str] = []
    assert await read_segment_header(medium, SUPERBLOCK, 2, damages) == stored
    assert len(damages) == 1
    assert "m0" in damages[0]

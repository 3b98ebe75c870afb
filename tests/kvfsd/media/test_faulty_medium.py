import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs import limits
from kvfs.errors import InvalidArgumentError, MediumUnavailableError
from kvfsd.media.append_only import AppendOnlyMedium
from kvfsd.media.faulty import Fault, FaultKind, FaultyMedium, Operation
from kvfsd.media.memory import MemoryMedium
from kvfsd.media.volatile import CrashMode, VolatileMedium

UNIT = limits.RECORD_ALIGN_BYTES
SIZE = limits.MEDIUM_MIN_BYTES


async def content(medium, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    await medium.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def faulty(*faults: Fault, seed: int = 7) -> tuple[FaultyMedium, MemoryMedium]:
    inner = MemoryMedium("inner", SIZE)
    return FaultyMedium(inner, seed, faults), inner


async def test_the_nth_operation_fails_and_no_other():
    medium, inner = faulty(Fault(FaultKind.ERROR, Operation.WRITE, at=frozenset({2})))
    await medium.write(0, memoryview(b"1" * UNIT))
    with pytest.raises(MediumUnavailableError, match="inner: WRITE at 4096: injected error"):
        await medium.write(UNIT, memoryview(b"2" * UNIT))
    await medium.write(2 * UNIT, memoryview(b"3" * UNIT))
    assert await content(inner, 0, 3 * UNIT) == b"1" * UNIT + bytes(UNIT) + b"3" * UNIT
    assert [(strike.operation, strike.count, strike.offset) for strike in medium.strikes] == [
        (Operation.WRITE, 2, UNIT)
    ]


@pytest.mark.parametrize("operation", [Operation.READ, Operation.FLUSH, Operation.TRIM])
async def test_every_operation_can_fail(operation):
    medium, _ = faulty(Fault(FaultKind.ERROR, operation, at=frozenset({1})))
    calls = {
        Operation.READ: lambda: medium.read_into(0, memoryview(bytearray(UNIT))),
        Operation.FLUSH: medium.flush,
        Operation.TRIM: lambda: medium.trim(0, UNIT),
    }
    with pytest.raises(MediumUnavailableError, match="injected error"):
        await calls[operation]()
    await calls[operation]()


async def test_delay_is_waited_for(autojump_clock):
    medium, _ = faulty(Fault(FaultKind.DELAY, Operation.READ, probability=1.0, delay_ms=2500))
    start = trio.current_time()
    await medium.read_into(0, memoryview(bytearray(UNIT)))
    assert trio.current_time() - start == pytest.approx(2.5)
    with trio.move_on_after(1) as scope:
        await medium.read_into(0, memoryview(bytearray(UNIT)))
    assert scope.cancelled_caught


@pytest.mark.parametrize("tear", [512, 4096])
async def test_torn_write_leaves_a_prefix_and_old_bytes(tear):
    medium, inner = faulty(Fault(FaultKind.TORN, Operation.WRITE, at=frozenset({2}), tear_bytes=tear))
    await medium.write(0, memoryview(b"o" * 8 * UNIT))
    await medium.write(0, memoryview(b"n" * 8 * UNIT))
    found = await content(inner, 0, 8 * UNIT)
    kept = found.count(b"n")
    assert found == b"n" * kept + b"o" * (8 * UNIT - kept)
    assert kept < 8 * UNIT
    assert kept % tear == 0


async def test_lost_write_trim_and_read():
    medium, inner = faulty(Fault(FaultKind.LOST, Operation.WRITE, at=frozenset({2})))
    await medium.write(0, memoryview(b"o" * UNIT))
    await medium.write(0, memoryview(b"n" * UNIT))
    assert await content(inner, 0, UNIT) == b"o" * UNIT
    medium.set_faults([Fault(FaultKind.LOST, Operation.TRIM | Operation.READ, at=frozenset({1, 2}))])
    await medium.trim(0, UNIT)
    assert await content(medium, 0, UNIT) == bytes(UNIT)
    assert await content(medium, 0, UNIT) == b"o" * UNIT


async def test_misdirected_write_lands_elsewhere_once():
    medium, inner = faulty(Fault(FaultKind.MISDIRECTED, Operation.WRITE, at=frozenset({1})))
    await medium.write(0, memoryview(b"m" * UNIT))
    assert await content(inner, 0, UNIT) == bytes(UNIT)
    assert inner.stored_bytes == UNIT


@pytest.mark.parametrize("operation", [Operation.READ, Operation.WRITE])
async def test_corruption_is_one_bit(operation):
    medium, _ = faulty(Fault(FaultKind.CORRUPT, operation, at=frozenset({1})))
    data = bytes(range(256)) * 16
    await medium.write(0, memoryview(data))
    found = await content(medium, 0, UNIT)
    assert (int.from_bytes(found, "big") ^ int.from_bytes(data, "big")).bit_count() == 1


async def test_same_seed_same_faults():
    async def run(seed: int) -> list[int]:
        medium, _ = faulty(Fault(FaultKind.LOST, Operation.WRITE, probability=0.3), seed=seed)
        for index in range(100):
            await medium.write(index * UNIT, memoryview(b"x" * UNIT))
        return [strike.count for strike in medium.strikes]

    assert await run(1) == await run(1)
    assert await run(1) != await run(2)
    assert 10 < len(await run(1)) < 60


async def test_healed_medium_is_faultless():
    medium, _ = faulty(Fault(FaultKind.ERROR, probability=1.0))
    with pytest.raises(MediumUnavailableError):
        await medium.flush()
    medium.set_faults([])
    await medium.flush()


async def test_impossible_tear_is_refused():
    medium, _ = faulty(Fault(FaultKind.TORN, Operation.WRITE, at=frozenset({1}), tear_bytes=1000))
    with pytest.raises(InvalidArgumentError, match="tear_bytes"):
        await medium.write(0, memoryview(b"x" * UNIT))


async def volatile_with(seed: int, mode: CrashMode, tear_bytes: int) -> tuple[MemoryMedium, VolatileMedium]:
    inner = MemoryMedium("inner", SIZE)
    medium = VolatileMedium(inner)
    await medium.write(0, memoryview(b"A" * 4 * UNIT))
    await medium.flush()
    for index in range(4):
        await medium.write(index * UNIT, memoryview(b"B" * UNIT))
    await medium.write(UNIT, memoryview(b"C" * UNIT))
    await medium.trim(8 * UNIT, UNIT)
    assert await content(medium, 0, 3 * UNIT) == b"B" * UNIT + b"C" * UNIT + b"B" * UNIT
    assert medium.unflushed == 6
    await medium.crash(random.Random(seed), mode, tear_bytes=tear_bytes)
    assert medium.unflushed == 0
    return inner, medium


async def test_flushed_writes_survive_and_unflushed_ones_are_gone():
    inner, medium = await volatile_with(1, CrashMode.NOTHING, 512)
    assert await content(inner, 0, 4 * UNIT) == b"A" * 4 * UNIT
    assert await content(medium, 0, 4 * UNIT) == b"A" * 4 * UNIT


@pytest.mark.parametrize("mode", [CrashMode.PREFIX, CrashMode.ANY])
@pytest.mark.parametrize("tear", [512, 4096])
async def test_crash_states_differ_and_are_made_of_old_and_new_units(mode, tear):
    seen = set()
    for seed in range(40):
        inner, _ = await volatile_with(seed, mode, tear)
        found = await content(inner, 0, 4 * UNIT)
        for start in range(0, 4 * UNIT, tear):
            assert found[start : start + tear] in {b"A" * tear, b"B" * tear, b"C" * tear}
        seen.add(found)
    assert len(seen) > 5
    if mode is CrashMode.ANY:
        assert any(found[UNIT] == ord("B") and ord("C") not in found and found[0] == ord("A") for found in seen)


async def test_aclose_is_no_crash():
    inner = MemoryMedium("inner", SIZE)
    medium = VolatileMedium(inner)
    await medium.write(0, memoryview(b"x" * UNIT))
    await medium.aclose()
    inner.reopen()
    assert await content(inner, 0, UNIT) == b"x" * UNIT


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["write", "trim", "flush"]), st.integers(0, 15), st.integers(1, 4)), max_size=25)
)
def test_volatile_medium_reads_like_a_plain_one(operations):
    async def main():
        plain, medium = MemoryMedium("plain", SIZE), VolatileMedium(MemoryMedium("inner", SIZE))
        for number, (kind, unit, count) in enumerate(operations):
            for target in (plain, medium):
                if kind == "write":
                    await target.write(unit * UNIT, memoryview(bytes([number + 1]) * UNIT * count))
                elif kind == "trim":
                    await target.trim(unit * UNIT, count * UNIT)
                else:
                    await target.flush()
            assert await content(medium, 0, 20 * UNIT) == await content(plain, 0, 20 * UNIT)

    trio.run(main)


@pytest.mark.parametrize(
    ("offset", "length", "text"),
    [
        (0, 2 * UNIT, "only superblock slots"),
        (UNIT, UNIT, "only superblock slots"),
        (limits.MIB, limits.SEGMENT_MIN_BYTES + UNIT, "over the end of segment 0"),
        (limits.MIB + UNIT, UNIT, "segment 0 ends at 0, not at 4096"),
    ],
)
async def test_append_only_medium_refuses_other_writes(offset, length, text):
    medium = AppendOnlyMedium(MemoryMedium("tape", SIZE), limits.SEGMENT_MIN_BYTES)
    with pytest.raises(InvalidArgumentError, match=text):
        await medium.write(offset, memoryview(bytes(length)))


async def test_append_only_medium_refuses_overwriting_and_partial_trims():
    medium = AppendOnlyMedium(MemoryMedium("tape", SIZE), limits.SEGMENT_MIN_BYTES)
    await medium.write(limits.MIB, memoryview(b"x" * UNIT))
    with pytest.raises(InvalidArgumentError, match="ends at 4096, not at 0"):
        await medium.write(limits.MIB, memoryview(b"x" * UNIT))
    for offset, length in ((limits.MIB, UNIT), (limits.MIB + UNIT, limits.SEGMENT_MIN_BYTES), (0, UNIT)):
        with pytest.raises(InvalidArgumentError, match="only whole segments"):
            await medium.trim(offset, length)

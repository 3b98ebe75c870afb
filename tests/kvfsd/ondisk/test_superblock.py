import dataclasses
import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvfs import limits
from kvfs.errors import FormatError, InvalidArgumentError
from kvfsd.ondisk import superblock
from kvfsd.ondisk.superblock import Superblock, UnknownFeatureError, newest

UUIDS = st.binary(min_size=16, max_size=16)
UNIT = limits.RECORD_ALIGN_BYTES

EXAMPLE = Superblock(
    pool=bytes(range(16)),
    medium=bytes(range(16, 32)),
    medium_index=1,
    size_bytes=limits.MEDIUM_MIN_BYTES,
    segment_bytes=limits.SEGMENT_MIN_BYTES,
    weight=3,
    failure_domain="rack-ä",
    replicas=2,
    sequence=5,
)

superblocks = st.builds(
    Superblock,
    pool=UUIDS,
    medium=UUIDS,
    medium_index=st.integers(0, limits.MEDIA_PER_POOL_MAX - 1),
    size_bytes=st.integers(limits.SEGMENT_MAX_BYTES + limits.MIB, 2**50),
    segment_bytes=st.integers(limits.SEGMENT_MIN_BYTES // UNIT, limits.SEGMENT_MAX_BYTES // UNIT).map(UNIT.__mul__),
    weight=st.integers(0, 2**32 - 1),
    failure_domain=st.text(max_size=16),
    replicas=st.integers(1, limits.REPLICAS_MAX),
    sequence=st.integers(1, 2**63),
    ro_compat=st.integers(0, 2**64 - 1),
    compat=st.integers(0, 2**64 - 1),
    reserved=st.sampled_from([bytes(superblock.RESERVED_BYTES), b"\xa5" * superblock.RESERVED_BYTES]),
)


def resealed(packed: bytes, offset: int, value: bytes) -> bytes:
    """`packed` with `value` at `offset` and a checksum that fits."""
    changed = bytearray(packed)
    changed[offset : offset + len(value)] = value
    changed[4088:] = xxhash.xxh3_64_intdigest(bytes(changed[:4088])).to_bytes(8, "little")
    return bytes(changed)


def test_slot_is_4_kib_and_slots_do_not_overlap_the_data():
    assert superblock.LAYOUT.size_bytes == superblock.SLOT_BYTES == 4096
    assert superblock.SLOT_OFFSETS == (0, 65536)
    assert superblock.DATA_OFFSET_BYTES == 1 << 20


@given(superblocks, st.sampled_from([0, 1]))
def test_round_trip(original, slot):
    assert Superblock.parse(original.pack(slot), slot, "here") == original


@given(superblocks, st.integers(0, 4096 * 8 - 1))
def test_any_flipped_bit_is_found(original, bit):
    packed = bytearray(original.pack(0))
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError, match="pool slot 0"):
        Superblock.parse(packed, 0, "pool slot 0")


@given(st.binary(max_size=5000))
def test_any_bytes_parse_or_say_why(data):
    with pytest.raises(FormatError):
        Superblock.parse(data, 0, "fuzz")


@given(st.integers(0, 200), st.binary(min_size=1, max_size=16))
def test_a_fitting_checksum_does_not_get_a_bad_field_through(offset, value):
    packed = resealed(EXAMPLE.pack(1), offset, value)
    try:
        parsed = Superblock.parse(packed, 1, "fuzz")
    except FormatError:
        return
    assert parsed.pack(1) == packed
    assert parsed.segment_count >= 1
    assert parsed.segment_offset(parsed.segment_count - 1) + parsed.segment_bytes <= parsed.size_bytes


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0, b"EXT4", "magic: want b'KVFSSUPR'"),
        (8, b"\x02", "superblock version: want 1, have 2"),
        (12, b"\x01", "superblock slot: want 0, have 1"),
        (16, b"\x04", "unknown incompatible features 0x4"),
        (72, struct.pack("<I", 256), "medium index: want 0 to 255, have 256"),
        (80, struct.pack("<Q", 4096), "superblock size: want 33554432 to"),
        (80, struct.pack("<Q", 2**63 + 1), "superblock size"),
        (88, struct.pack("<Q", 2**63), "superblock segment bytes: want 4194304 to 67108864"),
        (88, struct.pack("<Q", (4 << 20) + 512), "alignment"),
        (96, struct.pack("<Q", 0), "superblock data offset"),
        (96, struct.pack("<Q", 2**64 - 1), "superblock data offset"),
        (104, struct.pack("<Q", 0), "superblock sequence"),
        (112, struct.pack("<I", 65), "failure domain length: want 0 to 64, have 65"),
        (116, b"\xff", "failure domain: want UTF-8"),
        (140, b"x", "failure domain padding: want zeros, have 0x78"),
    ],
)
def test_each_bad_field_is_named(offset, value, text):
    with pytest.raises(FormatError, match=text):
        Superblock.parse(resealed(EXAMPLE.pack(0), offset, value), 0, "here")


def test_unknown_incompatible_feature_is_told_apart_from_damage():
    with pytest.raises(UnknownFeatureError):
        Superblock.parse(resealed(EXAMPLE.pack(0), 16, b"\x01"), 0, "here")


def test_unknown_read_only_feature_forbids_writing_and_unknown_compatible_one_nothing():
    assert not EXAMPLE.read_only
    assert not dataclasses.replace(EXAMPLE, compat=1 << 63).read_only
    assert Superblock.parse(dataclasses.replace(EXAMPLE, ro_compat=1).pack(0), 0, "here").read_only


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": 2**63 + 1},
        {"size_bytes": limits.MEDIUM_MIN_BYTES - 1},
        {"segment_bytes": limits.SEGMENT_MAX_BYTES + UNIT},
        {"medium_index": -1},
        {"weight": 2**32},
        {"failure_domain": "x" * 65},
        {"reserved": b""},
    ],
)
def test_what_could_not_be_read_back_is_not_packed(change):
    with pytest.raises(InvalidArgumentError):
        dataclasses.replace(EXAMPLE, **change).pack(0)


def test_segments_fill_the_space_behind_the_data_offset():
    assert EXAMPLE.segment_count == 7
    assert EXAMPLE.segment_offset(0) == 1 << 20
    assert EXAMPLE.segment_offset(6) == (1 << 20) + 6 * (4 << 20)
    for segment in (-1, 7, 2**63):
        with pytest.raises(InvalidArgumentError, match="want 0 to 6"):
            EXAMPLE.segment_offset(segment)


@given(superblocks, superblocks)
def test_higher_sequence_wins(one, other):
    assert newest((one, None)) == 0
    assert newest((None, one)) == 1
    assert newest((one, other)) == (1 if other.sequence >= one.sequence else 0)


def test_no_valid_slot_is_an_error():
    with pytest.raises(FormatError, match="no valid superblock"):
        newest((None, None))

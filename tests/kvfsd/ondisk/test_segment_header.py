import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvfs.errors import FormatError, InvalidArgumentError
from kvfsd.ondisk import segment
from kvfsd.ondisk.segment import SegmentHeader, SegmentKind

UUIDS = st.binary(min_size=16, max_size=16)
U32 = st.integers(0, 2**32 - 1)

headers = st.builds(
    SegmentHeader,
    kind=st.sampled_from(SegmentKind),
    pool=UUIDS,
    medium=UUIDS,
    medium_index=st.integers(0, 255),
    segment=U32,
    tenant=U32,
    epoch=U32,
)
EXAMPLE = SegmentHeader(
    kind=SegmentKind.DATA,
    pool=bytes(range(16)),
    medium=bytes(range(16, 32)),
    medium_index=1,
    segment=4,
    tenant=7,
    epoch=3,
)


def resealed(packed: bytes, offset: int, value: bytes) -> bytes:
    """`packed` with `value` at `offset` and a checksum that fits."""
    changed = bytearray(packed)
    changed[offset : offset + len(value)] = value
    changed[4088:] = xxhash.xxh3_64_intdigest(bytes(changed[:4088])).to_bytes(8, "little")
    return bytes(changed)


def test_header_is_4_kib():
    assert segment.LAYOUT.size_bytes == segment.HEADER_BYTES == 4096


@given(headers)
def test_round_trip(header):
    assert SegmentHeader.parse(header.pack(), "here") == header


@given(headers, st.integers(0, 4096 * 8 - 1))
def test_any_flipped_bit_is_found(header, bit):
    packed = bytearray(header.pack())
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError, match="segment 4"):
        SegmentHeader.parse(packed, "segment 4")


@given(st.binary(max_size=5000))
def test_any_bytes_parse_or_say_why(data):
    with pytest.raises(FormatError):
        SegmentHeader.parse(data, "fuzz")


@given(st.integers(0, 80), st.binary(min_size=1, max_size=16))
def test_a_fitting_checksum_does_not_get_a_bad_field_through(offset, value):
    packed = resealed(EXAMPLE.pack(), offset, value)
    try:
        parsed = SegmentHeader.parse(packed, "fuzz")
    except FormatError:
        return
    assert parsed.pack() == packed


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0, b"KVFR", "magic: want b'KVFSSEGM'"),
        (8, b"\x02", "segment version: want 1, have 2"),
        (12, b"\x00", "segment kind: want 1 to 3, have 0"),
        (60, struct.pack("<I", 256), "segment medium index: want 0 to 255, have 256"),
        (64, b"\x01", "segment reserved bytes: want zeros, have 0x01 at byte 0"),
        (4087, b"\x01", "segment reserved bytes: want zeros, have 0x01 at byte 4023"),
    ],
)
def test_each_bad_field_is_named(offset, value, text):
    with pytest.raises(FormatError, match=text):
        SegmentHeader.parse(resealed(EXAMPLE.pack(), offset, value), "here")


def test_values_out_of_range_are_not_packed():
    with pytest.raises(InvalidArgumentError):
        SegmentHeader(SegmentKind.DATA, bytes(16), bytes(16), 0, 2**32, 1, 1).pack()

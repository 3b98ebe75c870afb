import dataclasses
import struct

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from kvfs import limits
from kvfs.errors import FormatError, InvalidArgumentError
from kvfsd.ondisk import record
from kvfsd.ondisk.record import RecordHeader, RecordIdentity, RecordType

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
UUIDS = st.binary(min_size=16, max_size=16)

identities = st.builds(
    RecordIdentity,
    pool=UUIDS,
    record_type=st.sampled_from(RecordType),
    tenant=U32,
    epoch=U32,
    object=U64,
    block=U64,
    generation=U64,
    length=st.integers(0, limits.BLOCK_BYTES),
)
headers = st.builds(RecordHeader, identity=identities, salt=UUIDS, body_checksum=U64)

EXAMPLE = RecordHeader(
    identity=RecordIdentity(
        pool=bytes(range(16)),
        record_type=RecordType.DATA,
        tenant=7,
        epoch=3,
        object=0x0102030405060708,
        block=9,
        generation=0x1112131415161718,
        length=5,
    ),
    salt=bytes(range(16, 32)),
    body_checksum=0x2122232425262728,
)


def resealed(packed: bytes, offset: int, value: bytes) -> bytes:
    """`packed` with `value` at `offset` and a header checksum that fits."""
    changed = bytearray(packed)
    changed[offset : offset + len(value)] = value
    changed[120:] = xxhash.xxh3_64_intdigest(bytes(changed[:120])).to_bytes(8, "little")
    return bytes(changed)


def test_header_is_128_bytes():
    assert record.LAYOUT.size_bytes == record.HEADER_BYTES == 128
    assert len(EXAMPLE.pack()) == 128


@given(headers)
def test_round_trip(header):
    assert RecordHeader.parse(header.pack(), "here") == header


@given(headers, st.integers(0, 128 * 8 - 1))
def test_any_flipped_bit_is_found(header, bit):
    packed = bytearray(header.pack())
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError, match="medium-7 at 0"):
        RecordHeader.parse(packed, "medium-7 at 0")


@given(st.binary(max_size=300))
@example(b"KVFR" + bytes(124))
def test_any_bytes_parse_or_say_why(data):
    with pytest.raises(FormatError):
        RecordHeader.parse(data, "fuzz")


@given(st.integers(0, 127), st.binary(min_size=1, max_size=16))
def test_a_fitting_checksum_does_not_get_a_bad_field_through(offset, value):
    packed = resealed(EXAMPLE.pack(), offset, value[: 120 - offset] if offset < 120 else b"")
    try:
        header = RecordHeader.parse(packed, "fuzz")
    except FormatError:
        return
    assert header.pack() == packed


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0, b"KVFS", "magic: want b'KVFR', have b'KVFS'"),
        (4, b"\x02\x00", "record version: want 1, have 2"),
        (6, b"\x00", "record type: want 1 to 3, have 0"),
        (7, b"\x01", "record codec: want 0, have 1"),
        (56, struct.pack("<I", limits.BLOCK_BYTES + 1), "record payload length: want 0 to 1048576, have 1048577"),
        (56, struct.pack("<I", 2**32 - 1), "record payload length: want 0 to 1048576, have 4294967295"),
        (60, struct.pack("<I", 8192), "record stored length: want 4096, have 8192"),
        (88, b"\x01", "record reserved bytes"),
    ],
)
def test_each_bad_field_is_named(offset, value, text):
    with pytest.raises(FormatError, match=text):
        RecordHeader.parse(resealed(EXAMPLE.pack(), offset, value), "here")


def test_truncated_header_says_how_much_is_there():
    with pytest.raises(FormatError, match="want 128 bytes, have 127"):
        RecordHeader.parse(EXAMPLE.pack()[:127], "here")


@pytest.mark.parametrize(
    ("payload", "stored"), [(0, 4096), (3944, 4096), (3945, 8192), (limits.BLOCK_BYTES, limits.BLOCK_BYTES + 4096)]
)
def test_stored_bytes(payload, stored):
    assert record.record_bytes(payload) == stored


@given(st.one_of(st.integers(-(2**63), -1), st.integers(limits.BLOCK_BYTES + 1, 2**63)))
def test_payload_lengths_are_bounded(length):
    with pytest.raises(InvalidArgumentError):
        record.record_bytes(length)


@given(identities)
def test_associated_data_tells_every_field_apart(identity):
    aad = identity.associated_data()
    assert len(aad) == 76
    for field in dataclasses.fields(identity):
        value = getattr(identity, field.name)
        other = bytes([value[0] ^ 1]) + value[1:] if isinstance(value, bytes) else int(value) ^ 1
        assert dataclasses.replace(identity, **{field.name: other}).associated_data() != aad


def test_associated_data_of_a_known_identity():
    assert EXAMPLE.identity.associated_data() == b"kvfs/v1/record\0\0" + bytes(range(16)) + struct.pack(
        "<IIIQQQQ", 1, 7, 3, 0x0102030405060708, 9, 0x1112131415161718, 5
    )


@pytest.mark.parametrize("change", [{"tenant": -1}, {"epoch": 2**32}, {"block": 2**64}, {"pool": b"short"}])
def test_identity_out_of_range_is_refused(change):
    identity = dataclasses.replace(EXAMPLE.identity, **change)
    with pytest.raises(InvalidArgumentError):
        identity.associated_data()
    with pytest.raises(InvalidArgumentError):
        dataclasses.replace(EXAMPLE, identity=identity).pack()


def sealed_record(length: int) -> bytearray:
    stored = bytearray(record.record_bytes(length))
    for index in range(128, record.OVERHEAD_BYTES + length):
        stored[index] = index % 251
    checksum = xxhash.xxh3_64_intdigest(bytes(stored[128 : record.OVERHEAD_BYTES + length]))
    identity = dataclasses.replace(EXAMPLE.identity, length=length)
    stored[:128] = RecordHeader(identity=identity, salt=EXAMPLE.salt, body_checksum=checksum).pack()
    return stored


@given(st.integers(0, 5000), st.data())
def test_damaged_body_is_found(length, data):
    stored = sealed_record(length)
    header = RecordHeader.parse(stored, "here")
    record.check_body(header, memoryview(stored), "here")
    bit = data.draw(st.integers(128 * 8, (record.OVERHEAD_BYTES + length) * 8 - 1))
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError, match="here: record body checksum"):
        record.check_body(header, memoryview(stored), "here")


def test_short_body_is_refused():
    stored = sealed_record(100)
    header = RecordHeader.parse(stored, "here")
    with pytest.raises(FormatError, match="want at least 252 bytes, have 251"):
        record.check_body(header, memoryview(stored)[:251], "here")

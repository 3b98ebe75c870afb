"""Sealing: round trips, a fixed vector, which check names which damage, and what is left behind on failure."""

from __future__ import annotations

import dataclasses
import tracemalloc

import pytest
import xxhash
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from kvfs import limits
from kvfs.errors import BadRecordError, InvalidArgumentError
from kvfsd.crypto import kdf, sealing
from kvfsd.ondisk.record import HEADER_BYTES, RecordHeader, RecordIdentity, RecordType, check_body, record_bytes

POOL = bytes(range(16))
DEK = bytes(range(32))
SALT = bytes(range(100, 116))


def identity_of(length: int, **changes) -> RecordIdentity:
    fields = {
        "pool": POOL,
        "record_type": RecordType.DATA,
        "tenant": 7,
        "epoch": 1,
        "object": 42,
        "block": 3,
        "generation": 1001,
        "length": length,
    }
    return RecordIdentity(**(fields | changes))


def key_of(identity: RecordIdentity, salt: bytes = SALT) -> bytes:
    owner = (identity.tenant, identity.object, identity.generation)
    return kdf.record_key(DEK, kdf.record_prefix(identity.pool), owner, salt)


def sealed(payload: bytes, **changes) -> tuple[RecordIdentity, sealing.SealedRecord, memoryview]:
    identity = identity_of(len(payload), **changes)
    out = memoryview(bytearray(b"\xee" * (record_bytes(len(payload)) + 100)))
    return identity, sealing.seal(key_of(identity), identity, SALT, payload, out), out


@given(st.binary(max_size=20_000))
def test_round_trip(payload):
    identity, record, out = sealed(payload)
    assert record.length == record_bytes(len(payload))
    assert bytes(out[record.length :]) == b"\xee" * 100
    back = memoryview(bytearray(len(payload) + 3))
    assert sealing.open_record(key_of(identity), identity, record.tag, out[: record.length], back) == len(payload)
    assert bytes(back[: len(payload)]) == payload


def test_a_full_block_round_trips_without_a_copy_of_it():
    payload = memoryview(bytearray(range(256)) * 4096)
    identity = identity_of(len(payload))
    out, back = memoryview(bytearray(record_bytes(len(payload)))), memoryview(bytearray(limits.BLOCK_BYTES))
    tracemalloc.start()
    record = sealing.seal(key_of(identity), identity, SALT, payload, out)
    assert sealing.open_record(key_of(identity), identity, record.tag, out, back) == limits.BLOCK_BYTES
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert back == payload
    assert peak < 64 * limits.KIB


def test_layout_is_the_documented_one():
    """Built again from the parts that docs/FORMAT.md names, with another interface of the cipher."""
    payload = bytes(range(250)) * 2
    identity, record, out = sealed(payload)
    inner = xxhash.xxh3_64_intdigest(payload).to_bytes(8, "little")
    nonce = (3).to_bytes(8, "little") + (1).to_bytes(4, "little")
    body = AESGCM(key_of(identity)).encrypt(nonce, payload + inner, identity.associated_data())
    end = HEADER_BYTES + len(body)
    assert bytes(out[HEADER_BYTES:end]) == body
    assert record.tag == body[-16:]
    assert bytes(out[end : record.length]) == bytes(record.length - end)
    header = RecordHeader.parse(out, "test")
    assert (header.identity, header.salt) == (identity, SALT)
    check_body(header, out[: record.length], "test")
    assert sealing.record_salt(out) == SALT


def test_fixed_vector():
    """In docs/FORMAT.md; a change here is a change of the format."""
    _, record, out = sealed(b"kvfs test vector")
    assert record.tag.hex() == VECTOR_TAG
    assert xxhash.xxh3_64_hexdigest(out[: record.length]) == VECTOR_RECORD


VECTOR_TAG = "2a64ff8f69d1a6b1367bc687debb9021"
VECTOR_RECORD = "71ff4808e7de4721"


def refusal(identity, tag, record, key=None) -> str:
    back = memoryview(bytearray(b"\xaa" * identity.length))
    with pytest.raises(BadRecordError) as caught:
        sealing.open_record(key or key_of(identity), identity, tag, record, back)
    assert bytes(back) in (bytes(identity.length), b"\xaa" * identity.length), "decrypted bytes were left behind"
    return str(caught.value)


PAYLOAD = b"some key and value floats" * 40


def test_each_check_names_itself():
    identity, record, out = sealed(PAYLOAD)
    flipped = bytearray(out)
    flipped[20] ^= 1
    assert refusal(identity, record.tag, memoryview(flipped)).startswith(
        "header: record of tenant 7, object 42, block 3"
    )
    flipped = bytearray(out)
    flipped[HEADER_BYTES + 5] ^= 1
    assert refusal(identity, record.tag, memoryview(flipped)).startswith("outer checksum: ")
    assert refusal(identity, bytes(16), out).startswith("catalog tag: ")
    assert refusal(identity, record.tag, out, key=bytes(32)).startswith("seal: ")


def test_a_stranger_with_right_checksums_fails_the_seal():
    """Whoever can write to a medium can make checksums fit, not the tag."""
    identity, record, out = sealed(PAYLOAD)
    forged = memoryview(bytearray(out))
    forged[HEADER_BYTES] ^= 1
    end = HEADER_BYTES + identity.length + 24
    header = RecordHeader(identity, SALT, xxhash.xxh3_64_intdigest(forged[HEADER_BYTES:end]))
    forged[:HEADER_BYTES] = header.pack()
    assert refusal(identity, record.tag, forged).startswith("seal: ")


def test_a_payload_that_changed_before_the_cipher_fails_the_inner_checksum():
    identity = identity_of(len(PAYLOAD))
    out = memoryview(bytearray(record_bytes(len(PAYLOAD))))
    inner = xxhash.xxh3_64_intdigest(b"something else").to_bytes(8, "little")
    nonce = (3).to_bytes(8, "little") + (1).to_bytes(4, "little")
    body = AESGCM(key_of(identity)).encrypt(nonce, PAYLOAD + inner, identity.associated_data())
    out[HEADER_BYTES : HEADER_BYTES + len(body)] = body
    out[:HEADER_BYTES] = RecordHeader(identity, SALT, xxhash.xxh3_64_intdigest(body)).pack()
    assert refusal(identity, body[-16:], out).startswith("inner checksum: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pool", bytes(16)),
        ("record_type", RecordType.METADATA_LOG),
        ("tenant", 8),
        ("epoch", 2),
        ("object", 43),
        ("block", 4),
        ("generation", 1000),
        ("length", len(PAYLOAD) - 1),
    ],
)
def test_every_field_of_the_identity_counts(field, value):
    """Twice: the header says which field differs, and a header that lies is caught by the seal."""
    identity, record, out = sealed(PAYLOAD)
    other = dataclasses.replace(identity, **{field: value})
    text = refusal(other, record.tag, out)
    assert text.startswith("identity: ")
    assert f"{field}: want" in text
    lying = memoryview(bytearray(out))
    end = HEADER_BYTES + other.length + 24
    lying[:HEADER_BYTES] = RecordHeader(other, SALT, xxhash.xxh3_64_intdigest(lying[HEADER_BYTES:end])).pack()
    assert refusal(other, record.tag, lying, key=key_of(identity)).startswith("seal: ")


def test_a_catalog_without_tags_still_opens():
    identity, _, out = sealed(PAYLOAD)
    back = memoryview(bytearray(len(PAYLOAD)))
    sealing.open_record(key_of(identity), identity, b"", out, back)
    assert bytes(back) == PAYLOAD


def test_lengths_are_checked_before_anything_is_written():
    identity = identity_of(100)
    out = memoryview(bytearray(4096))
    with pytest.raises(InvalidArgumentError, match="have 99 and 4096"):
        sealing.seal(bytes(32), identity, SALT, bytes(99), out)
    with pytest.raises(InvalidArgumentError, match="room for 4096"):
        sealing.seal(bytes(32), identity, SALT, bytes(100), out[:4095])
    with pytest.raises(InvalidArgumentError):
        sealing.seal(bytes(32), identity_of(limits.BLOCK_BYTES + 1), SALT, bytes(limits.BLOCK_BYTES + 1), out)
    assert bytes(out) == bytes(4096)
    with pytest.raises(InvalidArgumentError, match="room for 100"):
        sealing.open_record(bytes(32), identity, b"", out, memoryview(bytearray(99)))

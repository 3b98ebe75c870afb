"""Seal and open one record: AES-256-GCM between two xxh3 sums (pure; key and salt are arguments).

    header | GCM(payload | xxh3_64(payload)) | tag | zeros          docs/FORMAT.md, record

The associated data is the identity that is *asked for*, so a record that was moved, swapped, replayed, cut, spliced or
taken from another tenant does not open, whatever its header claims. The caller's buffers are used throughout: a fresh
1 MiB costs as much as the cipher (docs/ARCHITECTURE.md). docs/THREATS.md has the argument for the nonces.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NoReturn

import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from kvfs.errors import BadRecordError, FormatError, InvalidArgumentError
from kvfsd.ondisk.layout import Buffer
from kvfsd.ondisk.record import (
    HEADER_BYTES,
    INNER_CHECKSUM_BYTES,
    LAYOUT,
    SALT_BYTES,
    TAG_BYTES,
    RecordHeader,
    RecordIdentity,
    check_body,
    record_bytes,
)

_NONCE: Final = struct.Struct("<QI")
"""Block number, record type: 12 bytes, the length GCM is made for (SP 800-38D, 8.2)."""
_SALT_AT: Final = next(offset for offset, _, name in LAYOUT.rows() if name == "salt")


class Check(StrEnum):
    """The checks of :func:`open_record`, in their order; a BadRecordError's text starts with the one that failed."""

    HEADER = "header"
    """Magic, version, lengths and checksum of the header: torn or rotten, or never a record."""
    IDENTITY = "identity"
    """The header names another record than the one asked for: misdirected, swapped or replayed."""
    OUTER = "outer checksum"
    """Stored bytes changed since they were written: rotten or torn."""
    SEAL = "seal"
    """The cipher's tag does not fit: tampered with, or the wrong key."""
    CATALOG_TAG = "catalog tag"
    """A record that we did seal under this identity, but not the one that the catalog points at."""
    INNER = "inner checksum"
    """The payload is not what was handed to `seal`: a bug of ours or bad memory."""


@dataclass(frozen=True, slots=True)
class SealedRecord:
    """What :func:`seal` left in its buffer: `length` bytes, padding included; `tag` goes into the catalog."""

    length: int
    tag: bytes


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes to seal, with the inner checksum that was taken of them when they were admitted."""

    data: Buffer
    checksum: int

    @classmethod
    def of(cls, data: Buffer) -> Payload:
        """`data` and its xxh3_64."""
        return cls(data, xxhash.xxh3_64_intdigest(data))


def seal(key: bytes, identity: RecordIdentity, salt: bytes, payload: Buffer, out: memoryview) -> SealedRecord:
    """Seal `payload`, taking its inner checksum now; all else as :func:`seal_payload`."""
    return seal_payload(key, identity, salt, Payload.of(payload), out)


def seal_payload(key: bytes, identity: RecordIdentity, salt: bytes, payload: Payload, out: memoryview) -> SealedRecord:
    """Seal `payload` (0 .. BLOCK_BYTES bytes) into `out`, which holds at least `record_bytes` of its length.

    `key` is the 32-byte record key that was derived with this very `salt`; neither may have been used before.
    InvalidArgumentError if a length does not fit. `payload` must not change meanwhile; it is not copied.
    """
    length = identity.length
    stored = record_bytes(length)
    if len(payload.data) != length or len(out) < stored:
        raise InvalidArgumentError(
            f"seal: want a payload of {length} and room for {stored} bytes, have {len(payload.data)} and {len(out)}"
        )
    end = HEADER_BYTES + length
    tail = end + INNER_CHECKSUM_BYTES
    cipher = Cipher(AES(key), GCM(_nonce(identity))).encryptor()
    cipher.authenticate_additional_data(identity.associated_data())
    cipher.update_into(payload.data, out[HEADER_BYTES:end])
    cipher.update_into(payload.checksum.to_bytes(INNER_CHECKSUM_BYTES, "little"), out[end:tail])
    cipher.finalize()
    tag = cipher.tag
    body_end = tail + TAG_BYTES
    out[tail:body_end] = tag
    out[body_end:stored] = bytes(stored - body_end)
    header = RecordHeader(identity, salt, xxhash.xxh3_64_intdigest(out[HEADER_BYTES:body_end]))
    out[:HEADER_BYTES] = header.pack()
    return SealedRecord(stored, tag)


def record_salt(record: memoryview) -> bytes:
    """The salt in the header of `record`, which derives its key.

    Unchecked, and zeros where `record` is too short to have one: :func:`open_record` checks the header.
    """
    return bytes(record[_SALT_AT : _SALT_AT + SALT_BYTES]).ljust(SALT_BYTES, b"\0")


def _asked_header(identity: RecordIdentity, record: memoryview) -> RecordHeader:
    """The header of `record`, once it says that it is `identity`; BadRecordError names each field that differs."""
    try:
        header = RecordHeader.parse(record, "")
    except FormatError as error:
        _refuse(Check.HEADER, identity, str(error).lstrip(": "), error)
    if header.identity != identity:
        _refuse(Check.IDENTITY, identity, _differences(identity, header.identity))
    return header


def open_record(key: bytes, identity: RecordIdentity, tag: bytes, record: memoryview, out: memoryview) -> int:
    """Open `record` as `identity` into `out`, which holds at least `identity.length` bytes; returns that length.

    `tag` is what the catalog keeps of the record, empty where there is no catalog yet (rebuild). The checks are those
    of :class:`Check`, in order; the first that fails is named in the BadRecordError, and `out` then holds zeros if
    anything was decrypted into it.
    """
    checksum = decrypt_record(key, identity, tag, record, out)
    verify_payload(identity, checksum, out)
    return identity.length


def decrypt_record(key: bytes, identity: RecordIdentity, tag: bytes, record: memoryview, out: memoryview) -> int:
    """`open_record` up to its last check: returns the inner checksum, for :func:`verify_payload`."""
    length = identity.length
    if len(out) < length:
        raise InvalidArgumentError(f"open: want room for {length} bytes, have {len(out)}")
    header = _asked_header(identity, record)
    if len(record) < record_bytes(length):
        _check_outer(header, record)
    plaintext = out[:length]
    try:
        return _decrypt(key, identity, tag, record, plaintext)
    except BadRecordError:
        plaintext[:] = bytes(length)
        # The cipher's tag proves more than the outer checksum, which is asked only to tell rot from tampering.
        _check_outer(header, record)
        raise


def _check_outer(header: RecordHeader, record: memoryview) -> None:
    try:
        check_body(header, record, "")
    except FormatError as error:
        _refuse(Check.OUTER, header.identity, str(error).lstrip(": "), error)


def verify_payload(identity: RecordIdentity, checksum: int, plaintext: memoryview) -> None:
    """The payload is the one that was handed to `seal`: the last check. On BadRecordError `plaintext` holds zeros."""
    payload = plaintext[: identity.length]
    if xxhash.xxh3_64_intdigest(payload) != checksum:
        payload[:] = bytes(identity.length)
        _refuse(Check.INNER, identity, "the payload differs from what was sealed")


def _decrypt(key: bytes, identity: RecordIdentity, tag: bytes, record: memoryview, plaintext: memoryview) -> int:
    """GCM and the catalog's tag; returns the inner checksum. On BadRecordError nobody may see `plaintext`."""
    end = HEADER_BYTES + identity.length
    tail = end + INNER_CHECKSUM_BYTES
    stored_tag = bytes(record[tail : tail + TAG_BYTES])
    cipher = Cipher(AES(key), GCM(_nonce(identity), stored_tag)).decryptor()
    cipher.authenticate_additional_data(identity.associated_data())
    cipher.update_into(record[HEADER_BYTES:end], plaintext)
    inner = cipher.update(record[end:tail])
    try:
        cipher.finalize()
    except InvalidTag as error:
        _refuse(Check.SEAL, identity, "the tag does not fit key, identity and ciphertext", error)
    if tag and not hmac.compare_digest(tag, stored_tag):
        _refuse(Check.CATALOG_TAG, identity, f"want {tag.hex()}, have {stored_tag.hex()}")
    return int.from_bytes(inner, "little")


def _nonce(identity: RecordIdentity) -> bytes:
    return _NONCE.pack(identity.block, identity.record_type)


def _differences(want: RecordIdentity, have: RecordIdentity) -> str:
    pairs = ((name, getattr(want, name), getattr(have, name)) for name in RecordIdentity.__slots__)
    return ", ".join(f"{name}: want {_show(one)}, have {_show(other)}" for name, one, other in pairs if one != other)


def _show(value: bytes | int) -> str:
    return value.hex() if isinstance(value, bytes) else str(int(value))


def _refuse(check: Check, identity: RecordIdentity, detail: str, cause: Exception | None = None) -> NoReturn:
    raise BadRecordError(
        f"{check}: record of tenant {identity.tenant}, object {identity.object}, block {identity.block}, "
        f"generation {identity.generation}: {detail}"
    ) from cause

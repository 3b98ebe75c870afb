"""The record: one sealed block, self-describing and independent of its position (docs/FORMAT.md, record). Pure.

A record is a 128-byte header, the ciphertext of (payload | xxh3_64 of the payload), a 16-byte GCM tag, and zeros up to
the next 4 KiB. Without keys one can check the header and, by `check_body`, what is stored behind it.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

import xxhash

from kvfs import limits
from kvfs.errors import FormatError, InvalidArgumentError
from kvfsd.ondisk.layout import Buffer, Layout, check, check_range, check_zero

MAGIC: Final = b"KVFR"
VERSION: Final = 1
CODEC_NONE: Final = 0
"""The only codec: payloads are stored as they are."""

HEADER_BYTES: Final = 128
INNER_CHECKSUM_BYTES: Final = 8
"""xxh3_64 of the payload, little endian, sealed together with it: finds our own bugs."""
TAG_BYTES: Final = 16
SALT_BYTES: Final = 16
UUID_BYTES: Final = 16
RESERVED_BYTES: Final = 32
OVERHEAD_BYTES: Final = HEADER_BYTES + INNER_CHECKSUM_BYTES + TAG_BYTES
PAYLOAD_MAX_BYTES: Final = limits.BLOCK_BYTES

LAYOUT: Final = Layout(
    "record header",
    (
        ("magic", "4s"),
        ("version", "H"),
        ("record_type", "B"),
        ("codec", "B"),
        ("tenant", "I"),
        ("epoch", "I"),
        ("pool", "16s"),
        ("object", "Q"),
        ("block", "Q"),
        ("generation", "Q"),
        ("payload_bytes", "I"),
        ("stored_bytes", "I"),
        ("salt", "16s"),
        ("body_checksum", "Q"),
        ("reserved", "32s"),
        ("header_checksum", "Q"),
    ),
)

AAD_PURPOSE: Final = b"kvfs/v1/record\0\0"
_AAD = struct.Struct("<16s16sIIIQQQQ")
"""purpose, pool, record type, tenant, epoch, object, block, generation, payload length."""


class RecordType(enum.IntEnum):
    """What a record's payload is; part of the format."""

    DATA = 1
    METADATA_LOG = 2
    SYSTEM = 3


@dataclass(frozen=True, slots=True)
class RecordIdentity:
    """Which block of which object a record is: what the reader asks for, and what the cipher binds.

    `pool` is the pool's 16-byte UUID; `length` is the payload's length in bytes; the rest as in docs/FORMAT.md.
    """

    pool: bytes
    record_type: RecordType
    tenant: int
    epoch: int
    object: int
    block: int
    generation: int
    length: int

    def associated_data(self) -> bytes:
        """The AEAD's associated data, 76 bytes; InvalidArgumentError if a number is outside its field."""
        if len(self.pool) != UUID_BYTES:
            raise InvalidArgumentError(f"record identity: pool: want {UUID_BYTES} bytes, have {len(self.pool)}")
        try:
            return _AAD.pack(
                AAD_PURPOSE,
                self.pool,
                self.record_type,
                self.tenant,
                self.epoch,
                self.object,
                self.block,
                self.generation,
                self.length,
            )
        except struct.error as error:
            raise InvalidArgumentError(f"record identity out of range: {error}: {self!r}") from None


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """A record's header: the identity it claims (trusted only after opening), and how it is stored.

    `body_checksum` is the xxh3_64 of ciphertext | tag. `identity.length` fixes `stored_bytes`.
    """

    identity: RecordIdentity
    salt: bytes
    body_checksum: int

    @property
    def stored_bytes(self) -> int:
        """Bytes on the medium, padding included."""
        return record_bytes(self.identity.length)

    def pack(self) -> bytes:
        """The header's 128 bytes; InvalidArgumentError if a value does not fit."""
        identity = self.identity
        if len(self.salt) != SALT_BYTES or len(identity.pool) != UUID_BYTES:
            raise InvalidArgumentError(
                f"record header: want salt of {SALT_BYTES} and pool of {UUID_BYTES} bytes, "
                f"have {len(self.salt)} and {len(identity.pool)}"
            )
        return LAYOUT.pack(
            MAGIC,
            VERSION,
            identity.record_type,
            CODEC_NONE,
            identity.tenant,
            identity.epoch,
            identity.pool,
            identity.object,
            identity.block,
            identity.generation,
            identity.length,
            record_bytes(identity.length),
            self.salt,
            self.body_checksum,
            bytes(RESERVED_BYTES),
        )

    @classmethod
    def parse(cls, data: Buffer, where: str) -> RecordHeader:
        """The header in the first 128 bytes of `data`; FormatError naming `where`, what was wanted and found.

        Only a header that `pack` can make is accepted. `data` may end behind the header.
        """
        LAYOUT.magic(data, MAGIC, where)
        values = LAYOUT.unpack(data, where)
        _, version, kind, codec, tenant, epoch, pool, ino, block, generation, length, stored, salt, body, rest = values
        check(where, "record version", VERSION, version)
        check_range(where, "record type", kind, min(RecordType), max(RecordType))
        check(where, "record codec", CODEC_NONE, codec)
        check_range(where, "record payload length", length, 0, PAYLOAD_MAX_BYTES)
        check(where, "record stored length", record_bytes(length), stored)
        check_zero(where, "record reserved bytes", rest)
        identity = RecordIdentity(
            pool=pool,
            record_type=RecordType(kind),
            tenant=tenant,
            epoch=epoch,
            object=ino,
            block=block,
            generation=generation,
            length=length,
        )
        return cls(identity=identity, salt=salt, body_checksum=body)


def record_bytes(payload_length: int) -> int:
    """Bytes that a record of `payload_length` takes on the medium: header, ciphertext, tag, padding to 4 KiB.

    InvalidArgumentError if the payload is negative or over `limits.BLOCK_BYTES`.
    """
    if not 0 <= payload_length <= PAYLOAD_MAX_BYTES:
        raise InvalidArgumentError(f"record payload: want 0 to {PAYLOAD_MAX_BYTES} bytes, have {payload_length}")
    unit = limits.RECORD_ALIGN_BYTES
    return (OVERHEAD_BYTES + payload_length + unit - 1) // unit * unit


def body(header: RecordHeader, record: memoryview, where: str) -> memoryview:
    """The part of `record` behind its header that the body checksum covers: ciphertext | tag.

    FormatError if `record` is too short to hold it.
    """
    end = OVERHEAD_BYTES + header.identity.length
    if len(record) < end:
        raise FormatError(f"{where}: record: want at least {end} bytes, have {len(record)}")
    return record[HEADER_BYTES:end]


def check_body(header: RecordHeader, record: memoryview, where: str) -> None:
    """FormatError unless the stored bytes behind the header match its body checksum. Needs no key.

    `record` starts at the header. The padding is not covered: nothing reads it.
    """
    have = xxhash.xxh3_64_intdigest(body(header, record, where))
    if have != header.body_checksum:
        raise FormatError(f"{where}: record body checksum: want {header.body_checksum:016x}, have {have:016x}")

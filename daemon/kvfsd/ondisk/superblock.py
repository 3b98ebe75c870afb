"""The superblock: what a medium is, in two slots at its start (docs/FORMAT.md, superblock). Pure.

A writer puts the next sequence number into the slot that does not hold the newest one, so a torn write costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvfs import limits
from kvfs.errors import FormatError, InvalidArgumentError
from kvfsd.ondisk.layout import Buffer, Layout, check, check_range, check_zero

MAGIC: Final = b"KVFSSUPR"
VERSION: Final = 1

SLOT_BYTES: Final = 4 * limits.KIB
SLOT_OFFSETS: Final = (0, 64 * limits.KIB)
"""64 KiB apart: one torn or misdirected write of a device's internal unit does not reach both."""
DATA_OFFSET_BYTES: Final = limits.MIB
"""Where segment 0 starts on media made by this version."""

FAILURE_DOMAIN_MAX_BYTES: Final = 64
UUID_BYTES: Final = 16
RESERVED_BYTES: Final = 3904

KNOWN_INCOMPAT: Final = 0
KNOWN_RO_COMPAT: Final = 0
"""Feature flags that this version implements. An unknown incompatible flag refuses the medium, an unknown
read-only-compatible flag refuses writing to it, an unknown compatible flag is kept and ignored."""

LAYOUT: Final = Layout(
    "superblock",
    (
        ("magic", "8s"),
        ("version", "I"),
        ("slot", "I"),
        ("incompat", "Q"),
        ("ro_compat", "Q"),
        ("compat", "Q"),
        ("pool", "16s"),
        ("medium", "16s"),
        ("medium_index", "I"),
        ("weight", "I"),
        ("size_bytes", "Q"),
        ("segment_bytes", "Q"),
        ("data_offset", "Q"),
        ("sequence", "Q"),
        ("failure_domain_length", "I"),
        ("failure_domain", "64s"),
        ("replicas", "I"),
        ("reserved", f"{RESERVED_BYTES}s"),
        ("checksum", "Q"),
    ),
)


@dataclass(frozen=True, slots=True)
class Superblock:
    """One medium of a pool. Sizes in bytes; `weight` is its share in placement, 0 = takes no new records.

    `replicas` is the pool's, so that media alone say how the pool was made.

    `sequence` grows by one with each write of a superblock. `reserved` is kept as found, so that a compatible feature
    of a later version survives a rewrite by this one.
    """

    pool: bytes
    medium: bytes
    medium_index: int
    size_bytes: int
    segment_bytes: int
    weight: int = 1
    failure_domain: str = ""
    replicas: int = 1
    sequence: int = 1
    data_offset: int = DATA_OFFSET_BYTES
    incompat: int = 0
    ro_compat: int = 0
    compat: int = 0
    reserved: bytes = bytes(RESERVED_BYTES)

    @property
    def segment_count(self) -> int:
        """Whole segments behind the data offset; a rest at the end is not used."""
        return (self.size_bytes - self.data_offset) // self.segment_bytes

    @property
    def read_only(self) -> bool:
        """True if a feature that this version does not know forbids writing."""
        return bool(self.ro_compat & ~KNOWN_RO_COMPAT)

    def segment_offset(self, segment: int) -> int:
        """Byte offset of `segment` on the medium; InvalidArgumentError if there is no such segment."""
        if not 0 <= segment < self.segment_count:
            raise InvalidArgumentError(
                f"medium {self.medium_index}: segment: want 0 to {self.segment_count - 1}, have {segment}"
            )
        return self.data_offset + segment * self.segment_bytes

    def pack(self, slot: int) -> bytes:
        """The 4 KiB for `slot` (0 or 1); InvalidArgumentError if `parse` would not accept them."""
        domain = self.failure_domain.encode()
        if len(self.reserved) != RESERVED_BYTES or len(domain) > FAILURE_DOMAIN_MAX_BYTES:
            raise InvalidArgumentError(
                f"superblock: want {RESERVED_BYTES} reserved bytes and a failure domain of at most "
                f"{FAILURE_DOMAIN_MAX_BYTES} bytes, have {len(self.reserved)} and {len(domain)}"
            )
        packed = LAYOUT.pack(
            MAGIC,
            VERSION,
            slot,
            self.incompat,
            self.ro_compat,
            self.compat,
            self.pool,
            self.medium,
            self.medium_index,
            self.weight,
            self.size_bytes,
            self.segment_bytes,
            self.data_offset,
            self.sequence,
            len(domain),
            domain,
            self.replicas,
            self.reserved,
        )
        try:
            self.parse(packed, slot, "superblock to write")
        except FormatError as error:
            raise InvalidArgumentError(str(error)) from None
        return packed

    @classmethod
    def parse(cls, data: Buffer, slot: int, where: str) -> Superblock:
        """The superblock found in `slot`; FormatError naming `where` if it is damaged, misplaced or too new."""
        LAYOUT.magic(data, MAGIC, where)
        values = LAYOUT.unpack(data, where)
        (_, version, in_slot, incompat, ro_compat, compat, pool, medium, index, weight) = values[:10]
        (size, segment_bytes, data_offset, sequence, domain_length, domain, replicas, reserved) = values[10:]
        if version != VERSION:
            raise UnknownFeatureError(f"{where}: superblock version: want {VERSION}, have {version} (newer kvfs?)")
        check(where, "superblock slot", slot, in_slot)
        unknown = incompat & ~KNOWN_INCOMPAT
        if unknown:
            raise UnknownFeatureError(
                f"{where}: superblock: unknown incompatible features {unknown:#x}: needs a newer kvfs"
            )
        superblock = cls(
            pool=pool,
            medium=medium,
            medium_index=index,
            size_bytes=size,
            segment_bytes=segment_bytes,
            weight=weight,
            failure_domain=_failure_domain(domain, domain_length, where),
            replicas=replicas,
            sequence=sequence,
            data_offset=data_offset,
            incompat=incompat,
            ro_compat=ro_compat,
            compat=compat,
            reserved=reserved,
        )
        _check_geometry(superblock, where)
        return superblock


class UnknownFeatureError(FormatError):
    """The medium is sound, but of a version or with a feature that this code does not know: never overwrite it."""


def newest(slots: tuple[Superblock | None, Superblock | None]) -> int:
    """Slot that holds the higher sequence, of the slots that parsed; FormatError if none did."""
    found = [(superblock.sequence, slot) for slot, superblock in enumerate(slots) if superblock is not None]
    if not found:
        raise FormatError("no valid superblock")
    return max(found)[1]


def _failure_domain(field: bytes, length: int, where: str) -> str:
    """Text of the failure domain field."""
    check_range(where, "superblock failure domain length", length, 0, FAILURE_DOMAIN_MAX_BYTES)
    check_zero(where, "superblock failure domain padding", field[length:])
    try:
        return field[:length].decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: superblock failure domain: want UTF-8, have {field[:length]!r}: {error}") from None


def _check_geometry(superblock: Superblock, where: str) -> None:
    """FormatError unless sizes and indices are within their limits and fit each other."""
    check_range(where, "superblock medium index", superblock.medium_index, 0, limits.MEDIA_PER_POOL_MAX - 1)
    check_range(where, "superblock replicas", superblock.replicas, 1, limits.REPLICAS_MAX)
    check_range(where, "superblock sequence", superblock.sequence, 1, 2**63)
    check_range(where, "superblock size", superblock.size_bytes, limits.MEDIUM_MIN_BYTES, 2**63)
    low, high = limits.SEGMENT_MIN_BYTES, limits.SEGMENT_MAX_BYTES
    check_range(where, "superblock segment bytes", superblock.segment_bytes, low, high)
    last = superblock.size_bytes - superblock.segment_bytes
    check_range(where, "superblock data offset", superblock.data_offset, SLOT_OFFSETS[1] + SLOT_BYTES, last)
    unit = limits.RECORD_ALIGN_BYTES
    misaligned = superblock.segment_bytes % unit or superblock.data_offset % unit
    check(where, "superblock alignment of segment bytes and data offset", 0, misaligned)
    check_range(where, "superblock segment count", superblock.segment_count, 1, 2**32 - 1)

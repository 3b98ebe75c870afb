"""Segments: runs of records of one tenant and one key epoch (docs/FORMAT.md, segment). Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from kvfs import limits
from kvfsd.ondisk.layout import Buffer, Layout, check, check_range, check_zero

MAGIC: Final = b"KVFSSEGM"
VERSION: Final = 1
HEADER_BYTES: Final = 4 * limits.KIB
HEADER_UNITS: Final = HEADER_BYTES // limits.RECORD_ALIGN_BYTES
"""Records start this many 4 KiB units behind the start of a segment."""
RESERVED_BYTES: Final = HEADER_BYTES - 72

LAYOUT: Final = Layout(
    "segment header",
    (
        ("magic", "8s"),
        ("version", "I"),
        ("kind", "I"),
        ("pool", "16s"),
        ("medium", "16s"),
        ("segment", "I"),
        ("tenant", "I"),
        ("epoch", "I"),
        ("medium_index", "I"),
        ("reserved", f"{RESERVED_BYTES}s"),
        ("checksum", "Q"),
    ),
)


class SegmentKind(enum.IntEnum):
    """What the records of a segment are; part of the format."""

    DATA = 1
    METADATA_LOG = 2
    SYSTEM = 3


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first 4 KiB of a segment in use. `pool` and `medium` are 16-byte UUIDs; tenant 0 is the system.

    Medium and segment number are repeated here so that a misdirected header is found.
    """

    kind: SegmentKind
    pool: bytes
    medium: bytes
    medium_index: int
    segment: int
    tenant: int
    epoch: int

    def pack(self) -> bytes:
        """The header's 4 KiB; InvalidArgumentError if a value does not fit its field."""
        return LAYOUT.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.pool,
            self.medium,
            self.segment,
            self.tenant,
            self.epoch,
            self.medium_index,
            bytes(RESERVED_BYTES),
        )

    @classmethod
    def parse(cls, data: Buffer, where: str) -> SegmentHeader:
        """The header in the first 4 KiB of `data`; FormatError naming `where`."""
        LAYOUT.magic(data, MAGIC, where)
        values = LAYOUT.unpack(data, where)
        _, version, kind, pool, medium, segment, tenant, epoch, medium_index, reserved = values
        check(where, "segment version", VERSION, version)
        check_range(where, "segment kind", kind, min(SegmentKind), max(SegmentKind))
        check_range(where, "segment medium index", medium_index, 0, limits.MEDIA_PER_POOL_MAX - 1)
        check_zero(where, "segment reserved bytes", reserved)
        return cls(
            kind=SegmentKind(kind),
            pool=pool,
            medium=medium,
            medium_index=medium_index,
            segment=segment,
            tenant=tenant,
            epoch=epoch,
        )

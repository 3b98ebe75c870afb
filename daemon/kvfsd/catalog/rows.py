"""Row types of the catalog: plain tuples with names, their packing, and listing cookies. Pure."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvfs import limits
from kvfs.errors import FormatError, InvalidArgumentError

INODE_QUARANTINED: Final = 1
"""Flag of an inode whose data failed its checks: hidden from lookup and listing, its name may be stored anew."""

_LOCATION = struct.Struct(">HII")
LOCATION_BYTES: Final = _LOCATION.size


class Location(NamedTuple):
    """Where a record lies: medium index (u16), segment number (u32), offset in units of 4 KiB (u32)."""

    medium: int
    segment: int
    offset: int


class InodeRow(NamedTuple):
    """An object. The first twelve fields are those of `kvfs.commands.Attributes`, in its order.

    `parent` is the directory a directory lies in (its own number for a root), 0 for everything else; `target` is the
    sealed target of a symbolic link. `members` and `xattrs` are sums of checks (`rowmacs`): of the blocks of a file or
    the names of a directory, and of extended attributes. They are not in the metadata log.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    stored_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    generation: int
    parent: int = 0
    flags: int = 0
    target: bytes = b""
    members: int = 0
    xattrs: int = 0


LOGGED_FIELDS: Final = 15
"""So many fields of an `InodeRow`, from the first on, are what the metadata log says of an object."""


class Entry(NamedTuple):
    """A name: the sealed `name` in directory `parent` of `tenant`."""

    tenant: int
    parent: int
    name: bytes


class ListedEntry(NamedTuple):
    """One name of a listing; `cookie` (1 .. 2^62-1) resumes the listing after it."""

    name: bytes
    cookie: int
    inode: InodeRow


class RemovedName(NamedTuple):
    """The object that lost a name (ino 0: none) and the names it has left."""

    ino: int = 0
    nlink: int = 0


class BlockRow(NamedTuple):
    """A sealed block of an object: `length` plaintext bytes, the record's GCM `tag`, one location per replica."""

    block: int
    generation: int
    length: int
    epoch: int
    tag: bytes
    locations: tuple[Location, ...]


class PlacedBlock(NamedTuple):
    """A block that has a replica in the segment that was asked about; `attachment` is 0 unless it is uncommitted."""

    tenant: int
    ino: int
    attachment: int
    row: BlockRow


class TenantRow(NamedTuple):
    """A tenant; quotas of 0 mean no bound. `state` is one of TenantState. Its use has no check but at rest."""

    tenant: int
    sealed_name: bytes
    quota_bytes: int
    quota_objects: int
    used_bytes: int
    used_objects: int
    root_ino: int
    state: int
    created_ns: int


class KeySlotRow(NamedTuple):
    """A wrapped key of a tenant: epoch 0 seals names, epochs from 1 on are DEKs."""

    tenant: int
    epoch: int
    wrapped: bytes


class AccessKind(enum.IntEnum):
    """What an entry of a tenant's access list names; numbers are part of the format."""

    UID = 1
    GID = 2
    CREDENTIAL = 3


class AccessRow(NamedTuple):
    """An entry of a tenant's access list: a uid or gid (4 bytes, little endian), or a credential's SHA-256 digest."""

    kind: int
    value: bytes


class SegmentRow(NamedTuple):
    """A segment in use: `write_offset` and `live_bytes` (padded records that something refers to) are bytes."""

    medium: int
    segment: int
    state: int
    kind: int
    tenant: int
    epoch: int
    write_offset: int
    live_bytes: int


class QuarantineRow(NamedTuple):
    """An object put aside: hidden where it is (`sealed_name` empty), or unlinked and kept until `time_ns` is old."""

    tenant: int
    ino: int
    parent: int
    sealed_name: bytes
    reason: str
    time_ns: int


class MediumRow(NamedTuple):
    """A medium of the pool: its index in locations, 16-byte UUID, path, placement weight, failure domain, state."""

    medium: int
    uuid: bytes
    path: str
    weight: int
    failure_domain: str
    state: int


def cookie_of(sealed_name: bytes) -> int:
    """Listing position of a sealed name, 1 .. 2^62-1: its first 8 bytes less 2 bits.

    Sealed names start with the 16-byte synthetic IV of AES-SIV, a pseudo-random function of directory and name, so in a
    directory of n names two share a cookie with chance n^2 / 2^63: 1e-7 for a million. Lookups do not depend on it.
    """
    return int.from_bytes(sealed_name[:8], "big") >> 2 or 1


def pack_locations(locations: Sequence[Location]) -> bytes:
    """Locations as the catalog keeps them: 10 bytes each, big endian, so that 6 bytes name a segment."""
    if not 1 <= len(locations) <= limits.REPLICAS_MAX:
        raise InvalidArgumentError(f"locations: want 1 to {limits.REPLICAS_MAX}, have {len(locations)}")
    try:
        return b"".join([_LOCATION.pack(*location) for location in locations])
    except struct.error as error:
        raise InvalidArgumentError(f"location out of range: {error}: {locations!r}") from None


def unpack_locations(packed: bytes) -> tuple[Location, ...]:
    """The reverse of `pack_locations`; FormatError if the length is impossible."""
    count, rest = divmod(len(packed), LOCATION_BYTES)
    if rest or not 1 <= count <= limits.REPLICAS_MAX:
        raise FormatError(
            f"catalog: locations of a block: {len(packed)} bytes are not 1 to {limits.REPLICAS_MAX} of 10"
        )
    if count == 1:
        return (Location._make(_LOCATION.unpack(packed)),)
    return tuple(Location._make(values) for values in _LOCATION.iter_unpack(packed))


def segment_prefix(medium: int, segment: int) -> bytes:
    """First 6 bytes of every packed location in that segment."""
    return medium.to_bytes(2, "big") + segment.to_bytes(4, "big")

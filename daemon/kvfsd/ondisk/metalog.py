"""Payloads of the metadata log and of system records (docs/FORMAT.md, metadata log). Pure.

The metadata log of a tenant is a sequence of batches; a batch is a sequence of entries; an entry is (part of) the row
changes of one catalog transaction. Every change is absolute ("this row is now so", "this row is gone"), so replaying a
stretch of log twice, or over a snapshot that was read while the log went on, ends in the same rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from kvfs import limits
from kvfs.errors import FormatError, InvalidArgumentError

BATCH_MAGIC: Final = b"KVML"
SYSTEM_MAGIC: Final = b"KVSY"
VERSION: Final = 1
BATCH_MAX_BYTES: Final = limits.BLOCK_BYTES
"""A batch is the payload of one record."""
ENTRY_MAX_BYTES: Final = 256 * limits.KIB
"""A transaction that encodes to more is split into several entries; the largest single change is an xattr value."""
CHANGES_PER_ENTRY_MAX: Final = 4096
SYSTEM_PARTS_MAX: Final = 1024

_HEADER = struct.Struct("<4sHHIIQ")
"""magic, version, reserved, count (entries) or parts, reserved or part, previous or snapshot generation."""
HEADER_BYTES: Final = _HEADER.size
_LENGTH = struct.Struct("<I")
LENGTH_BYTES: Final = _LENGTH.size


class _Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of row changes; the tag is the first element on the media."""


class PutInode(_Change, frozen=True, tag=1):
    """The object's row; the fields of `catalog.rows.InodeRow` in its order."""

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
    parent: int
    flags: int
    target: bytes


class TouchInode(_Change, frozen=True, tag=2):
    """New link count, mtime and ctime of an object, if it has a row."""

    ino: int
    nlink: int
    mtime_ns: int
    ctime_ns: int


class DropInode(_Change, frozen=True, tag=3):
    """The object is gone with its blocks and extended attributes."""

    ino: int


class PutEntry(_Change, frozen=True, tag=4):
    """A sealed name in a directory stands for `ino`."""

    parent: int
    name: bytes
    ino: int


class DropEntry(_Change, frozen=True, tag=5):
    """A sealed name is gone from a directory."""

    parent: int
    name: bytes


class PutXattr(_Change, frozen=True, tag=6):
    """An extended attribute, name and value sealed."""

    ino: int
    name: bytes
    value: bytes


class DropXattr(_Change, frozen=True, tag=7):
    """An extended attribute is gone."""

    ino: int
    name: bytes


class PutBlock(_Change, frozen=True, tag=8):
    """Which sealed version of a block counts; where it lies is found by scanning."""

    ino: int
    block: int
    generation: int
    length: int
    epoch: int
    tag: bytes


class DropBlocks(_Change, frozen=True, tag=9):
    """Blocks of the object from `block` on are gone."""

    ino: int
    block: int


class SnapshotBegin(_Change, frozen=True, tag=10):
    """The whole tenant follows as Put changes, interleaved with what happens meanwhile; `snapshot` names it."""

    snapshot: int


class SnapshotEnd(_Change, frozen=True, tag=11):
    """The snapshot is complete: replay may start at its SnapshotBegin, with nothing."""

    snapshot: int


Change: TypeAlias = (
    PutInode
    | TouchInode
    | DropInode
    | PutEntry
    | DropEntry
    | PutXattr
    | DropXattr
    | PutBlock
    | DropBlocks
    | SnapshotBegin
    | SnapshotEnd
)


class LogEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Changes of one transaction; `last` is false if more of the same transaction follow in the next entry."""

    last: bool
    changes: list[Change]


class Batch(NamedTuple):
    """A decoded batch: `previous` is the generation of the record before it in the tenant's log (0: the first)."""

    previous: int
    entries: list[LogEntry]


class SystemTenant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A tenant as system records have it: `slots` are (epoch, wrapped key) pairs.

    `policy` are the numbers of `catalog.retention_rows.TenantPolicy`, `access` (kind, value) pairs of its access list.
    What is empty at the end of the array is not written at all.
    """

    tenant: int
    sealed_name: bytes
    quota_bytes: int
    quota_objects: int
    root_ino: int
    state: int
    created_ns: int
    slots: list[tuple[int, bytes]]
    policy: list[int] = []
    access: list[tuple[int, bytes]] = []


class SystemPart(NamedTuple):
    """One part of a system snapshot, which is all tenants of the pool; `snapshot` is the generation of part 0."""

    snapshot: int
    part: int
    parts: int
    tenants: list[SystemTenant]


_encoder = msgspec.msgpack.Encoder()
_decode_entry = msgspec.msgpack.Decoder(LogEntry).decode
_decode_tenants = msgspec.msgpack.Decoder(list[SystemTenant]).decode


def encode_entries(changes: Sequence[Change]) -> list[bytes]:
    """The entries of one transaction, each at most ENTRY_MAX_BYTES; InvalidArgumentError if one change is larger."""
    if len(changes) <= CHANGES_PER_ENTRY_MAX:
        whole = _encoder.encode((True, changes))
        if len(whole) <= ENTRY_MAX_BYTES:
            return [whole]
    if len(changes) == 1:
        raise InvalidArgumentError(f"metadata log: one change encodes to over {ENTRY_MAX_BYTES} bytes")
    middle = len(changes) // 2
    pieces = encode_entries(changes[:middle]) + encode_entries(changes[middle:])
    last = len(pieces) - 1
    return [_with_last(piece, last=index == last) for index, piece in enumerate(pieces)]


def _with_last(entry: bytes, *, last: bool) -> bytes:
    # The encoded entry starts with the array's byte, then the boolean's: 0xc2 false, 0xc3 true.
    return entry[:1] + (b"\xc3" if last else b"\xc2") + entry[2:]


def decode_entry(data: bytes | memoryview, where: str) -> LogEntry:
    """One entry; FormatError naming `where` if it is not one, or is over its bounds."""
    if len(data) > ENTRY_MAX_BYTES:
        raise FormatError(f"{where}: log entry of {len(data)} bytes is over {ENTRY_MAX_BYTES}")
    try:
        entry = _decode_entry(data)
    except msgspec.MsgspecError as error:
        raise FormatError(f"{where}: log entry: {error}") from None
    if len(entry.changes) > CHANGES_PER_ENTRY_MAX:
        raise FormatError(f"{where}: log entry of {len(entry.changes)} changes is over {CHANGES_PER_ENTRY_MAX}")
    return entry


def encode_batch(previous: int, entries: Sequence[bytes]) -> bytes:
    """A batch of encoded entries; InvalidArgumentError if it is empty or over BATCH_MAX_BYTES."""
    parts = [_HEADER.pack(BATCH_MAGIC, VERSION, 0, len(entries), 0, previous)]
    for entry in entries:
        parts.append(_LENGTH.pack(len(entry)))
        parts.append(entry)
    payload = b"".join(parts)
    if not entries or len(payload) > BATCH_MAX_BYTES:
        raise InvalidArgumentError(f"metadata log: batch of {len(entries)} entries, {len(payload)} bytes")
    return payload


def decode_batch(payload: bytes | memoryview, where: str) -> Batch:
    """A whole batch; FormatError naming `where` for anything that `encode_batch` cannot have made."""
    count, reserved, previous = _open_header(payload, BATCH_MAGIC, where)
    if reserved or not 1 <= count <= (len(payload) - HEADER_BYTES) // LENGTH_BYTES:
        raise FormatError(f"{where}: log batch: {count} entries in {len(payload)} bytes")
    entries = [decode_entry(piece, where) for piece in _pieces(memoryview(payload), count, where)]
    return Batch(previous, entries)


def _pieces(view: memoryview, count: int, where: str) -> Iterator[memoryview]:
    offset = HEADER_BYTES
    for _ in range(count):
        start = offset + LENGTH_BYTES
        if start > len(view):
            raise FormatError(f"{where}: log batch ends inside a length at {offset}")
        offset = start + _LENGTH.unpack_from(view, offset)[0]
        if offset > len(view):
            raise FormatError(f"{where}: log batch ends inside the entry at {start}")
        yield view[start:offset]
    if offset != len(view):
        raise FormatError(f"{where}: log batch: {len(view) - offset} bytes after the last entry")


def _open_header(payload: bytes | memoryview, magic: bytes, where: str) -> tuple[int, int, int]:
    if not HEADER_BYTES <= len(payload) <= BATCH_MAX_BYTES:
        raise FormatError(f"{where}: payload of {len(payload)} bytes, want {HEADER_BYTES} to {BATCH_MAX_BYTES}")
    found, version, reserved, first, second, generation = _HEADER.unpack_from(payload)
    if found != magic:
        raise FormatError(f"{where}: payload magic: want {magic!r}, have {found!r}")
    if version != VERSION or reserved:
        raise FormatError(f"{where}: payload version: want {VERSION}, have {version}")
    return first, second, generation


def encode_system(snapshot: int, tenants: Iterable[SystemTenant]) -> list[bytes]:
    """A system snapshot as the payloads of its parts, each at most BATCH_MAX_BYTES; `snapshot` is its generation."""
    groups: list[list[SystemTenant]] = [[]]
    used = HEADER_BYTES + 5
    for tenant in tenants:
        encoded = len(_encoder.encode(_system_fields(tenant)))
        if used + encoded > BATCH_MAX_BYTES:
            groups.append([])
            used = HEADER_BYTES + 5
        groups[-1].append(tenant)
        used += encoded
    if len(groups) > SYSTEM_PARTS_MAX or used > BATCH_MAX_BYTES:
        raise InvalidArgumentError(
            f"system snapshot: {len(groups)} parts, or one tenant of over {BATCH_MAX_BYTES} bytes"
        )
    return [
        _HEADER.pack(SYSTEM_MAGIC, VERSION, 0, len(groups), part, snapshot)
        + _encoder.encode([_system_fields(tenant) for tenant in group])
        for part, group in enumerate(groups)
    ]


def _system_fields(tenant: SystemTenant) -> tuple[Any, ...]:
    """The fields of a tenant as they are written: what is empty at the end is left out."""
    fields = msgspec.structs.astuple(tenant)
    return fields if tenant.access else fields[:-1] if tenant.policy else fields[:-2]


def decode_system(payload: bytes | memoryview, where: str) -> SystemPart:
    """One part of a system snapshot; FormatError naming `where` if it is not one."""
    parts, part, snapshot = _open_header(payload, SYSTEM_MAGIC, where)
    if not part < parts <= SYSTEM_PARTS_MAX:
        raise FormatError(f"{where}: system snapshot: part {part} of {parts}")
    try:
        tenants = _decode_tenants(memoryview(payload)[HEADER_BYTES:])
    except msgspec.MsgspecError as error:
        raise FormatError(f"{where}: system snapshot: {error}") from None
    if len(tenants) > limits.TENANTS_MAX:
        raise FormatError(f"{where}: system snapshot: {len(tenants)} tenants are over {limits.TENANTS_MAX}")
    return SystemPart(snapshot, part, parts, tenants)

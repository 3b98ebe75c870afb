"""Reading a segment record by record without the catalog: for rebuild, scrub and inspection. Needs no key.

Records start at 4 KiB boundaries. Holes are skipped; what is neither a hole nor a record is reported, and the next
boundary is tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from kvfs import limits
from kvfs.errors import FormatError, MediumUnavailableError
from kvfsd.media.base import Medium
from kvfsd.ondisk import record as record_format
from kvfsd.ondisk.layout import check
from kvfsd.ondisk.record import RecordHeader, RecordIdentity
from kvfsd.ondisk.segment import HEADER_BYTES, SegmentHeader, SegmentKind
from kvfsd.ondisk.superblock import Superblock

_UNIT: Final = limits.RECORD_ALIGN_BYTES
_ZERO_UNIT: Final = bytes(_UNIT)
WINDOW_BYTES: Final = 2 * limits.MIB
"""Read at once; more than the largest record, so a record lies in one window."""


@dataclass(frozen=True, slots=True)
class ScannedRecord:
    """A record with a valid header at `offset` (4 KiB units in its segment).

    `damage` says what is wrong with its body, empty if nothing. `record` is all of its stored bytes, and valid until
    the scan goes on.
    """

    offset: int
    header: RecordHeader
    record: memoryview
    damage: str = ""


@dataclass(frozen=True, slots=True)
class ScannedDamage:
    """`units` of 4 KiB from `offset` on that are neither a hole nor part of a record, and why not."""

    offset: int
    units: int
    reason: str


async def read_segment_header(
    medium: Medium, superblock: Superblock, segment: int, damages: list[str] | None = None
) -> SegmentHeader | None:
    """What the segment holds; None if it is free, or has been another pool's and was never used by this one.

    A header that is damaged or lost is made again from the segment's first sound record, which says the same; what was
    wrong is added to `damages`. Raises FormatError if there is neither.
    """
    where = f"medium {medium.name}: segment {segment}"
    try:
        return await _stored_header(medium, superblock, segment, where)
    except (FormatError, MediumUnavailableError) as error:
        if damages is not None:
            damages.append(str(error))
        async for found in SegmentScan(medium, superblock, segment):
            if isinstance(found, ScannedRecord) and not found.damage and found.header.identity.pool == superblock.pool:
                return _header_like(found.header.identity, superblock, segment)
        raise FormatError(f"{error}; no sound record in the segment either") from error


async def _stored_header(medium: Medium, superblock: Superblock, segment: int, where: str) -> SegmentHeader | None:
    """The header that is stored. FormatError if it is damaged, belongs elsewhere, or is absent before a record."""
    buffer = bytearray(HEADER_BYTES + _UNIT)
    await medium.read_into(superblock.segment_offset(segment), memoryview(buffer))
    if not any(buffer):
        return None
    check(where, "segment header is there", True, any(buffer[:HEADER_BYTES]))
    header = SegmentHeader.parse(buffer, where)
    if header.pool != superblock.pool:
        return None
    check(where, "medium", superblock.medium, header.medium)
    check(where, "segment number", segment, header.segment)
    return header


def _header_like(identity: RecordIdentity, superblock: Superblock, segment: int) -> SegmentHeader:
    """The header of a segment that holds a record of this identity."""
    return SegmentHeader(
        kind=SegmentKind(identity.record_type),
        pool=superblock.pool,
        medium=superblock.medium,
        medium_index=superblock.medium_index,
        segment=segment,
        tenant=identity.tenant,
        epoch=identity.epoch,
    )


class SegmentScan:
    """Async iterator over the records of one segment, damage included: `async for found in SegmentScan(...)`.

    `start` is the unit to begin with. An unreadable 4 KiB is damage like any other, and costs what is in it.
    """

    def __init__(self, medium: Medium, superblock: Superblock, segment: int, *, start: int = 1) -> None:
        self._medium = medium
        self._base = superblock.segment_offset(segment)
        self._end = superblock.segment_bytes // _UNIT
        self._where = f"medium {medium.name}: segment {segment}"
        self._next = max(start, HEADER_BYTES // _UNIT)
        self._buffer = memoryview(bytearray(WINDOW_BYTES))
        self._window = range(0)
        self._unreadable: dict[int, str] = {}

    def __aiter__(self) -> SegmentScan:
        return self

    async def __anext__(self) -> ScannedRecord | ScannedDamage:
        """The next record or damaged run."""
        while self._next < self._end:
            await self._load(self._next)
            found = self._record_at(self._next)
            if isinstance(found, ScannedRecord):
                if self._next + found.header.stored_bytes // _UNIT > self._window.stop < self._end:
                    self._window = range(0)  # the record crosses the window's end: read again from its start
                    continue
                return self._take(found)
            if found:
                return await self._damage(found)
            self._next += 1
        raise StopAsyncIteration

    def _take(self, found: ScannedRecord) -> ScannedRecord:
        """Go on behind the record; behind its first unit only if its body is not sound."""
        self._next += 1 if found.damage else found.header.stored_bytes // _UNIT
        return found

    async def _damage(self, reason: str) -> ScannedDamage:
        """Collect the run of units that starts with a damaged one."""
        start = self._next
        self._next += 1
        while self._next < self._end:
            await self._load(self._next)
            if not isinstance(self._record_at(self._next), str) or not self._record_at(self._next):
                break
            self._next += 1
        return ScannedDamage(start, self._next - start, reason)

    def _record_at(self, unit: int) -> ScannedRecord | str:
        """The record that starts at `unit` of the window, "" for a hole, or why it is neither."""
        if unit in self._unreadable:
            return self._unreadable[unit]
        view = self._buffer[(unit - self._window.start) * _UNIT : len(self._window) * _UNIT]
        if view[:_UNIT] == _ZERO_UNIT:
            return ""
        where = f"{self._where}, offset {unit}"
        try:
            header = RecordHeader.parse(view, where)
        except FormatError as error:
            return str(error)
        stored = view[: header.stored_bytes]
        if len(stored) < header.stored_bytes:
            return ScannedRecord(unit, header, stored, f"{where}: record reaches over the end of its segment")
        try:
            record_format.check_body(header, stored, where)
        except FormatError as error:
            return ScannedRecord(unit, header, stored, str(error))
        return ScannedRecord(unit, header, stored)

    async def _load(self, unit: int) -> None:
        """Have `unit` in the window."""
        if unit in self._window:
            return
        window = range(unit, min(self._end, unit + WINDOW_BYTES // _UNIT))
        self._unreadable.clear()
        await trio.lowlevel.checkpoint()  # a read from the page cache does not give way to writers
        try:
            await self._medium.read_into(self._base + unit * _UNIT, self._buffer[: len(window) * _UNIT])
        except MediumUnavailableError:
            await self._load_units(window)
        self._window = window

    async def _load_units(self, window: range) -> None:
        """Read a window that has an unreadable part unit by unit."""
        for index, unit in enumerate(window):
            target = self._buffer[index * _UNIT : (index + 1) * _UNIT]
            try:
                await self._medium.read_into(self._base + unit * _UNIT, target)
            except MediumUnavailableError as error:
                target[:] = _ZERO_UNIT
                self._unreadable[unit] = str(error)

"""What is known in memory about the segments of one medium: free, open, closed, waited for. No I/O.

The catalog's segment rows are the truth after a restart; this is their working copy plus what no restart needs: where
the next append goes, pins, and appends that the catalog does not know yet.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from kvfs import limits
from kvfs.errors import FormatError, InvalidArgumentError, NotFoundError
from kvfsd.catalog.rows import Location, SegmentRow
from kvfsd.catalog.schema import SegmentState
from kvfsd.media.base import Capability, Medium
from kvfsd.ondisk.segment import HEADER_BYTES, SegmentHeader, SegmentKind
from kvfsd.ondisk.superblock import Superblock

KEEP_FROM_WRITERS: Final = 2
"""Segments of each medium that data writers leave free: one for the collector's copies, one for the metadata log."""


class OpenMedium(NamedTuple):
    """A medium that is open, and its superblock."""

    medium: Medium
    superblock: Superblock


class Stream(NamedTuple):
    """What shares a segment: records of one kind, one tenant, one key epoch."""

    kind: SegmentKind
    tenant: int
    epoch: int


@dataclass(slots=True, eq=False)
class SegmentUse:
    """A segment in use. `end` is where the next record goes, in bytes behind the segment's start.

    `unsettled` appends are not in the catalog yet (or will never be); `freed` means that the catalog has forgotten the
    segment and it waits for its last reader.
    """

    number: int
    stream: Stream
    end: int = HEADER_BYTES
    header_checked: bool = False
    closed: bool = False
    freed: bool = False
    unsettled: int = 0
    pins: int = 0


@dataclass(slots=True, eq=False)
class StreamState:
    """The open segment of a stream, if any; `lock` is held to open one, and on serial media to append."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    segment: SegmentUse | None = None


@dataclass(slots=True, eq=False)
class SpaceWaiter:
    """A writer that waits for a free segment; `freed` is the collector's answer."""

    event: trio.Event = field(default_factory=trio.Event)
    freed: bool = False

    def answer(self, freed: bool) -> None:
        """Let the writer go on: try again, or give up."""
        self.freed = freed
        self.event.set()


class MediumSpace:
    """The segments of one medium. FormatError if the catalog's rows do not fit the medium.

    `without_room` is shared by all media of a pool: the indices of those on which data writers can open no segment.
    """

    def __init__(self, opened: OpenMedium, rows: Iterable[SegmentRow], without_room: set[int]) -> None:
        self.medium = opened.medium
        self.superblock = opened.superblock
        self.index = opened.superblock.medium_index
        self.serial = Capability.PARALLEL_APPEND not in opened.medium.capabilities
        self.capacity_bytes = opened.superblock.segment_bytes - HEADER_BYTES
        self.in_use: dict[int, SegmentUse] = {}
        self.streams: dict[Stream, StreamState] = {}
        self.waiters: list[SpaceWaiter] = []
        self.to_close: list[SegmentUse] = []
        """Open segments of the catalog that cannot be resumed: the store closes their rows."""
        for row in rows:
            self._adopt(row)
        self._free = [number for number in range(self.superblock.segment_count) if number not in self.in_use]
        self._trimmed: set[int] = set()
        self._without_room = without_room
        self._note_room()

    @property
    def free_segments(self) -> int:
        """Segments that can be taken now."""
        return len(self._free)

    def stream(self, stream: Stream) -> StreamState:
        """The state of `stream`, made if there is none."""
        state = self.streams.get(stream)
        if state is None:
            state = self.streams[stream] = StreamState()
        return state

    def take(self, stream: Stream, keep: int) -> SegmentUse | None:
        """The lowest free segment, now in use by `stream`; None if no more than `keep` are free."""
        if len(self._free) <= keep:
            return None
        segment = SegmentUse(heapq.heappop(self._free), stream)
        self.in_use[segment.number] = segment
        self._note_room()
        return segment

    def fits(self, segment: SegmentUse, length: int) -> bool:
        """True if `length` bytes can still be appended to the segment."""
        return segment.end + length <= self.superblock.segment_bytes

    def was_trimmed(self, number: int) -> bool:
        """True if the segment is known to read as zeros; the knowledge is used up by asking."""
        known = number in self._trimmed
        self._trimmed.discard(number)
        return known

    def give_back(self, segment: SegmentUse) -> None:
        """A trimmed segment is free again; every writer that waits may try."""
        del self.in_use[segment.number]
        self._trimmed.add(segment.number)
        heapq.heappush(self._free, segment.number)
        self._note_room()
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.answer(freed=True)

    def give_back_untouched(self, segment: SegmentUse) -> None:
        """The segment was taken and nothing was done with it."""
        del self.in_use[segment.number]
        heapq.heappush(self._free, segment.number)
        self._note_room()

    def _note_room(self) -> None:
        if len(self._free) > KEEP_FROM_WRITERS:
            self._without_room.discard(self.index)
        else:
            self._without_room.add(self.index)

    def segment(self, number: int) -> SegmentUse:
        """The segment in use; NotFoundError if it is free."""
        segment = self.in_use.get(number)
        if segment is None or segment.freed:
            raise NotFoundError(f"medium {self.index} ({self.medium.name}): segment {number} is free")
        return segment

    def header_of(self, segment: SegmentUse) -> SegmentHeader:
        """What stands at the start of the segment."""
        return SegmentHeader(
            kind=segment.stream.kind,
            pool=self.superblock.pool,
            medium=self.superblock.medium,
            medium_index=self.index,
            segment=segment.number,
            tenant=segment.stream.tenant,
            epoch=segment.stream.epoch,
        )

    def byte_offset(self, location: Location, length: int) -> int:
        """Where `length` bytes at `location` lie on the medium; InvalidArgumentError if they leave their segment."""
        start = self.superblock.segment_offset(location.segment)
        within = location.offset * limits.RECORD_ALIGN_BYTES
        if not HEADER_BYTES <= within <= self.superblock.segment_bytes - length or length <= 0:
            raise InvalidArgumentError(
                f"medium {self.index}: {length} bytes at {location}: "
                f"outside a segment of {self.superblock.segment_bytes} bytes"
            )
        return start + within

    def _adopt(self, row: SegmentRow) -> None:
        """Take over a row of the catalog."""
        where = f"catalog: segment {row.medium}:{row.segment}"
        if not 0 <= row.segment < self.superblock.segment_count:
            raise FormatError(f"{where}: the medium has {self.superblock.segment_count} segments")
        if not 0 <= row.write_offset <= self.superblock.segment_bytes or row.write_offset % limits.RECORD_ALIGN_BYTES:
            raise FormatError(f"{where}: write offset {row.write_offset} in {self.superblock.segment_bytes} bytes")
        try:
            stream = Stream(SegmentKind(row.kind), row.tenant, row.epoch)
            state = SegmentState(row.state)
        except ValueError as error:
            raise FormatError(f"{where}: {error}") from None
        segment = SegmentUse(row.segment, stream, end=max(row.write_offset, HEADER_BYTES))
        self.in_use[row.segment] = segment
        if state is SegmentState.CLOSED:
            segment.closed = True
        elif self.serial or self.stream(stream).segment is not None:
            self.to_close.append(segment)
        else:
            self.stream(stream).segment = segment

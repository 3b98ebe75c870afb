"""How records get into segments: the open segment of each stream, opening the next one, waiting for space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

import trio

from kvfs import limits
from kvfs.errors import FormatError, InvalidArgumentError, MediumUnavailableError, PoolFullError
from kvfsd.catalog.rows import Location, SegmentRow
from kvfsd.catalog.schema import SegmentState
from kvfsd.ondisk.segment import HEADER_BYTES, SegmentHeader, SegmentKind
from kvfsd.segments.space import MediumSpace, SegmentUse, SpaceWaiter, Stream

SPACE_DEADLINE_MS: Final = limits.MEDIUM_DEADLINE_MS
"""How long a writer waits for the collector when no segment is free."""


class Append(NamedTuple):
    """A record (whole 4 KiB units) to append to the segments of its kind, tenant and key epoch.

    `wait`: with no segment free the collector gets time to find space. A medium that does not answer within
    `deadline_ms`, that wait not counted, is an error.
    """

    tenant: int
    epoch: int
    record: memoryview
    kind: SegmentKind
    wait: bool = True
    deadline_ms: int = limits.COMMAND_DEADLINE_MS


class SegmentTable(Protocol):
    """The catalog's rows of segments (`kvfsd.catalog.segment_rows.SegmentRows`). Changes need a transaction."""

    def all(self) -> Sequence[SegmentRow]:
        """Every segment in use."""
        ...

    def get(self, medium: int, segment: int) -> SegmentRow:
        """One segment; NotFoundError if it is free."""
        ...

    def empty(self, limit: int = 1024) -> Sequence[SegmentRow]:
        """Closed segments that nothing refers to."""
        ...

    def allocate(self, row: SegmentRow) -> None:
        """Take a free segment."""
        ...

    def close(self, medium: int, segment: int) -> None:
        """Nothing is appended any more."""
        ...

    def free(self, medium: int, segment: int) -> None:
        """Forget an empty segment."""
        ...


class SegmentAppender:
    """Appends to the segments of any medium; `wake_collector` is called when a writer waits for space."""

    def __init__(self, table: SegmentTable, transaction: Callable[[], AbstractContextManager[None]]) -> None:
        self._table = table
        self._transaction = transaction
        self.wake_collector: Callable[[], None] | None = None

    async def append(self, space: MediumSpace, what: Append, keep: int) -> Location:
        """Append to one medium, leaving `keep` segments free."""
        length = len(what.record)
        if not 0 < length <= space.capacity_bytes or length % limits.RECORD_ALIGN_BYTES:
            raise InvalidArgumentError(
                f"record of {length} bytes: want a multiple of {limits.RECORD_ALIGN_BYTES} up to {space.capacity_bytes}"
            )
        stream = Stream(what.kind, what.tenant, what.epoch)
        give_up_at = trio.current_time() + SPACE_DEADLINE_MS / 1000
        while True:
            location = None
            with trio.move_on_after(what.deadline_ms / 1000) as scope:
                location = await self._append_now(space, stream, what.record, keep)
            if location is not None:
                return location
            if scope.cancelled_caught:
                raise MediumUnavailableError(
                    f"medium {space.index} ({space.medium.name}) did not answer in {what.deadline_ms} ms"
                )
            if not what.wait or not await self._space_freed(space, give_up_at):
                left = space.free_segments
                raise PoolFullError(f"medium {space.index} ({space.medium.name}) is full: {left} segments left")

    async def _append_now(self, space: MediumSpace, stream: Stream, record: memoryview, keep: int) -> Location | None:
        """Append to the stream's open segment, or to a new one; None if there is no segment to open."""
        state = space.stream(stream)
        while not space.serial:
            segment = state.segment
            if segment is not None and segment.header_checked and space.fits(segment, len(record)):
                return await self._write(space, segment, record)
            async with state.lock:
                if state.segment is segment and not await self._open_segment(space, stream, len(record), keep):
                    return None
        async with state.lock:
            if not await self._open_segment(space, stream, len(record), keep):
                return None
            assert state.segment is not None
            return await self._write(space, state.segment, record)

    async def _write(self, space: MediumSpace, segment: SegmentUse, record: memoryview) -> Location:
        """Take the segment's next bytes, without waiting, and write the record there."""
        offset = segment.end
        segment.end += len(record)
        segment.unsettled += 1
        try:
            await space.medium.write(space.superblock.segment_offset(segment.number) + offset, record)
        except BaseException:
            segment.unsettled -= 1
            if space.serial:  # how far it got is unknown, so nothing can follow
                self.close(space, segment)
            raise
        return Location(space.index, segment.number, offset // limits.RECORD_ALIGN_BYTES)

    # --- opening and closing segments ------------------------------------------------------------------

    async def _open_segment(self, space: MediumSpace, stream: Stream, length: int, keep: int) -> bool:
        """Make sure that the stream has an open segment with room for `length`; its lock is held. False: no space."""
        state = space.stream(stream)
        if state.segment is not None and not state.segment.header_checked:
            await self._check_resumed(space, state.segment)
        if state.segment is not None and not space.fits(state.segment, length):
            # even if no other one can be opened: only a closed segment can be collected
            self.close(space, state.segment)
        if state.segment is not None:
            return True
        segment = space.take(stream, keep)
        if segment is None:
            return False
        row = SegmentRow(
            medium=space.index,
            segment=segment.number,
            state=SegmentState.OPEN,
            kind=stream.kind,
            tenant=stream.tenant,
            epoch=stream.epoch,
            write_offset=HEADER_BYTES,
            live_bytes=0,
        )
        try:
            with self._transaction():
                self._table.allocate(row)
        except BaseException:
            space.give_back_untouched(segment)
            raise
        await self._start(space, segment)
        state.segment = segment
        return True

    async def _start(self, space: MediumSpace, segment: SegmentUse) -> None:
        """Trim the segment unless that was done, and write its header."""
        offset = space.superblock.segment_offset(segment.number)
        try:
            if not space.was_trimmed(segment.number):
                await space.medium.trim(offset, space.superblock.segment_bytes)
            await space.medium.reserve(offset, space.superblock.segment_bytes)
            await space.medium.write(offset, memoryview(space.header_of(segment).pack()))
        except BaseException:
            self.close(space, segment)
            raise
        segment.header_checked = True

    async def _check_resumed(self, space: MediumSpace, segment: SegmentUse) -> None:
        """Go on with a segment from before the restart only if its header arrived: else rebuild could not find it."""
        buffer = bytearray(HEADER_BYTES)
        where = f"medium {space.medium.name}: segment {segment.number}"
        await space.medium.read_into(space.superblock.segment_offset(segment.number), memoryview(buffer))
        try:
            segment.header_checked = SegmentHeader.parse(buffer, where) == space.header_of(segment)
        except FormatError:
            segment.header_checked = False
        if not segment.header_checked:
            self.close(space, segment)

    def close(self, space: MediumSpace, segment: SegmentUse) -> None:
        """Append nothing more to the segment; it may be collected."""
        with self._transaction():
            self._table.close(space.index, segment.number)
        segment.closed = True
        state = space.stream(segment.stream)
        if state.segment is segment:
            state.segment = None

    async def _space_freed(self, space: MediumSpace, deadline: float) -> bool:
        """Wait for the collector's answer until `deadline` (trio time) -> whether it is worth trying again."""
        if self.wake_collector is None:
            return False
        waiter = SpaceWaiter()
        space.waiters.append(waiter)
        self.wake_collector()
        with trio.move_on_at(deadline):
            try:
                await waiter.event.wait()
            finally:
                if waiter in space.waiters:
                    space.waiters.remove(waiter)
        return waiter.freed

"""SegmentStore: appends records to segments, reads them, and gives empty segments back.

A segment belongs to one stream (kind, tenant, key epoch). Offsets are taken without waiting, records are written
concurrently. Order that keeps a crash harmless: the catalog's row of a segment is there before its first byte, and a
segment is trimmed only after the catalog that has forgotten it is on stable storage and its last reader has left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final

import trio

from kvfs.errors import KvfsError, MediumUnavailableError, PoolFullError
from kvfsd.catalog.rows import Location
from kvfsd.ondisk.segment import SegmentKind
from kvfsd.segments.appends import SPACE_DEADLINE_MS, Append, SegmentAppender, SegmentTable
from kvfsd.segments.release import SegmentRelease
from kvfsd.segments.space import KEEP_FROM_WRITERS, MediumSpace, OpenMedium

__all__ = ["KEEP_FROM_WRITERS", "SPACE_DEADLINE_MS", "Append", "OpenMedium", "SegmentStore", "SegmentTable"]

KEEP_FROM_COLLECTOR: Final = 1


class SegmentStore:
    """Segments of all media of a pool. Not thread-safe: it lives on the event loop, as the catalog does.

    `transaction` opens a catalog transaction (never held over an await); `barrier` returns once everything committed
    so far is on stable storage.
    """

    def __init__(
        self,
        media: Sequence[OpenMedium],
        table: SegmentTable,
        transaction: Callable[[], AbstractContextManager[None]],
        barrier: Callable[[], Awaitable[None]],
    ) -> None:
        self._table = table
        self._transaction = transaction
        self._barrier = barrier
        self._appender = SegmentAppender(table, transaction)
        rows = table.all()
        self.without_room: set[int] = set()
        """Indices of media on which data writers can open no other segment now."""
        self.spaces: dict[int, MediumSpace] = {}
        for opened in media:
            index = opened.superblock.medium_index
            self.spaces[index] = MediumSpace(opened, (row for row in rows if row.medium == index), self.without_room)
        self._release = SegmentRelease(self.spaces, table, transaction, lambda: self._barrier())
        self._close_unresumable()

    # --- appending -------------------------------------------------------------------------------------

    async def append_each(self, what: Append, media: Sequence[int]) -> tuple[dict[int, Location], dict[int, KvfsError]]:
        """Write a record to each medium -> its locations and the media's errors, both by medium.

        What went well stays: the caller calls `settle` once for each location, when its rows are committed or given up.
        Errors are PoolFullError (no segment is free, and collecting found none if it was waited for) and
        MediumUnavailableError; any other one is raised, and nothing stays.
        """
        done: dict[int, Location] = {}
        errors: dict[int, KvfsError] = {}
        keep = KEEP_FROM_WRITERS if what.kind is SegmentKind.DATA else 0

        async def one(index: int) -> None:
            try:
                done[index] = await self._appender.append(self._space(index), what, keep)
            except KvfsError as error:
                errors[index] = error

        try:
            if len(media) == 1:
                await one(media[0])
            else:
                async with trio.open_nursery() as nursery:
                    for index in media:
                        nursery.start_soon(one, index)
            for error in errors.values():
                if not isinstance(error, MediumUnavailableError | PoolFullError):
                    raise error
        except BaseException:
            self.settle(done.values())
            raise
        return done, errors

    async def append_copy(self, source: Location, record: memoryview) -> Location:
        """Write a copy of a record of `source`'s segment to the same medium and stream, for the collector.

        It may take a segment that writers must leave; PoolFullError at once if there is none.
        """
        space = self._space(source.medium)
        stream = space.segment(source.segment).stream
        what = Append(stream.tenant, stream.epoch, record, stream.kind, wait=False)
        return await self._appender.append(space, what, KEEP_FROM_COLLECTOR)

    def settle(self, locations: Iterable[Location]) -> None:
        """What was appended at `locations` is in the catalog now, or never will be: their segments may be released."""
        for location in locations:
            self.spaces[location.medium].segment(location.segment).unsettled -= 1

    # --- opening and closing -------------------------------------------------------------------------

    def _close_unresumable(self) -> None:
        """Close the rows of segments that were open before the restart and cannot be appended to."""
        for space in self.spaces.values():
            for segment in space.to_close:
                self._appender.close(space, segment)
            space.to_close.clear()

    def close_streams(self, tenant: int, epoch: int | None = None) -> None:
        """Close the open segments of a tenant (of one key epoch, or of all): it is gone, or has a new epoch."""
        for space in self.spaces.values():
            for stream, state in list(space.streams.items()):
                if stream.tenant == tenant and epoch in (None, stream.epoch) and not state.lock.locked():
                    if state.segment is not None:
                        self._appender.close(space, state.segment)
                    del space.streams[stream]

    # --- reading ---------------------------------------------------------------------------------------

    async def read_into(self, location: Location, buffer: memoryview) -> None:
        """Fill `buffer` (whole 4 KiB units) with what is stored from `location` on."""
        space = self._space(location.medium)
        await space.medium.read_into(space.byte_offset(location, len(buffer)), buffer)

    @contextlib.contextmanager
    def pin(self, location: Location) -> Iterator[None]:
        """While this is held the segment of `location` is not trimmed; NotFoundError if it is free already.

        A reader that looks the location up in the catalog and pins it without an await between cannot get that error.
        """
        segment = self._space(location.medium).segment(location.segment)
        segment.pins += 1
        try:
            yield
        finally:
            segment.pins -= 1

    async def flush(self) -> None:
        """Everything appended so far survives a power loss once this returns."""
        for space in self.spaces.values():
            await space.medium.flush()

    # --- space -----------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Room for records in free segments, less what writers must leave; garbage not counted."""
        spaces = self.spaces.values()
        return sum(max(0, space.free_segments - KEEP_FROM_WRITERS) * space.capacity_bytes for space in spaces)

    def collect_with(self, wake: Callable[[], None]) -> None:
        """From now on writers that find no free segment call `wake` and wait for an answer in `waiters`.

        Without a collector a full medium is full at once.
        """
        self._appender.wake_collector = wake

    async def release_empty(self) -> int:
        """Free the closed segments that nothing refers to: catalog first, then barrier, then trim -> number freed.

        A segment with unsettled appends is left alone, one with pins is trimmed by a later call, and so is one whose
        medium fails or hangs. Raises what the barrier raises; the next call takes everything up again.
        """
        return await self._release.run()

    def _space(self, medium: int) -> MediumSpace:
        """The medium's state; MediumUnavailableError if the pool was opened without it."""
        space = self.spaces.get(medium)
        if space is None:
            raise MediumUnavailableError(f"medium {medium} of the pool is not open")
        return space

"""Segment garbage collection: live records of mostly dead segments are copied, byte for byte and without keys.

A record does not depend on where it lies, so its copy is as good as itself. The catalog is pointed to the copy only if
it still points to the original, and only once the copy is on stable storage: what was synced stays so wherever it is
moved. A record whose stored checksum does not fit is reported and stays where it is.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import trio

from kvfs import limits
from kvfs.errors import FormatError, KvfsError, PoolFullError
from kvfsd.catalog.rows import Location, PlacedBlock
from kvfsd.ondisk.record import record_bytes
from kvfsd.ondisk.segment import HEADER_BYTES, SegmentKind
from kvfsd.segments.moving import RECORD_MAX_BYTES, LiveRecords, RecordCopy, RecordMover
from kvfsd.segments.space import MediumSpace, SegmentUse, SpaceWaiter
from kvfsd.segments.store import KEEP_FROM_WRITERS, SegmentStore, SegmentTable

log = logging.getLogger(__name__)

INTERVAL_MS: Final = 1_000
"""How often empty segments are looked for without being asked."""
LOW_FREE_PERCENT: Final = 25
"""Below this share of free segments, segments that are worth it are collected ahead of need."""
BACKGROUND_GAIN_PERCENT: Final = 50
"""Share of a segment that must be gained by collecting it, in the background."""
PRESSURE_GAIN_PERCENT: Final = 6
"""The same with a writer waiting, or none but the spare segments free."""
VICTIMS_PER_LOOK: Final = 8
ROWS_PER_LOOK: Final = 256
"""Catalog rows read in a row: under a millisecond, then others have their turn."""
BATCH_BYTES: Final = 64 * limits.MIB
"""Copies that one flush serves, of several segments if need be: a flush waits for all that the disk has cached."""
STEP_BYTES: Final = 8 * limits.MIB
STEP_PAUSE_MS: Final = 40
"""In the background the collector pauses this long after each STEP_BYTES: at most 200 MiB/s are copied."""


class SegmentCollector:
    """Frees segments of `store`. One task runs `run`; `on_bad_record` is told of records that fail their checksum.

    `on_bad_record` is called outside any transaction and must not wait.
    """

    def __init__(
        self,
        store: SegmentStore,
        table: SegmentTable,
        live: LiveRecords,
        transaction: Callable[[], AbstractContextManager[None]],
        on_bad_record: Callable[[PlacedBlock, Location, FormatError], None],
    ) -> None:
        self.last_error: KvfsError | None = None
        """Why the last pass was given up; None if it was not."""
        self._store = store
        self._table = table
        self._live = live
        self._mover = RecordMover(store, live, transaction, on_bad_record)
        self.stats = self._mover.stats
        self._wanted = trio.Event()
        self._stuck: dict[tuple[int, int], int] = {}
        self._since_pause = 0

    def wake(self) -> None:
        """Start a pass now."""
        self._wanted.set()

    async def run(self) -> None:
        """Collect until cancelled. Errors of a medium or the catalog end a pass, never the task."""
        self._store.collect_with(self.wake)
        while True:
            with trio.move_on_after(INTERVAL_MS / 1000):
                await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                await self.collect()
                self.last_error = None
            except KvfsError as error:
                if self.last_error is None:
                    log.warning("collecting garbage: %s", error)
                self.last_error = error
                await trio.sleep(INTERVAL_MS / 1000)

    async def collect(self) -> int:
        """One pass over all media -> segments freed. Writers that waited when it began are answered when it ends."""
        waiting = [(space, list(space.waiters)) for space in self._store.spaces.values()]
        before = self.stats.segments_freed
        errors: list[KvfsError] = []
        try:
            await self._release()
            for space, waiters in waiting:
                try:
                    await self._collect_medium(space, waiters)
                except KvfsError as error:  # the other media go on
                    errors.append(error)
        finally:
            for _, waiters in waiting:
                for waiter in waiters:
                    if not waiter.event.is_set():
                        waiter.answer(freed=False)
        if errors:
            raise errors[0]
        self.stats.passes += 1
        return self.stats.segments_freed - before

    # --- which segment ---------------------------------------------------------------------------------

    async def _collect_medium(self, space: MediumSpace, waiters: list[SpaceWaiter]) -> None:
        """Collect segments of one medium until enough are free, or nothing is worth it."""
        given_up: set[int] = set()
        while True:
            gain = self._worth_it(space, waiters)
            victims = await self._victims(space, gain, given_up)
            if not victims:
                return
            while victims and self._worth_it(space, waiters) <= gain:
                stuck = await self._empty_some(space, victims, waiters)
                if stuck is not None:
                    given_up.add(stuck.number)
                await self._release()

    def _worth_it(self, space: MediumSpace, waiters: list[SpaceWaiter]) -> int:
        """Bytes that collecting a segment must gain to be worth it now; more than any can gain if there is no need."""
        if _is_waited_for(waiters) or space.free_segments <= KEEP_FROM_WRITERS:
            return space.capacity_bytes * PRESSURE_GAIN_PERCENT // 100
        if space.free_segments * 100 < space.superblock.segment_count * LOW_FREE_PERCENT:
            return space.capacity_bytes * BACKGROUND_GAIN_PERCENT // 100
        return space.capacity_bytes + 1

    async def _victims(self, space: MediumSpace, gain: int, given_up: set[int]) -> list[SegmentUse]:
        """Up to VICTIMS_PER_LOOK closed data segments with the least live bytes that gain at least `gain`."""
        found: list[tuple[int, int, SegmentUse]] = []
        if gain > space.capacity_bytes:
            return []
        for count, segment in enumerate(list(space.in_use.values())):
            if count % ROWS_PER_LOOK == 0:
                await trio.lowlevel.checkpoint()
            if not segment.closed or segment.freed or segment.stream.kind is not SegmentKind.DATA:
                continue
            if segment.number in given_up:
                continue
            live = self._table.get(space.index, segment.number).live_bytes
            if _gain(space, segment, live) >= gain and self._stuck.get((space.index, segment.number)) != live:
                found.append((live, segment.number, segment))
        return [segment for _, _, segment in heapq.nsmallest(VICTIMS_PER_LOOK, found)]

    async def _release(self) -> None:
        """Give back what is empty."""
        self.stats.segments_freed += await self._store.release_empty()

    # --- its records -----------------------------------------------------------------------------------

    async def _empty_some(
        self, space: MediumSpace, victims: list[SegmentUse], waiters: list[SpaceWaiter]
    ) -> SegmentUse | None:
        """Copy the live records of as many `victims` away as one flush is to serve; takes those off the list.

        Gives the first one back if nothing can be done now for want of space. What cannot be read or is bad stays, and
        its segment is not tried again until its live bytes change.
        """
        copies: list[RecordCopy] = []
        emptied: list[SegmentUse] = []
        full = False
        try:
            while victims and not full and not self._is_enough(space, copies, waiters):
                full = not await self._copy_records(space, victims[0], waiters, copies)
                if full and emptied:
                    break  # again, when those before it are free
                emptied.append(victims.pop(0))
            await self._mover.point_to(space, copies)
        finally:
            self._store.settle(copy.new for copy in copies)
        if full and len(emptied) == 1:
            return emptied[0]
        for segment in emptied:
            self._note_rest(space, segment)
        return None

    def _is_enough(self, space: MediumSpace, copies: list[RecordCopy], waiters: list[SpaceWaiter]) -> bool:
        """Whether to flush now: after BATCH_BYTES, or a segment's worth of copies if a writer waits, or soon would."""
        spare = 1 if _is_waited_for(waiters) else max(1, space.free_segments - KEEP_FROM_WRITERS)
        copied = sum(record_bytes(copy.placed.row.length) for copy in copies)
        return copied >= min(BATCH_BYTES, spare * space.capacity_bytes)

    def _note_rest(self, space: MediumSpace, segment: SegmentUse) -> None:
        """Remember a segment that could not be emptied."""
        live = 0 if segment.freed else self._table.get(space.index, segment.number).live_bytes
        if live:
            self._stuck[space.index, segment.number] = live
        else:
            self._stuck.pop((space.index, segment.number), None)

    async def _copy_records(
        self, space: MediumSpace, segment: SegmentUse, waiters: list[SpaceWaiter], copies: list[RecordCopy]
    ) -> bool:
        """Add copies of the segment's records to `copies` -> False if there is no room for more."""
        for placed in self._live.live_in_segment(space.index, segment.number):
            for old in placed.row.locations:
                if (old.medium, old.segment) != (space.index, segment.number):
                    continue
                try:
                    copy = await self._mover.copy(placed, old)
                except PoolFullError:
                    return False
                if copy is not None:
                    copies.append(copy)
                await self._give_way(record_bytes(placed.row.length), waiters)
        return True

    async def _give_way(self, copied_bytes: int, waiters: list[SpaceWaiter]) -> None:
        """Let others run after each record; in the background, pause after each STEP_BYTES."""
        self._since_pause += copied_bytes
        if self._since_pause < STEP_BYTES:
            await trio.lowlevel.checkpoint()
            return
        self._since_pause = 0
        if _is_waited_for(waiters):
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(STEP_PAUSE_MS / 1000)


def _is_waited_for(waiters: list[SpaceWaiter]) -> bool:
    """Whether a writer still waits for space."""
    return any(not waiter.event.is_set() for waiter in waiters)


def _gain(space: MediumSpace, segment: SegmentUse, live_bytes: int) -> int:
    """Bytes that are won by copying the segment's `live_bytes` elsewhere.

    A rest at its end counts only if a full record had fitted there: else the copy leaves the same rest somewhere, and
    full segments would be copied around for ever.
    """
    rest = space.superblock.segment_bytes - segment.end
    dead = segment.end - HEADER_BYTES - live_bytes
    return dead + (rest if rest >= RECORD_MAX_BYTES else 0)

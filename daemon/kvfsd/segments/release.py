"""Giving empty segments back: the catalog forgets them, that is made safe from a power loss, then they are trimmed.

One barrier serves all segments that are empty by then. A medium that does not trim, or not in time, keeps its segments
for a later call, and holds up no other medium.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final

import trio

from kvfs import limits
from kvfs.errors import KvfsError, MediumUnavailableError
from kvfsd.segments.appends import SegmentTable
from kvfsd.segments.space import MediumSpace, SegmentUse

log = logging.getLogger(__name__)

BARRIER_DEADLINE_MS: Final = limits.COMMAND_DEADLINE_MS
"""A sync of the catalog also waits for what others have in the disk's cache."""
TRIM_DEADLINE_MS: Final = 10_000
"""A medium without TRIM writes zeros: 64 MiB, the largest segment, at 7 MB/s."""


class SegmentRelease:
    """Releases the empty segments of `spaces`; one call at a time."""

    def __init__(
        self,
        spaces: Mapping[int, MediumSpace],
        table: SegmentTable,
        transaction: Callable[[], AbstractContextManager[None]],
        barrier: Callable[[], Awaitable[None]],
    ) -> None:
        self._spaces = spaces
        self._table = table
        self._transaction = transaction
        self._barrier = barrier
        self._lock = trio.Lock()
        self._failing: set[int] = set()

    async def run(self) -> int:
        """Free the closed segments that nothing refers to -> number freed; see `SegmentStore.release_empty`."""
        async with self._lock:
            self._forget_empty()
            waiting = {space: _freed(space) for space in self._spaces.values()}
            if not any(waiting.values()):
                return 0
            try:
                with trio.fail_after(BARRIER_DEADLINE_MS / 1000):
                    await self._barrier()
            except trio.TooSlowError:
                raise MediumUnavailableError(f"catalog: not synced within {BARRIER_DEADLINE_MS} ms") from None
            return sum([await self._trim(space, segments) for space, segments in waiting.items()])

    def _forget_empty(self) -> None:
        """Remove the catalog's rows of empty segments; no new reader can find them from here on."""
        with self._transaction():
            forgotten = []
            for row in self._table.empty():
                space = self._spaces.get(row.medium)
                segment = space.in_use.get(row.segment) if space is not None else None
                if segment is not None and not segment.unsettled and not segment.freed:
                    self._table.free(row.medium, row.segment)
                    forgotten.append(segment)
        for segment in forgotten:
            segment.freed = True

    async def _trim(self, space: MediumSpace, segments: list[SegmentUse]) -> int:
        """Trim segments of one medium and give them back, up to the first that fails -> how many."""
        for done, segment in enumerate(segments):
            offset = space.superblock.segment_offset(segment.number)
            try:
                with trio.fail_after(TRIM_DEADLINE_MS / 1000):
                    await space.medium.trim(offset, space.superblock.segment_bytes)
            except trio.TooSlowError:
                self._failed(space, f"no answer in {TRIM_DEADLINE_MS} ms")
                return done
            except KvfsError as error:
                self._failed(space, str(error))
                return done
            space.give_back(segment)
        if segments:
            self._failing.discard(space.index)
        return len(segments)

    def _failed(self, space: MediumSpace, reason: str) -> None:
        """Said once, until the medium trims again."""
        if space.index not in self._failing:
            self._failing.add(space.index)
            log.warning("medium %d (%s): trim, tried again later: %s", space.index, space.medium.name, reason)


def _freed(space: MediumSpace) -> list[SegmentUse]:
    """Segments that the catalog has forgotten and nobody reads any more."""
    return [segment for segment in space.in_use.values() if segment.freed and not segment.pins]

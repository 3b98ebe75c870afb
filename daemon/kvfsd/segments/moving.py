"""Moving live records between segments of a medium, for the collector: byte for byte and without keys.

First copies are made, then all of them are made safe from a power loss, then the catalog is pointed to each that is
still wanted: what was synced stays so wherever it is moved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import trio

from kvfs import limits
from kvfs.errors import FormatError, MediumUnavailableError
from kvfsd.catalog.rows import Location, PlacedBlock
from kvfsd.ondisk.record import RecordHeader, RecordIdentity, RecordType, check_body, record_bytes
from kvfsd.segments.space import MediumSpace
from kvfsd.segments.store import SegmentStore

RECORD_MAX_BYTES: Final = record_bytes(limits.BLOCK_BYTES)
FLUSH_DEADLINE_MS: Final = limits.COMMAND_DEADLINE_MS
"""A flush also waits for what writers have in the system's cache, so it gets more time than a read."""
ROWS_PER_CHECKPOINT: Final = 64
"""Rows changed in a row, each in a transaction of its own, before others have their turn."""


class LiveRecords(Protocol):
    """What the catalog knows of records (`kvfsd.catalog.blocks.Blocks`)."""

    def live_in_segment(self, medium: int, segment: int) -> Sequence[PlacedBlock]:
        """Every block, committed or staged, with a replica in that segment."""
        ...

    def relocate(self, placed: PlacedBlock, old: Location, new: Location) -> bool:
        """Point the block from `old` to `new`, live bytes included; False if it has changed. In a transaction."""
        ...


@dataclass(slots=True)
class CollectorStats:
    """What was done since the start."""

    segments_freed: int = 0
    records_copied: int = 0
    bytes_copied: int = 0
    records_bad: int = 0
    records_unreadable: int = 0
    passes: int = 0


class RecordCopy(NamedTuple):
    """A record that was copied, from where and to where; `new` is not settled."""

    placed: PlacedBlock
    old: Location
    new: Location


class RecordMover:
    """Copies records of `store` within their medium. `on_bad_record` is told of those that fail their checksum."""

    def __init__(
        self,
        store: SegmentStore,
        live: LiveRecords,
        transaction: Callable[[], AbstractContextManager[None]],
        on_bad_record: Callable[[PlacedBlock, Location, FormatError], None],
    ) -> None:
        self.stats = CollectorStats()
        self._store = store
        self._live = live
        self._transaction = transaction
        self._on_bad_record = on_bad_record
        self._buffer = memoryview(bytearray(RECORD_MAX_BYTES))

    async def copy(self, placed: PlacedBlock, old: Location) -> RecordCopy | None:
        """Copy one record; None if it cannot be read or is not sound. PoolFullError if there is no room.

        The caller settles the copy, or has `point_to` do it.
        """
        record = self._buffer[: record_bytes(placed.row.length)]
        try:
            with _answered_in_time(old):
                await self._store.read_into(old, record)
        except MediumUnavailableError:
            self.stats.records_unreadable += 1
            return None
        try:
            self._check(placed, old, record)
        except FormatError as error:
            self.stats.records_bad += 1
            self._on_bad_record(placed, old, error)
            return None
        with _answered_in_time(old):
            return RecordCopy(placed, old, await self._store.append_copy(old, record))

    async def point_to(self, space: MediumSpace, copies: list[RecordCopy]) -> None:
        """Make the copies safe from a power loss, then point the catalog to those that are still wanted.

        Takes those that it has settled off the list.
        """
        if copies:
            with _answered_in_time(copies[0].new, FLUSH_DEADLINE_MS):
                await space.medium.flush()
        while copies:
            placed, old, new = copies.pop()
            try:
                with self._transaction():
                    moved = self._live.relocate(placed, old, new)
            finally:
                self._store.settle([new])
            if moved:
                self.stats.records_copied += 1
                self.stats.bytes_copied += record_bytes(placed.row.length)
            if len(copies) % ROWS_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()

    def _check(self, placed: PlacedBlock, location: Location, record: memoryview) -> None:
        """FormatError unless the record is the one that the catalog has there, its stored bytes as they were."""
        where = f"record at {location.medium}:{location.segment}:{location.offset}"
        row = placed.row
        header = RecordHeader.parse(record, where)
        wanted = RecordIdentity(
            pool=self._store.spaces[location.medium].superblock.pool,
            record_type=RecordType.DATA,
            tenant=placed.tenant,
            epoch=row.epoch,
            object=placed.ino,
            block=row.block,
            generation=row.generation,
            length=row.length,
        )
        if header.identity != wanted:
            raise FormatError(f"{where}: want {wanted}, have {header.identity}")
        check_body(header, record, where)


@contextlib.contextmanager
def _answered_in_time(location: Location, deadline_ms: int = limits.MEDIUM_DEADLINE_MS) -> Iterator[None]:
    """MediumUnavailableError if the medium takes longer than its deadline."""
    try:
        with trio.fail_after(deadline_ms / 1000):
            yield
    except trio.TooSlowError:
        raise MediumUnavailableError(f"medium {location.medium} did not answer in {deadline_ms} ms") from None

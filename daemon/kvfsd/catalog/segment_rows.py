"""Rows of the segments in use. They change inside the caller's transaction, together with what refers to them."""

from __future__ import annotations

from collections.abc import Iterable

from kvfs import limits
from kvfs.errors import FormatError, InternalError, InvalidArgumentError, NotFoundError
from kvfsd.catalog.database import Database, Row
from kvfsd.catalog.rows import Location, SegmentRow, unpack_locations
from kvfsd.catalog.schema import SegmentState
from kvfsd.ondisk.record import record_bytes

_COLUMNS = "medium, segment, state, kind, tenant, epoch, write_offset, live_bytes"


class SegmentRows:
    """Allocation state, fill and live bytes of segments; a segment without a row is free."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def allocate(self, row: SegmentRow) -> None:
        """Take a free segment; InternalError if it has a row already."""
        self._database.require_transaction()
        self._database.run("INSERT INTO segment VALUES(?,?,?,?,?,?,?,?)", row)

    def get(self, medium: int, segment: int) -> SegmentRow:
        """The segment's row; NotFoundError if it is free."""
        row = self._database.one(f"SELECT {_COLUMNS} FROM segment WHERE medium=? AND segment=?", (medium, segment))
        if row is None:
            raise NotFoundError(f"segment {medium}:{segment} is free")
        return SegmentRow._make(row)

    def all(self) -> list[SegmentRow]:
        """Every segment in use; a few hundred bytes each, one per 4 to 64 MiB of media."""
        return [SegmentRow._make(row) for row in self._database.all(f"SELECT {_COLUMNS} FROM segment")]

    def advance(self, medium: int, segment: int, write_offset: int) -> None:
        """Records end at `write_offset` bytes now, or further on."""
        self._database.require_transaction()
        changed = self._database.run(
            "UPDATE segment SET write_offset=max(write_offset, ?) WHERE medium=? AND segment=?",
            (write_offset, medium, segment),
        )
        if not changed:
            raise InternalError(f"segment {medium}:{segment} grows but is free")

    def close(self, medium: int, segment: int) -> None:
        """Nothing is appended any more: the segment may be collected."""
        self._database.require_transaction()
        self._database.run(
            "UPDATE segment SET state=? WHERE medium=? AND segment=?", (SegmentState.CLOSED, medium, segment)
        )

    def free(self, medium: int, segment: int) -> None:
        """Forget a segment; InternalError if something in it is still referred to."""
        self._database.require_transaction()
        if not self._database.run(
            "DELETE FROM segment WHERE medium=? AND segment=? AND live_bytes=0", (medium, segment)
        ):
            raise InternalError(f"segment {medium}:{segment} is not empty, or free already")

    def empty(self, limit: int = 1024) -> list[SegmentRow]:
        """Closed segments of any kind that nothing refers to: trim, then `free`."""
        rows = self._database.all(
            f"SELECT {_COLUMNS} FROM segment WHERE live_bytes=0 AND state=? LIMIT ?", (SegmentState.CLOSED, limit)
        )
        return [SegmentRow._make(row) for row in rows]

    def add_record(self, length: int, locations: Iterable[Location]) -> None:
        """A record of `length` plaintext bytes is referred to at each of `locations`; the segments reach to its end."""
        self._database.require_transaction()
        stored = record_bytes(length)
        for medium, segment, offset in locations:
            end = offset * limits.RECORD_ALIGN_BYTES + stored
            changed = self._database.run(
                "UPDATE segment SET live_bytes=live_bytes+?, write_offset=max(write_offset, ?)"
                " WHERE medium=? AND segment=?",
                (stored, end, medium, segment),
            )
            if not changed:
                raise InternalError(f"segment {medium}:{segment} holds a record but is free")

    def release(self, records: Iterable[Row]) -> int:
        """Records given as (plaintext length, packed locations) are no longer referred to -> their plaintext bytes.

        What a damaged row refers to is told and passed over: what it belongs to must be removable all the same.
        """
        freed = 0
        live: dict[tuple[int, int], int] = {}
        for length, packed in records:
            try:
                stored, places = record_bytes(length), unpack_locations(packed)
            except (FormatError, InvalidArgumentError, TypeError):
                self._database.damage.note("block", 0, 0, "a block's row has no length or no locations")
                continue
            freed += length
            for medium, segment, _ in places:
                live[medium, segment] = live.get((medium, segment), 0) - stored
        for (medium, segment), delta in live.items():
            if not self._database.run(
                "UPDATE segment SET live_bytes=live_bytes+? WHERE medium=? AND segment=?", (delta, medium, segment)
            ):
                self._database.damage.note(
                    "block", 0, 0, f"a block's row points into {medium}:{segment}, which is free"
                )
        return freed

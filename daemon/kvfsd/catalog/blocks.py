"""Rows of sealed blocks: staged by an attachment, then committed with their object; found again by segment."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from kvfs import limits
from kvfs.errors import BadRecordError, FormatError, InvalidArgumentError
from kvfsd.catalog.database import Database, Row
from kvfsd.catalog.rowmacs import total
from kvfsd.catalog.rows import BlockRow, Location, PlacedBlock, pack_locations, segment_prefix, unpack_locations
from kvfsd.catalog.segment_rows import SegmentRows
from kvfsd.ondisk.metalog import DropBlocks, PutBlock

BLOCKS_MAX: Final = limits.FILE_MAX_BYTES // limits.BLOCK_BYTES
"""Blocks of the largest file."""

_EPOCHS: Final = 1 << 32
_COLUMNS = "block, generation, length, epoch, tag, locations"
_OF_STAGED = "tenant=? AND attachment=? AND ino=?"


class Stored(NamedTuple):
    """What an object's row says of its blocks: plaintext bytes, and the sum of their checks."""

    stored_bytes: int = 0
    members: int = 0


_NOTHING: Final = Stored()


class Blocks:
    """Which sealed record holds which block, and where its replicas lie."""

    def __init__(self, database: Database, segments: SegmentRows) -> None:
        self._database = database
        self._segments = segments

    # --- lookups ---------------------------------------------------------------------------------------

    def locate(self, tenant: int, ino: int, block: int) -> BlockRow | None:
        """The committed block; None is a hole."""
        row = self._database.one(
            f"SELECT {_COLUMNS} FROM block WHERE tenant=? AND ino=? AND block=?", (tenant, ino, block)
        )
        return _block(self._database, tenant, ino, row) if row else None

    def locate_staged(self, attachment: int, tenant: int, ino: int, block: int) -> BlockRow | None:
        """What the attachment wrote and has not committed yet, else the committed block."""
        row = self._database.one(
            f"SELECT {_COLUMNS} FROM staged_block WHERE {_OF_STAGED} AND block=?", (tenant, attachment, ino, block)
        )
        return _block(self._database, tenant, ino, row) if row else self.locate(tenant, ino, block)

    def locate_range(self, tenant: int, ino: int, first: int, count: int) -> list[BlockRow]:
        """Committed blocks `first` .. `first + count - 1` in order, holes left out."""
        rows = self._database.all(
            f"SELECT {_COLUMNS} FROM block WHERE tenant=? AND ino=? AND block>=? AND block<? ORDER BY block",
            (tenant, ino, first, first + count),
        )
        return [_block(self._database, tenant, ino, row) for row in rows]

    def staged_bytes(self, tenant: int) -> int:
        """Plaintext bytes of all uncommitted blocks of the tenant."""
        row = self._database.one("SELECT coalesce(sum(length), 0) FROM staged_block WHERE tenant=?", (tenant,))
        return int(row[0]) if row else 0

    def staged_of(self, attachment: int, tenant: int, ino: int) -> int:
        """Plaintext bytes of the attachment's uncommitted blocks of one object."""
        row = self._database.one(
            f"SELECT coalesce(sum(length), 0) FROM staged_block WHERE {_OF_STAGED}", (tenant, attachment, ino)
        )
        return int(row[0]) if row else 0

    # --- staging ---------------------------------------------------------------------------------------

    def stage(self, attachment: int, tenant: int, ino: int, row: BlockRow) -> int:
        """Note a sealed block of an object that is still being written; it replaces an earlier uncommitted one.

        Returns by how many plaintext bytes the tenant's uncommitted blocks grew.
        """
        self._database.require_transaction()
        if not 0 <= row.block < BLOCKS_MAX:
            raise InvalidArgumentError(f"object {ino}: block {row.block} is over the largest file")
        key = (tenant, attachment, ino, row.block)
        values = (*key, row.generation, row.length, row.epoch, row.tag, pack_locations(row.locations))
        freed = 0
        if not self._database.run("INSERT OR IGNORE INTO staged_block VALUES(?,?,?,?,?,?,?,?,?)", values):
            where = f"{_OF_STAGED} AND block=?"
            before = self._database.one(f"SELECT length, locations FROM staged_block WHERE {where}", key)
            freed = self._segments.release([before] if before else [])
            self._database.run("INSERT OR REPLACE INTO staged_block VALUES(?,?,?,?,?,?,?,?,?)", values)
        self._segments.add_record(row.length, row.locations)
        return row.length - freed

    def commit_staged(
        self, attachment: int, tenant: int, ino: int, base_limit_bytes: int, before: Stored = _NOTHING
    ) -> Stored:
        """Publish the attachment's blocks of an object that had `before` -> what it has now.

        Committed blocks that they replace are released, and so are those from `base_limit_bytes` on (a block that
        is partly before it stays). Costs about 5 us a block, all in the caller's transaction.
        """
        self._database.require_transaction()
        staged = self._database.all(
            f"SELECT {_COLUMNS} FROM staged_block WHERE {_OF_STAGED} ORDER BY block", (tenant, attachment, ino)
        )
        first_dropped = -(-base_limit_bytes // limits.BLOCK_BYTES)
        gone = self._drop_from(tenant, ino, first_dropped)
        if first_dropped:
            gone += self._drop_replaced(tenant, ino, staged)
        freed = self._segments.release([(row[2], row[5]) for row in gone]) if gone else 0
        check = self._database.macs.of(tenant).block
        stored_bytes = members = 0  # of a file that is written anew: what was damaged before it does not matter
        if first_dropped:
            stored_bytes, members = before.stored_bytes - freed, before.members - sum([check(ino, row) for row in gone])
        if staged:
            self._database.run(
                f"INSERT INTO block SELECT tenant, ino, {_COLUMNS} FROM staged_block WHERE {_OF_STAGED}",
                (tenant, attachment, ino),
            )
            self._database.run(f"DELETE FROM staged_block WHERE {_OF_STAGED}", (tenant, attachment, ino))
        for row in staged:
            stored_bytes += row[2]
            members += check(ino, row)
            self._database.log(tenant, PutBlock(ino, *row[:5]))
        return Stored(stored_bytes, total(members))

    def drop_staged(self, attachment: int, tenant: int, ino: int, from_block: int) -> int:
        """Forget the attachment's uncommitted blocks of the object from `from_block` on -> plaintext bytes freed."""
        self._database.require_transaction()
        key = (tenant, attachment, ino, from_block)
        rows = self._database.all(f"SELECT length, locations FROM staged_block WHERE {_OF_STAGED} AND block>=?", key)
        if rows:
            self._database.run(f"DELETE FROM staged_block WHERE {_OF_STAGED} AND block>=?", key)
        return self._segments.release(rows)

    def drop_staged_of(self, attachment: int | None, limit: int) -> bool:
        """Forget up to `limit` uncommitted blocks of one attachment, or of all that are not kept (None).

        Returns whether there was any.
        """
        self._database.require_transaction()
        not_kept = "attachment NOT IN (SELECT attachment FROM attachment)"
        where, key = (not_kept, ()) if attachment is None else ("attachment=?", (attachment,))
        rows = self._database.all(
            f"SELECT tenant, attachment, ino, block, length, locations FROM staged_block WHERE {where} LIMIT ?",
            (*key, limit),
        )
        self._segments.release([(row[4], row[5]) for row in rows])
        self._database.run_many(f"DELETE FROM staged_block WHERE {_OF_STAGED} AND block=?", [row[:4] for row in rows])
        return bool(rows)

    # --- release ---------------------------------------------------------------------------------------

    def _drop_from(self, tenant: int, ino: int, block: int) -> list[Row]:
        key = (tenant, ino, block)
        rows = self._database.all(f"SELECT {_COLUMNS} FROM block WHERE tenant=? AND ino=? AND block>=?", key)
        if rows:
            self._database.run("DELETE FROM block WHERE tenant=? AND ino=? AND block>=?", key)
            self._database.log(tenant, DropBlocks(ino, block))
        return rows

    def _drop_replaced(self, tenant: int, ino: int, staged: Sequence[Row]) -> list[Row]:
        # No log entry: the PutBlock that follows replaces the row on replay as well.
        gone = []
        for key in [(tenant, ino, block) for block, *_ in staged]:
            row = self._database.one(f"SELECT {_COLUMNS} FROM block WHERE tenant=? AND ino=? AND block=?", key)
            if row:
                self._database.run("DELETE FROM block WHERE tenant=? AND ino=? AND block=?", key)
                gone.append(row)
        return gone

    # --- places ----------------------------------------------------------------------------------------

    def live_in_segment(self, medium: int, segment: int) -> list[PlacedBlock]:
        """Every block, committed or staged, with a replica in that segment (at most one per 4 KiB of it)."""
        prefix = segment_prefix(medium, segment)
        found: list[PlacedBlock] = []
        for replica in range(limits.REPLICAS_MAX):
            at = replica * 10
            exists = f" AND length(locations) > {at}" if replica else ""
            rows = self._database.all(
                f"SELECT tenant, ino, 0, {_COLUMNS} FROM block WHERE substr(locations, {at + 1}, 6)=?{exists}"
                f" UNION ALL SELECT tenant, ino, attachment, {_COLUMNS} FROM staged_block"
                f" WHERE substr(locations, {at + 1}, 6)=?{exists}",
                (prefix, prefix),
            )
            for tenant, ino, attachment, *row in rows:
                with contextlib.suppress(BadRecordError):  # told; its segment stays, for its live bytes do
                    found.append(PlacedBlock(tenant, ino, attachment, _block(self._database, tenant, ino, row)))
        return found

    def relocate(self, placed: PlacedBlock, old: Location, new: Location) -> bool:
        """The replica at `old` was copied to `new`: point there -> False if the block has changed meanwhile.

        False means that nothing refers to the copy; it is garbage in its segment.
        """
        self._database.require_transaction()
        row = self._current(placed)
        if row is None or old not in row.locations:
            return False
        moved = tuple(new if location == old else location for location in row.locations)
        self._set_locations(placed, moved)
        self._segments.release([(row.length, pack_locations([old]))])
        self._segments.add_record(row.length, [new])
        return True

    def forget_replica(self, placed: PlacedBlock, bad: Location) -> bool:
        """Drop a bad replica of a block that has others -> False if it was the last, or is gone already."""
        self._database.require_transaction()
        row = self._current(placed)
        if row is None or bad not in row.locations or len(row.locations) == 1:
            return False
        self._set_locations(placed, tuple(location for location in row.locations if location != bad))
        self._segments.release([(row.length, pack_locations([bad]))])
        return True

    def _current(self, placed: PlacedBlock) -> BlockRow | None:
        table, where, key = _row_key(placed)
        row = self._database.one(f"SELECT {_COLUMNS} FROM {table} WHERE {where} AND generation=?", key)
        if row is None and placed.attachment:  # it may have been committed since it was listed
            return self._current(placed._replace(attachment=0))
        return _block(self._database, placed.tenant, placed.ino, row) if row else None

    def _set_locations(self, placed: PlacedBlock, locations: Sequence[Location]) -> None:
        table, where, key = _row_key(placed)
        packed = pack_locations(locations)
        changed = self._database.run(f"UPDATE {table} SET locations=? WHERE {where} AND generation=?", (packed, *key))
        if not changed and placed.attachment:
            self._set_locations(placed._replace(attachment=0), locations)


def _row_key(placed: PlacedBlock) -> tuple[str, str, tuple[int, ...]]:
    block, generation = placed.row.block, placed.row.generation
    if placed.attachment:
        key = (placed.tenant, placed.attachment, placed.ino, block, generation)
        return "staged_block", f"{_OF_STAGED} AND block=?", key
    return "block", "tenant=? AND ino=? AND block=?", (placed.tenant, placed.ino, block, generation)


def _block(database: Database, tenant: int, ino: int, row: Sequence[Any]) -> BlockRow:
    """The row of _COLUMNS; BadRecordError if it has values that no block has. The rest is the record's to check."""
    block, generation, length, epoch, tag, packed = row
    try:
        if generation >= 0 and 0 < length <= limits.BLOCK_BYTES and 0 <= epoch < _EPOCHS and type(tag) is bytes:
            return BlockRow(block, generation, length, epoch, tag, unpack_locations(packed))
    except (TypeError, FormatError):
        pass
    raise database.damage.note("block", tenant, ino, f"row of block {block} of object {ino} is damaged")

"""Rows behind the metadata log: queued entries, live log records, and reading a tenant for a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from kvfs import limits
from kvfsd.catalog.database import Database, Row
from kvfsd.catalog.rowchecks import object_faults
from kvfsd.catalog.rows import LOGGED_FIELDS, Location, pack_locations, unpack_locations
from kvfsd.catalog.schema import LISTING_COLUMNS, TenantState
from kvfsd.catalog.segment_rows import SegmentRows
from kvfsd.ondisk.metalog import LENGTH_BYTES, Change, PutBlock, PutEntry, PutInode, PutXattr

SNAPSHOT_ROWS: Final = 256
"""Rows that one transaction of a snapshot reads: about a millisecond."""
WHOLE_ROWS: Final = 64
"""Objects that are held against their checks at a time: about a millisecond, more for large ones."""
SNAPSHOT_BYTES: Final = 256 * limits.KIB
"""It also ends with so many bytes of extended attributes: a single one may have 64 KiB."""
_PENDING_ROWS: Final = 2048
_Key: TypeAlias = tuple[int | bytes, ...]
_Changes: TypeAlias = Iterator[tuple[Change | None, tuple[int | bytes, ...]]]


class LogState(NamedTuple):
    """A tenant's log: generation of its newest record (0: none), bytes of all live records, bytes of its snapshot."""

    head_generation: int = 0
    log_bytes: int = 0
    snapshot_bytes: int = 0


class Queued(NamedTuple):
    """The oldest queued entries of a tenant: all up to sequence `through`."""

    through: int
    entries: list[bytes]

    @property
    def entry_bytes(self) -> int:
        """Encoded bytes of all entries."""
        return sum(map(len, self.entries))


class LogRecord(NamedTuple):
    """A record of the metadata log (or, for tenant 0, of the system): payload `length` and replicas."""

    tenant: int
    generation: int
    length: int
    locations: tuple[Location, ...]


class SnapshotCursor(NamedTuple):
    """How far a snapshot has read: index into the tables, and the last key there."""

    table: int = 0
    key: _Key = ()
    lenient: bool = False


class LogRows:
    """Tables `outbox`, `log_record` and `log_state`."""

    def __init__(self, database: Database, segments: SegmentRows) -> None:
        self._database = database
        self._segments = segments

    # --- outbox ----------------------------------------------------------------------------------------

    def waiting_tenants(self) -> list[int]:
        """Tenants with queued entries: one step down the table's B-tree for each, however many entries there are."""
        found: list[int] = []
        while row := self._database.one(
            "SELECT tenant FROM outbox WHERE tenant>? ORDER BY tenant LIMIT 1", (found[-1] if found else 0,)
        ):
            found.append(row[0])
        return found

    def pending(self, tenant: int, max_bytes: int) -> Queued:
        """The tenant's oldest queued entries, as many as fit `max_bytes` with their lengths; none: `through` is 0."""
        rows = self._database.all(
            "SELECT sequence, blob FROM outbox WHERE tenant=? ORDER BY sequence LIMIT ?", (tenant, _PENDING_ROWS)
        )
        used = through = 0
        entries: list[bytes] = []
        for sequence, blob in rows:
            used += len(blob) + LENGTH_BYTES
            if used > max_bytes:
                break
            entries.append(blob)
            through = sequence
        return Queued(through, entries)

    def is_active(self, tenant: int) -> bool:
        """Whether the tenant exists and is not being deleted."""
        row = self._database.one("SELECT state FROM tenant WHERE tenant=?", (tenant,))
        return row == (TenantState.ACTIVE,)

    def discard(self, tenant: int) -> None:
        """Forget the queued entries of a tenant that is being deleted: there is no key to seal them with."""
        self._database.require_transaction()
        row = self._database.one("SELECT coalesce(sum(length(blob)), 0) FROM outbox WHERE tenant=?", (tenant,))
        count = self._database.run("DELETE FROM outbox WHERE tenant=?", (tenant,))
        self._database.outbox.change(-count, -int(row[0]) if row else 0)

    def backlog(self) -> int:
        """Number of queued entries of all tenants."""
        return self._database.outbox.rows

    # --- records ---------------------------------------------------------------------------------------

    def state(self, tenant: int) -> LogState:
        """The tenant's log as it is."""
        row = self._database.one(
            "SELECT head_generation, log_bytes, snapshot_bytes FROM log_state WHERE tenant=?", (tenant,)
        )
        return LogState._make(row) if row else LogState()

    def append(self, record: LogRecord, queued: Queued) -> None:
        """A record that holds what `pending` gave is on the media: those entries leave the outbox."""
        self._database.require_transaction()
        count = self._database.run("DELETE FROM outbox WHERE tenant=? AND sequence<=?", (record.tenant, queued.through))
        self._database.outbox.change(-count, -queued.entry_bytes)
        self.add_record(record)
        state = self.state(record.tenant)
        self.set_state(
            record.tenant, state._replace(head_generation=record.generation, log_bytes=state.log_bytes + record.length)
        )

    def add_record(self, record: LogRecord) -> None:
        """Refer to a record."""
        self._database.require_transaction()
        self._database.run(
            "INSERT INTO log_record VALUES(?,?,?,?)",
            (record.tenant, record.generation, record.length, pack_locations(record.locations)),
        )
        self._segments.add_record(record.length, record.locations)

    def records_after(self, tenant: int, generation: int, limit: int = 256) -> list[LogRecord]:
        """The tenant's live records of a later generation, oldest first."""
        rows = self._database.all(
            "SELECT tenant, generation, length, locations FROM log_record WHERE tenant=? AND generation>?"
            " ORDER BY generation LIMIT ?",
            (tenant, generation, limit),
        )
        return [LogRecord(row[0], row[1], row[2], unpack_locations(row[3])) for row in rows]

    def set_state(self, tenant: int, state: LogState) -> None:
        """Write the tenant's `log_state` row."""
        self._database.require_transaction()
        self._database.run("INSERT OR REPLACE INTO log_state VALUES(?,?,?,?)", (tenant, *state))

    def drop_before(self, tenant: int, generation: int, limit: int = 1024) -> bool:
        """Forget up to `limit` records of the tenant older than `generation` -> whether there was one."""
        self._database.require_transaction()
        rows = self._database.all(
            "SELECT length, locations, generation FROM log_record WHERE tenant=? AND generation<?"
            " ORDER BY generation LIMIT ?",
            (tenant, generation, limit),
        )
        if not rows:
            return False
        freed = self._segments.release([(row[0], row[1]) for row in rows])
        self._database.run("DELETE FROM log_record WHERE tenant=? AND generation<=?", (tenant, rows[-1][2]))
        state = self.state(tenant)
        self.set_state(tenant, state._replace(log_bytes=max(0, state.log_bytes - freed)))
        return True

    # --- snapshot --------------------------------------------------------------------------------------

    def snapshot_some(self, tenant: int, cursor: SnapshotCursor) -> SnapshotCursor | None:
        """Queue the next rows of the tenant as Put changes -> where to go on; None when all are queued.

        In a transaction of its own each time; changes of others in between are queued in their places.
        BadRecordError for a row that fails its check, unless the cursor is `lenient`: then it is left out.
        """
        self._database.require_transaction()
        readers = (self._inodes, self._entries, self._xattrs, self._blocks)
        used = 0
        for count, (change, key) in enumerate(readers[cursor.table](tenant, cursor), 1):
            if change is not None:
                self._database.log(tenant, change)
            used += len(change.value) if isinstance(change, PutXattr) else 0
            if count == SNAPSHOT_ROWS or used >= SNAPSHOT_BYTES:
                return cursor._replace(key=key)
        return cursor._replace(table=cursor.table + 1, key=()) if cursor.table + 1 < len(readers) else None

    def check_some(self, tenant: int, after: int) -> int | None:
        """Hold the tenant's next objects against their checks -> where to go on; None when all are whole.

        BadRecordError if one is not: it may be whole in the log as it is, and must not be replaced there.
        """
        rows = self._objects(after, WHOLE_ROWS)
        for owner, *row in rows:
            if owner == tenant:
                for fault in object_faults(self._database, tenant, tuple(row), each_name=False):
                    raise self._database.damage.note("inode", tenant, row[0], f"{fault.kind}: {fault.text}")
        return rows[-1][1] if len(rows) == WHOLE_ROWS else None

    def _objects(self, after: int, limit: int) -> list[Row]:
        # inode is keyed by number alone: the limit counts rows of all tenants, so that a step stays short.
        return self._database.all(
            f"SELECT i.tenant, {LISTING_COLUMNS} FROM inode i WHERE i.ino>? ORDER BY i.ino LIMIT ?", (after, limit)
        )

    def _inodes(self, tenant: int, cursor: SnapshotCursor) -> _Changes:
        check = self._database.macs.of(tenant).inode
        for owner, *row in self._objects(int(cursor.key[0]) if cursor.key else 0, SNAPSHOT_ROWS):
            put = None
            if owner == tenant and self._sound(cursor, tenant, row[0], check(row[:-1]) == row[-1]) and row[2]:
                put = PutInode(*row[:LOGGED_FIELDS])
            yield put, (row[0],)

    def _entries(self, tenant: int, cursor: SnapshotCursor) -> _Changes:
        rows = self._after(
            "dirent",
            "parent, cookie, sealed_name",
            "ino, mac, EXISTS (SELECT 1 FROM inode i WHERE i.ino=dirent.ino)",
            tenant,
            cursor.key or (0, 0, b""),
        )
        check = self._database.macs.of(tenant).entry
        for parent, cookie, name, ino, mac, exists in rows:
            sound = self._sound(cursor, tenant, parent, exists and check(parent, name, ino) == mac)
            yield PutEntry(parent, name, ino) if sound else None, (parent, cookie, name)

    def _sound(self, cursor: SnapshotCursor, tenant: int, ino: int, sound: bool) -> bool:
        if not sound and not cursor.lenient:
            raise self._database.damage.note("inode", tenant, ino, f"row of object {ino}, or a name in it, is damaged")
        return sound

    def _xattrs(self, tenant: int, cursor: SnapshotCursor) -> _Changes:
        rows = self._after("xattr", "ino, sealed_name", "sealed_value", tenant, cursor.key or (0, b""))
        for ino, name, value in rows:
            yield PutXattr(ino, name, value), (ino, name)

    def _blocks(self, tenant: int, cursor: SnapshotCursor) -> _Changes:
        rows = self._after("block", "ino, block", "generation, length, epoch, tag", tenant, cursor.key or (0, -1))
        for row in rows:
            yield PutBlock(*row), row[:2]

    def _after(
        self, table: str, key_columns: str, columns: str, tenant: int, key: Sequence[int | bytes]
    ) -> Iterator[Row]:
        marks = ",".join("?" * len(key))
        return self._database.iterate(
            f"SELECT {key_columns}, {columns} FROM {table} WHERE tenant=? AND ({key_columns})>({marks})"
            f" ORDER BY {key_columns} LIMIT ?",
            (tenant, *key, SNAPSHOT_ROWS),
        )

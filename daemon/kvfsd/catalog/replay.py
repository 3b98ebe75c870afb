"""Filling an empty catalog from what lies on the media: log changes, records that were found, and putting it in order.

Used by `kvfsd.metalog.rebuild`. What was found and which blocks count go into temporary tables first, so that memory
stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from kvfs import limits
from kvfsd.catalog.database import Database
from kvfsd.catalog.rows import Location, TenantRow, cookie_of, pack_locations
from kvfsd.ondisk import metalog
from kvfsd.ondisk.record import RecordIdentity

ATTACH_BATCH: Final = 1024
_DIRECTORY: Final = "(mode & 0xF000) = 0x4000"

_TEMPORARY: Final = (
    """CREATE TEMP TABLE found(
        type INT, tenant INT, object INT, block INT, generation INT, medium INT, segment INT, offset INT, length INT,
        epoch INT, tag BLOB,
        PRIMARY KEY(type, tenant, object, block, generation, medium, segment, offset)) WITHOUT ROWID""",
    """CREATE TEMP TABLE wanted(
        tenant INT, ino INT, block INT, generation INT, length INT, epoch INT, tag BLOB,
        PRIMARY KEY(tenant, ino, block)) WITHOUT ROWID""",
)


class FoundRecord(NamedTuple):
    """A record header found on a medium, and the GCM tag behind it (None: not read)."""

    identity: RecordIdentity
    location: Location
    tag: bytes | None = None


class Replay:
    """Writes into a catalog whose metadata log is off (`Database.logging`), inside the caller's transactions.

    Rows get no checks here: `rowsealing.seal_rows` makes them when all is in order.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        for statement in _TEMPORARY:
            database.run(statement)
        self._apply: dict[type, Callable[[int, Any], None]] = {
            metalog.PutInode: self._put_inode,
            metalog.TouchInode: self._touch_inode,
            metalog.DropInode: self._drop_inode,
            metalog.PutEntry: self._put_entry,
            metalog.DropEntry: self._drop_entry,
            metalog.PutXattr: self._put_xattr,
            metalog.DropXattr: self._drop_xattr,
            metalog.PutBlock: self._put_block,
            metalog.DropBlocks: self._drop_blocks,
        }

    # --- found records ---------------------------------------------------------------------------------

    def note_found(self, records: Iterable[FoundRecord]) -> int:
        """Remember records by what they claim to be -> how many."""
        rows = []
        for identity, location, tag in records:
            number = (identity.object, identity.block, identity.generation)
            if max(number) >= 1 << 63:
                continue  # a header nobody wrote: numbers are positive 64-bit integers here
            key = (identity.record_type, identity.tenant, *number, *location)
            rows.append((*key, identity.length, identity.epoch, tag))
        self._database.run_many("INSERT OR IGNORE INTO temp.found VALUES(?,?,?,?,?,?,?,?,?,?,?)", rows)
        return len(rows)

    def found(self, record_type: int, tenant: int, generation: int) -> list[tuple[Location, int, int, int]]:
        """Replicas of the log or system record of that generation: (location, block, length, epoch)."""
        rows = self._database.all(
            "SELECT medium, segment, offset, block, length, epoch FROM temp.found"
            " WHERE type=? AND tenant=? AND object=0 AND generation=?",
            (record_type, tenant, generation),
        )
        return [(Location(*row[:3]), *row[3:]) for row in rows]

    def generations(self, record_type: int, tenant: int) -> list[int]:
        """Generations of the tenant's log or system records, newest first."""
        rows = self._database.all(
            "SELECT DISTINCT generation FROM temp.found WHERE type=? AND tenant=? AND object=0"
            " ORDER BY generation DESC",
            (record_type, tenant),
        )
        return [row[0] for row in rows]

    def highest(self) -> tuple[int, int]:
        """Highest object number and generation seen anywhere."""
        row = self._database.one("SELECT max(object), max(generation) FROM temp.found") or (0, 0)
        inode = self._database.one("SELECT max(ino), max(generation) FROM inode") or (0, 0)
        return max(row[0] or 0, inode[0] or 0), max(row[1] or 0, inode[1] or 0)

    # --- changes ---------------------------------------------------------------------------------------

    def apply(self, tenant: int, change: metalog.Change) -> None:
        """Carry out one change of the tenant's log; snapshot marks do nothing."""
        action = self._apply.get(type(change))
        if action is not None:
            action(tenant, change)

    def _put_inode(self, tenant: int, change: metalog.PutInode) -> None:
        ino, mode, *rest = (getattr(change, name) for name in change.__struct_fields__)
        self._database.run(
            "INSERT OR REPLACE INTO inode VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,0,0,0)", (ino, tenant, mode, *rest)
        )

    def _touch_inode(self, tenant: int, change: metalog.TouchInode) -> None:
        self._database.run(
            "UPDATE inode SET nlink=?, mtime_ns=?, ctime_ns=? WHERE ino=? AND tenant=?",
            (change.nlink, change.mtime_ns, change.ctime_ns, change.ino, tenant),
        )

    def _drop_inode(self, tenant: int, change: metalog.DropInode) -> None:
        for table in ("inode", "xattr", "temp.wanted"):
            self._database.run(f"DELETE FROM {table} WHERE tenant=? AND ino=?", (tenant, change.ino))

    def _put_entry(self, tenant: int, change: metalog.PutEntry) -> None:
        self._database.run(
            "INSERT OR REPLACE INTO dirent VALUES(?,?,?,?,?,0)",
            (tenant, change.parent, cookie_of(change.name), change.name, change.ino),
        )

    def _drop_entry(self, tenant: int, change: metalog.DropEntry) -> None:
        self._database.run(
            "DELETE FROM dirent WHERE tenant=? AND parent=? AND cookie=? AND sealed_name=?",
            (tenant, change.parent, cookie_of(change.name), change.name),
        )

    def _put_xattr(self, tenant: int, change: metalog.PutXattr) -> None:
        self._database.run(
            "INSERT OR REPLACE INTO xattr VALUES(?,?,?,?)", (tenant, change.ino, change.name, change.value)
        )

    def _drop_xattr(self, tenant: int, change: metalog.DropXattr) -> None:
        key = (tenant, change.ino, change.name)
        self._database.run("DELETE FROM xattr WHERE tenant=? AND ino=? AND sealed_name=?", key)

    def _put_block(self, tenant: int, change: metalog.PutBlock) -> None:
        values = (change.ino, change.block, change.generation, change.length, change.epoch, change.tag)
        self._database.run("INSERT OR REPLACE INTO temp.wanted VALUES(?,?,?,?,?,?,?)", (tenant, *values))

    def _drop_blocks(self, tenant: int, change: metalog.DropBlocks) -> None:
        key = (tenant, change.ino, change.block)
        self._database.run("DELETE FROM temp.wanted WHERE tenant=? AND ino=? AND block>=?", key)

    # --- order -----------------------------------------------------------------------------------------

    def attach_blocks(self) -> None:
        """Give each block that counts the places where its very version was found; others get no row."""
        key: tuple[int, int, int] = (0, 0, -1)
        while rows := self._database.all(
            "SELECT tenant, ino, block, generation, length, epoch, tag FROM temp.wanted"
            " WHERE (tenant, ino, block)>(?,?,?) ORDER BY tenant, ino, block LIMIT ?",
            (*key, ATTACH_BATCH),
        ):
            key = rows[-1][:3]
            for row in rows:
                places = self._places(row)
                if places:
                    self._database.run("INSERT INTO block VALUES(?,?,?,?,?,?,?,?)", (*row, pack_locations(places)))

    def _places(self, row: tuple[Any, ...]) -> list[Location]:
        tenant, ino, block, generation, length, epoch, tag = row
        found = self._database.all(
            "SELECT medium, segment, offset FROM temp.found WHERE type=1 AND tenant=? AND object=? AND block=?"
            " AND generation=? AND length=? AND epoch=? AND (tag IS NULL OR tag=?)",
            (tenant, ino, block, generation, length, epoch, tag),
        )
        # One replica a medium: a second one there is a copy that garbage collection had not trimmed yet.
        by_medium = {place[0]: Location._make(place) for place in found}
        return list(by_medium.values())[: limits.REPLICAS_MAX]

    def put_root(self, tenant: TenantRow) -> None:
        """The tenant's root directory, if its log has not brought it."""
        self._database.run(
            "INSERT OR IGNORE INTO inode VALUES(?,?,?,2,0,0,0,0,0,?,?,?,0,?,0,x'',0,0,0)",
            (tenant.root_ino, tenant.tenant, 0o40755, *[tenant.created_ns] * 3, tenant.root_ino),
        )

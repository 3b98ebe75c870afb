"""Filling an empty catalog from what lies on the media: log changes, records that were found, and putting it in order.

Used by `kvfsd.rebuild`. What was found and which blocks count go into temporary tables first, so memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from kvfs import limits
from kvfsd.catalog.database import Database
from kvfsd.catalog.rows import Location, TenantRow, cookie_of, pack_locations
from kvfsd.ondisk import metalog
from kvfsd.ondisk.record import RecordIdentity, record_bytes

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
    "CREATE TEMP TABLE live(ino INTEGER PRIMARY KEY)",
)


class FoundRecord(NamedTuple):
    """A record header found on a medium, and the GCM tag behind it (None: not read)."""

    identity: RecordIdentity
    location: Location
    tag: bytes | None = None


class Counts(NamedTuple):
    """What putting in order came to."""

    objects: int
    objects_lost: int
    blocks: int
    names_dropped: int


class Replay:
    """Writes into a catalog whose metadata log is off (`Database.logging`), inside the caller's transactions."""

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
            "INSERT OR REPLACE INTO inode VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", (ino, tenant, mode, *rest)
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
            "INSERT OR REPLACE INTO dirent VALUES(?,?,?,?,?)",
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
            "INSERT OR IGNORE INTO inode VALUES(?,?,?,2,0,0,0,0,0,?,?,?,0,?,0,x'')",
            (tenant.root_ino, tenant.tenant, 0o40755, *[tenant.created_ns] * 3, tenant.root_ino),
        )

    def put_in_order(self) -> Counts:
        """Drop what is not whole or not reachable, then recount links, parents, use and live bytes."""
        lost = self._database.run(
            f"DELETE FROM inode WHERE NOT {_DIRECTORY} AND stored_bytes <>"
            " (SELECT coalesce(sum(length), 0) FROM block b WHERE b.tenant=inode.tenant AND b.ino=inode.ino)"
        )
        self._one_name_per_directory()
        dropped = self._drop_unreachable()
        self._recount_links()
        self._recount_use()
        objects = self._database.one("SELECT count(*) FROM inode") or (0,)
        blocks = self._database.one("SELECT count(*) FROM block") or (0,)
        return Counts(objects[0], lost, blocks[0], dropped)

    def _one_name_per_directory(self) -> None:
        # Only a log with a hole in it leaves a directory two names.
        rows = self._database.all(
            "SELECT d.tenant, d.parent, d.cookie, d.sealed_name, d.ino FROM dirent d JOIN inode i ON i.ino=d.ino"
            f" WHERE {_DIRECTORY} AND d.ino IN (SELECT ino FROM dirent GROUP BY ino HAVING count(*) > 1)"
            " ORDER BY d.ino, d.parent=i.parent DESC"
        )
        kept = 0
        for row in rows:
            if row[4] == kept:
                self._database.run(
                    "DELETE FROM dirent WHERE tenant=? AND parent=? AND cookie=? AND sealed_name=?", row[:4]
                )
            kept = row[4]

    def _drop_unreachable(self) -> int:
        self._database.run(
            "INSERT INTO temp.live WITH RECURSIVE reach(tenant, ino) AS ("
            " SELECT tenant, root_ino FROM tenant UNION"
            " SELECT i.tenant, i.ino FROM reach r JOIN inode p ON p.ino=r.ino AND (p.mode & 0xF000) = 0x4000"
            " JOIN dirent d ON d.tenant=r.tenant AND d.parent=r.ino JOIN inode i ON i.ino=d.ino AND i.tenant=d.tenant)"
            " SELECT ino FROM reach"
        )
        dropped = self._database.run(
            "DELETE FROM dirent WHERE ino NOT IN (SELECT ino FROM temp.live)"
            " OR parent NOT IN (SELECT ino FROM temp.live)"
        )
        for table in ("inode", "xattr", "block"):
            self._database.run(f"DELETE FROM {table} WHERE ino NOT IN (SELECT ino FROM temp.live)")
        return dropped

    def _recount_links(self) -> None:
        self._database.run(
            "UPDATE inode SET parent=d.parent FROM dirent d"
            f" WHERE d.ino=inode.ino AND d.tenant=inode.tenant AND {_DIRECTORY}"
        )
        self._database.run(
            "UPDATE inode SET nlink=c.names FROM"
            " (SELECT tenant, ino, count(*) AS names FROM dirent GROUP BY tenant, ino) c"
            f" WHERE c.ino=inode.ino AND c.tenant=inode.tenant AND NOT {_DIRECTORY}"
        )
        self._database.run(f"UPDATE inode SET nlink=2 WHERE {_DIRECTORY}")
        self._database.run(
            "UPDATE inode SET nlink=2+c.children FROM (SELECT parent, count(*) AS children FROM inode"
            f" WHERE {_DIRECTORY} AND parent<>ino GROUP BY parent) c WHERE c.parent=inode.ino"
        )

    def _recount_use(self) -> None:
        self._database.run(
            "UPDATE tenant SET used_bytes="
            "(SELECT coalesce(sum(stored_bytes), 0) FROM inode i WHERE i.tenant=tenant.tenant), used_objects="
            "(SELECT count(*) FROM inode i WHERE i.tenant=tenant.tenant AND i.ino<>tenant.root_ino)"
        )
        self._database.run(
            "INSERT OR IGNORE INTO quarantine"
            " SELECT tenant, ino, 0, x'', 'hidden before the rebuild', ctime_ns FROM inode WHERE flags & 1"
        )
        live: dict[tuple[int, int], int] = {}
        for table in ("block", "log_record"):
            for length, packed in self._database.iterate(f"SELECT length, locations FROM {table}"):
                for at in range(0, len(packed), 10):
                    place = (int.from_bytes(packed[at : at + 2], "big"), int.from_bytes(packed[at + 2 : at + 6], "big"))
                    live[place] = live.get(place, 0) + record_bytes(length)
        self._database.run_many(
            "UPDATE segment SET live_bytes=? WHERE medium=? AND segment=?",
            [(count, *place) for place, count in live.items()],
        )

"""Putting a rebuilt catalog in order: nothing holed, nothing unreachable, every count exact."""

from __future__ import annotations

from typing import Final, NamedTuple

from kvfsd.catalog.database import Database
from kvfsd.catalog.rows import unpack_locations
from kvfsd.ondisk.record import record_bytes

_DIRECTORY: Final = "(mode & 0xF000) = 0x4000"


class Counts(NamedTuple):
    """What putting in order came to."""

    objects: int
    objects_lost: int
    blocks: int
    names_dropped: int


class Reconcile:
    """Works on all tenants at once, in the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.run("CREATE TEMP TABLE live(ino INTEGER PRIMARY KEY)")

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
                for medium, segment, _ in unpack_locations(packed):
                    live[medium, segment] = live.get((medium, segment), 0) + record_bytes(length)
        self._database.run_many(
            "UPDATE segment SET live_bytes=? WHERE medium=? AND segment=?",
            [(count, *place) for place, count in live.items()],
        )

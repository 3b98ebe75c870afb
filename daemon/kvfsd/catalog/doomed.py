"""Blocks of objects that are gone: a large object's are released in batches, so that its unlink stalls nobody."""

from __future__ import annotations

from typing import Final

from kvfsd.catalog.database import Database
from kvfsd.catalog.segment_rows import SegmentRows

RELEASE_BATCH: Final = 128
"""Blocks that one transaction releases for an object that goes; the rest follows in `Doomed.reap`."""


class Doomed:
    """Objects whose rows are deleted and uncharged already; their blocks still count in their segments."""

    def __init__(self, database: Database, segments: SegmentRows) -> None:
        self._database = database
        self._segments = segments

    def release_object(self, tenant: int, ino: int) -> None:
        """The object is gone: release its blocks, the first RELEASE_BATCH now, the others in `reap`."""
        if self._release_some(tenant, ino, RELEASE_BATCH) == RELEASE_BATCH:
            self._database.run("INSERT OR IGNORE INTO doomed VALUES(?,?)", (tenant, ino))

    def reap(self, limit: int = RELEASE_BATCH) -> bool:
        """Release up to `limit` blocks of objects that are gone -> whether there was anything to do."""
        self._database.require_transaction()
        row = self._database.one("SELECT tenant, ino FROM doomed LIMIT 1")
        if row is None:
            return False
        if self._release_some(row[0], row[1], limit) < limit:
            self._database.run("DELETE FROM doomed WHERE tenant=? AND ino=?", row)
        return True

    def _release_some(self, tenant: int, ino: int, limit: int) -> int:
        rows = self._database.all(
            "SELECT length, locations, block FROM block WHERE tenant=? AND ino=? ORDER BY block LIMIT ?",
            (tenant, ino, limit),
        )
        if rows:
            self._segments.release([(row[0], row[1]) for row in rows])
            self._database.run("DELETE FROM block WHERE tenant=? AND ino=? AND block<=?", (tenant, ino, rows[-1][2]))
        return len(rows)

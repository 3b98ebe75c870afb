"""Freeing what a deleted tenant had, batch by batch, in the background."""

from __future__ import annotations

from typing import Final

from kvfsd.catalog.database import Database, Row
from kvfsd.catalog.inodes import Inodes
from kvfsd.catalog.log_rows import LogRows
from kvfsd.catalog.schema import TenantState
from kvfsd.catalog.segment_rows import SegmentRows
from kvfsd.catalog.tenants import Tenants

PURGE_BATCH: Final = 256
"""Rows of one transaction."""


class Purge:
    """Deletes tenants after `Tenants.begin_delete`."""

    def __init__(
        self, database: Database, inodes: Inodes, tenants: Tenants, segments: SegmentRows, log_rows: LogRows
    ) -> None:
        self._database = database
        self._inodes = inodes
        self._tenants = tenants
        self._segments = segments
        self._log_rows = log_rows

    def deleting(self) -> list[int]:
        """Tenants that still have something to free."""
        rows = self._database.all("SELECT tenant FROM tenant WHERE state=?", (TenantState.DELETING,))
        return [row[0] for row in rows]

    def purge_some(self, tenant: int) -> bool:
        """Free one batch, in the caller's transaction -> False when the tenant is gone altogether."""
        self._database.require_transaction()
        if self._objects(tenant) or self._records("staged_block", "attachment, ino, block", tenant):
            return True
        if self._records("block", "ino, block", tenant) or self._records("log_record", "generation", tenant):
            return True
        self._log_rows.discard(tenant)
        for table in ("doomed", "log_state", "key_slot", "tenant_policy"):
            self._database.run(f"DELETE FROM {table} WHERE tenant=?", (tenant,))
        self._tenants.forget(tenant)
        return False

    def _objects(self, tenant: int) -> bool:
        # Every object has a name, or is nameless and in one of two tables, or is the root.
        names = self._database.all(
            "SELECT ino, parent, cookie, sealed_name FROM dirent WHERE tenant=? LIMIT ?", (tenant, PURGE_BATCH)
        )
        self._database.run_many(
            "DELETE FROM dirent WHERE tenant=? AND parent=? AND cookie=? AND sealed_name=?",
            [(tenant, *row[1:]) for row in names],
        )
        if names:
            self._destroy(tenant, names)
            return True
        for table in ("open_unlinked", "quarantine"):
            rows = self._database.all(f"SELECT ino FROM {table} WHERE tenant=? LIMIT ?", (tenant, PURGE_BATCH))
            self._database.run_many(f"DELETE FROM {table} WHERE tenant=? AND ino=?", [(tenant, row[0]) for row in rows])
            self._destroy(tenant, rows)
            if rows:
                return True
        row = self._tenants.get(tenant)
        if row.used_objects:  # whose names damage took
            return self._database.run("DELETE FROM inode WHERE tenant=?", (tenant,)) > 0
        return self._database.run("DELETE FROM inode WHERE tenant=? AND ino=?", (tenant, row.root_ino)) > 0

    def _destroy(self, tenant: int, rows: list[Row]) -> None:
        for ino, *_ in rows:
            self._inodes.destroy_unchecked(tenant, ino)

    def _records(self, table: str, key: str, tenant: int) -> bool:
        rows = self._database.all(
            f"SELECT length, locations, {key} FROM {table} WHERE tenant=? LIMIT ?", (tenant, PURGE_BATCH)
        )
        self._segments.release([(row[0], row[1]) for row in rows])
        where = " AND ".join(f"{column}=?" for column in key.split(", "))
        self._database.run_many(f"DELETE FROM {table} WHERE tenant=? AND {where}", [(tenant, *row[2:]) for row in rows])
        return bool(rows)

"""Rows of tenants, their key slots and their exact use of bytes and objects."""

from __future__ import annotations

from collections.abc import Iterable

from kvfs import limits
from kvfs.errors import InternalError, InvalidArgumentError, NotFoundError, QuotaExceededError
from kvfsd.catalog.rows import LOGGED_FIELDS, AccessKind, AccessRow, InodeRow, KeySlotRow, TenantRow
from kvfsd.catalog.schema import META_NEXT_TENANT, TenantState
from kvfsd.catalog.tenant_rows import TenantRows
from kvfsd.ondisk.metalog import PutInode


class Tenants(TenantRows):
    """Tenants of the pool. Charged bytes are the inodes' `stored_bytes`; charged objects all inodes but the root."""

    def create(self, row: TenantRow, slots: Iterable[KeySlotRow], root: InodeRow) -> None:
        """Add a tenant with its wrapped keys and its empty root directory (`root.parent` is itself)."""
        self._database.require_transaction()
        if not 1 <= row.tenant < 1 << 32 or row.root_ino != root.ino or root.parent != root.ino:
            raise InvalidArgumentError(f"tenant {row.tenant}: number out of range, or its root is not its root")
        count = self._database.one("SELECT count(*) FROM tenant")
        if count is not None and count[0] >= limits.TENANTS_MAX:
            raise InvalidArgumentError(f"pool has {limits.TENANTS_MAX} tenants already")
        self.restore(row)
        self.put_slots(slots)
        mac = self._database.macs.of(row.tenant).inode(root)
        marks = ",".join("?" * (len(root) + 2))
        self._database.run(f"INSERT INTO inode VALUES({marks})", (root.ino, row.tenant, *root[1:], mac))
        self._database.log(row.tenant, PutInode(*root[:LOGGED_FIELDS]))

    def total_use(self) -> tuple[int, int]:
        """Bytes and objects charged to all tenants together."""
        row = self._database.one("SELECT coalesce(sum(used_bytes), 0), coalesce(sum(used_objects), 0) FROM tenant")
        return (row[0], row[1]) if row else (0, 0)

    def next_number(self) -> int:
        """A tenant number never used before in this catalog."""
        self._database.require_transaction()
        number: int = self._database.meta(META_NEXT_TENANT)
        self._database.set_meta(META_NEXT_TENANT, number + 1)
        return number

    def set_quota(self, tenant: int, quota_bytes: int, quota_objects: int) -> None:
        """New hard quotas, 0 = none; use above them stays, growth is refused."""
        if quota_bytes < 0 or quota_objects < 0:
            raise InvalidArgumentError(f"tenant {tenant}: quota of {quota_bytes} bytes, {quota_objects} objects")
        self._update(self.get(tenant)._replace(quota_bytes=quota_bytes, quota_objects=quota_objects))

    def rename(self, tenant: int, sealed_name: bytes) -> None:
        """Another sealed name."""
        self._update(self.get(tenant)._replace(sealed_name=sealed_name))

    def begin_delete(self, tenant: int) -> None:
        """Drop the tenant's key slots and mark it; `purge` then frees what it had, batch by batch."""
        row = self.get(tenant)
        self._database.run("DELETE FROM key_slot WHERE tenant=?", (tenant,))
        self._database.run("DELETE FROM tenant_access WHERE tenant=?", (tenant,))
        self._update(row._replace(state=TenantState.DELETING))
        self._database.macs.forget(tenant)

    def forget(self, tenant: int) -> None:
        """Delete the row itself, when nothing of the tenant is left."""
        self._database.require_transaction()
        self._kept.pop(tenant, None)
        if not self._database.run("DELETE FROM tenant WHERE tenant=?", (tenant,)):
            raise NotFoundError(f"no tenant {tenant}")
        self._changed()

    # --- what belongs to a tenant ----------------------------------------------------------------------

    def put_slots(self, slots: Iterable[KeySlotRow]) -> None:
        """Add wrapped keys, or replace them by ones that are wrapped anew."""
        rows = list(slots)
        with self.changing_members(*[slot.tenant for slot in rows]):
            self._database.run_many("INSERT OR REPLACE INTO key_slot VALUES(?,?,?)", rows)

    def drop_slot(self, tenant: int, epoch: int) -> None:
        """Forget one wrapped key."""
        with self.changing_members(tenant):
            self._database.run("DELETE FROM key_slot WHERE tenant=? AND epoch=?", (tenant, epoch))

    def set_access(self, tenant: int, kind: AccessKind, values: Iterable[bytes]) -> None:
        """Replace the entries of one kind in the list of who may attach."""
        with self.changing_members(tenant):
            self._database.run("DELETE FROM tenant_access WHERE tenant=? AND kind=?", (tenant, kind))
            self._add_access(tenant, [AccessRow(kind, value) for value in values])

    def add_access(self, tenant: int, rows: Iterable[AccessRow]) -> None:
        """Add entries to the list of who may attach."""
        with self.changing_members(tenant):
            self._add_access(tenant, rows)

    def _add_access(self, tenant: int, rows: Iterable[AccessRow]) -> None:
        self._database.run_many("INSERT OR IGNORE INTO tenant_access VALUES(?,?,?)", [(tenant, *row) for row in rows])

    # --- use -------------------------------------------------------------------------------------------

    def charge(self, tenant: int, delta_bytes: int, delta_objects: int) -> None:
        """Change the tenant's use; QuotaExceededError if it grows over a quota (shrinking is always allowed)."""
        self._database.require_transaction()
        self._kept.pop(tenant, None)
        changed = self._database.run(
            "UPDATE tenant SET used_bytes=used_bytes+?1, used_objects=used_objects+?2 WHERE tenant=?3"
            " AND (?1<=0 OR quota_bytes=0 OR used_bytes+?1<=quota_bytes)"
            " AND (?2<=0 OR quota_objects=0 OR used_objects+?2<=quota_objects)",
            (delta_bytes, delta_objects, tenant),
        )
        if changed:
            return
        row = self.get(tenant)
        if delta_bytes <= 0 and delta_objects <= 0:
            raise InternalError(f"tenant {tenant}: charge refused: {row!r}")
        raise QuotaExceededError(
            f"tenant {tenant}: {row.used_bytes}+{delta_bytes} of {row.quota_bytes} bytes,"
            f" {row.used_objects}+{delta_objects} of {row.quota_objects} objects"
        )

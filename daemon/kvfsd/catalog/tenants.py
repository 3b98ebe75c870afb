"""Rows of tenants, their key slots and their exact use of bytes and objects."""

from __future__ import annotations

from collections.abc import Iterable

from kvfs import limits
from kvfs.errors import InternalError, InvalidArgumentError, NotFoundError, QuotaExceededError
from kvfsd.catalog.database import Database
from kvfsd.catalog.rows import AccessKind, AccessRow, InodeRow, KeySlotRow, TenantRow
from kvfsd.catalog.schema import META_NEXT_TENANT, META_SYSTEM_VERSION, TenantState
from kvfsd.ondisk.metalog import PutInode

_COLUMNS = "tenant, sealed_name, quota_bytes, quota_objects, used_bytes, used_objects, root_ino, state, created_ns"


class Tenants:
    """Tenants of the pool. Charged bytes are the inodes' `stored_bytes`; charged objects all inodes but the root."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[int, TenantRow] = {}

    def create(self, row: TenantRow, slots: Iterable[KeySlotRow], root: InodeRow) -> None:
        """Add a tenant with its wrapped keys and its empty root directory (`root.parent` is itself)."""
        self._database.require_transaction()
        if not 1 <= row.tenant < 1 << 32 or row.root_ino != root.ino or root.parent != root.ino:
            raise InvalidArgumentError(f"tenant {row.tenant}: number out of range, or its root is not its root")
        count = self._database.one("SELECT count(*) FROM tenant")
        if count is not None and count[0] >= limits.TENANTS_MAX:
            raise InvalidArgumentError(f"pool has {limits.TENANTS_MAX} tenants already")
        self._database.run("INSERT INTO tenant VALUES(?,?,?,?,?,?,?,?,?)", row)
        self.put_slots(slots)
        values = (root.ino, row.tenant, *root[1:])
        self._database.run("INSERT INTO inode VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", values)
        self._database.log(row.tenant, PutInode(*root))

    def restore(self, row: TenantRow) -> None:
        """Add the row of a tenant whose keys and objects are restored as well (rebuild)."""
        self._database.require_transaction()
        self._database.run("INSERT INTO tenant VALUES(?,?,?,?,?,?,?,?,?)", row)

    def get(self, tenant: int) -> TenantRow:
        """The tenant's row; NotFoundError if there is none. Asked for several times for each stored file, so kept."""
        kept = self._kept.get(tenant)
        if kept is not None:
            return kept
        values = self._database.one(f"SELECT {_COLUMNS} FROM tenant WHERE tenant=?", (tenant,))
        if values is None:
            raise NotFoundError(f"no tenant {tenant}")
        row = TenantRow._make(values)
        if not self._database.in_transaction:  # what a rollback would undo is not kept
            self._kept[tenant] = row
        return row

    def all(self) -> list[TenantRow]:
        """Every tenant, by number (at most `limits.TENANTS_MAX`)."""
        return [TenantRow._make(row) for row in self._database.all(f"SELECT {_COLUMNS} FROM tenant ORDER BY tenant")]

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
        self._database.require_transaction()
        if quota_bytes < 0 or quota_objects < 0:
            raise InvalidArgumentError(f"tenant {tenant}: quota of {quota_bytes} bytes, {quota_objects} objects")
        self._update("quota_bytes=?, quota_objects=?", tenant, (quota_bytes, quota_objects))

    def rename(self, tenant: int, sealed_name: bytes) -> None:
        """Another sealed name."""
        self._update("sealed_name=?", tenant, (sealed_name,))

    def begin_delete(self, tenant: int) -> None:
        """Drop the tenant's key slots and mark it; `purge` then frees what it had, batch by batch."""
        self._update("state=?", tenant, (TenantState.DELETING,))
        self._database.run("DELETE FROM key_slot WHERE tenant=?", (tenant,))
        self._database.run("DELETE FROM tenant_access WHERE tenant=?", (tenant,))

    def _update(self, assignments: str, tenant: int, values: tuple[int | bytes, ...]) -> None:
        self._database.require_transaction()
        self._kept.pop(tenant, None)
        if not self._database.run(f"UPDATE tenant SET {assignments} WHERE tenant=?", (*values, tenant)):
            raise NotFoundError(f"no tenant {tenant}")
        self._changed()

    def _changed(self) -> None:
        self._database.run("UPDATE meta SET value=value+1 WHERE key=?", (META_SYSTEM_VERSION,))

    def forget(self, tenant: int) -> None:
        """Delete the row itself, when nothing of the tenant is left."""
        self._update("state=state", tenant, ())
        self._database.run("DELETE FROM tenant WHERE tenant=?", (tenant,))

    # --- key slots -------------------------------------------------------------------------------------

    def slots(self, tenant: int) -> list[KeySlotRow]:
        """The tenant's wrapped keys, by epoch."""
        rows = self._database.all(
            "SELECT tenant, epoch, wrapped FROM key_slot WHERE tenant=? ORDER BY epoch", (tenant,)
        )
        return [KeySlotRow._make(row) for row in rows]

    def put_slots(self, slots: Iterable[KeySlotRow]) -> None:
        """Add wrapped keys, or replace them by ones that are wrapped anew."""
        self._database.require_transaction()
        self._database.run_many("INSERT OR REPLACE INTO key_slot VALUES(?,?,?)", list(slots))
        self._changed()

    def drop_slot(self, tenant: int, epoch: int) -> None:
        """Forget one wrapped key."""
        self._database.require_transaction()
        self._database.run("DELETE FROM key_slot WHERE tenant=? AND epoch=?", (tenant, epoch))
        self._changed()

    # --- who may attach --------------------------------------------------------------------------------

    def access(self, tenant: int) -> list[AccessRow]:
        """The tenant's access list. A catalog that was never opened for writing since there are such lists has none."""
        if self._database.one("SELECT 1 FROM sqlite_master WHERE name='tenant_access'") is None:
            return []
        rows = self._database.all(
            "SELECT kind, value FROM tenant_access WHERE tenant=? ORDER BY kind, value", (tenant,)
        )
        return [AccessRow._make(row) for row in rows]

    def set_access(self, tenant: int, kind: AccessKind, values: Iterable[bytes]) -> None:
        """Replace the entries of one kind."""
        self._database.require_transaction()
        self._database.run("DELETE FROM tenant_access WHERE tenant=? AND kind=?", (tenant, kind))
        self.add_access(tenant, [AccessRow(kind, value) for value in values])

    def add_access(self, tenant: int, rows: Iterable[AccessRow]) -> None:
        """Add entries."""
        self._database.require_transaction()
        self._database.run_many("INSERT OR IGNORE INTO tenant_access VALUES(?,?,?)", [(tenant, *row) for row in rows])
        self._changed()

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

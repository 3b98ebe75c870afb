"""Rows of tenants under their checks, with the sum over what belongs to each: wrapped keys, access list, policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from kvfs.errors import FailsafeError, NotFoundError
from kvfsd.catalog.connection import REPAIR
from kvfsd.catalog.database import Database, Row
from kvfsd.catalog.rowmacs import total
from kvfsd.catalog.rows import AccessRow, KeySlotRow, TenantRow
from kvfsd.catalog.schema import META_SYSTEM_VERSION

_COLUMNS = "tenant, sealed_name, quota_bytes, quota_objects, used_bytes, used_objects, root_ino, state, created_ns"
_USED_BYTES: Final = TenantRow._fields.index("used_bytes")
_ROOT_INO: Final = TenantRow._fields.index("root_ino")


class TenantRows:
    """A tenant's row that fails its check stops everything (FailsafeError): all that it has hangs on it.

    Use changes with every commit, and is not under the check (`tenant_checks`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[int, TenantRow] = {}

    def restore(self, row: TenantRow) -> None:
        """Add the row of a tenant whose keys and objects are restored as well (rebuild)."""
        self._database.require_transaction()
        self._database.run("INSERT INTO tenant VALUES(?,?,?,?,?,?,?,?,?,0,0,0)", row)
        self._seal(row)

    def get(self, tenant: int) -> TenantRow:
        """The tenant's row; NotFoundError if there is none, FailsafeError if it is damaged.

        Asked for several times for each stored file, so kept.
        """
        kept = self._kept.get(tenant)
        if kept is not None:
            return kept
        values = self._database.one(f"SELECT {_COLUMNS}, members, mac FROM tenant WHERE tenant=?", (tenant,))
        if values is None:
            raise NotFoundError(f"no tenant {tenant}")
        row = self._checked(values)
        if not self._database.in_transaction:  # what a rollback would undo is not kept
            self._kept[tenant] = row
        return row

    def use_changed(self, tenant: int) -> None:
        """Somebody wrote the tenant's use past this class: what is kept of its row is old."""
        self._kept.pop(tenant, None)

    def all(self) -> list[TenantRow]:
        """Every tenant, by number (at most `limits.TENANTS_MAX`); FailsafeError as in `get`."""
        rows = self._database.all(f"SELECT {_COLUMNS}, members, mac FROM tenant ORDER BY tenant")
        return [self._checked(row) for row in rows]

    def numbers(self) -> list[int]:
        """The numbers of all tenants; nothing is checked, so that this works before the catalog is unlocked."""
        return [row[0] for row in self._database.all("SELECT tenant FROM tenant ORDER BY tenant")]

    # --- what belongs to a tenant ----------------------------------------------------------------------

    def slots(self, tenant: int) -> list[KeySlotRow]:
        """The tenant's wrapped keys, by epoch."""
        rows = self._database.all(
            "SELECT tenant, epoch, wrapped FROM key_slot WHERE tenant=? ORDER BY epoch", (tenant,)
        )
        return [KeySlotRow._make(row) for row in rows]

    def access(self, tenant: int) -> list[AccessRow]:
        """The tenant's access list. A catalog that was never opened for writing since there are such lists has none."""
        if self._database.one("SELECT 1 FROM sqlite_master WHERE name='tenant_access'") is None:
            return []
        rows = self._database.all(
            "SELECT kind, value FROM tenant_access WHERE tenant=? ORDER BY kind, value", (tenant,)
        )
        return [AccessRow._make(row) for row in rows]

    def members_sum(self, tenant: int) -> int:
        """Sum of the checks of all that belongs to the tenant, as it is."""
        check = self._database.macs.system.tenant
        policies = self._database.all("SELECT * FROM tenant_policy WHERE tenant=?", (tenant,))
        return total(
            *[check(("slot", *slot)) for slot in self.slots(tenant)],
            *[check(("access", tenant, *entry)) for entry in self.access(tenant)],
            *[check(("policy", *policy)) for policy in policies],
        )

    @contextlib.contextmanager
    def changing_members(self, *tenants: int) -> Iterator[None]:
        """What belongs to these tenants changes, in the caller's transaction, and goes into the system records.

        Their rows are checked before and sealed after it. FailsafeError; a tenant without a row has nothing to seal.
        """
        self._database.require_transaction()
        owners = [self.get(number) for number in set(tenants) & set(self.numbers())]
        yield
        for owner in owners:
            self._seal(owner)
        self._changed()

    # --- checks ----------------------------------------------------------------------------------------

    def _checked(self, fetched: Row) -> TenantRow:
        *values, members, mac = fetched
        if self._mac(values, members) != mac:
            raise self.damaged(fetched[0], "fails its check")
        return TenantRow._make(values)

    def _mac(self, row: Sequence[Any], members: int) -> int:
        return self._database.macs.system.tenant((*row[:_USED_BYTES], *row[_ROOT_INO:], members))

    def _seal(self, row: TenantRow) -> None:
        """Write the check of a tenant's row, and of what belongs to it as it is now."""
        members = self.members_sum(row.tenant)
        values = (members, self._mac(row, members), row.tenant)
        self._database.run("UPDATE tenant SET members=?, mac=? WHERE tenant=?", values)

    def _update(self, row: TenantRow) -> None:
        """Write name, quotas and state; use is changed by `Tenants.charge` alone."""
        self._database.require_transaction()
        self._kept.pop(row.tenant, None)
        self._database.run(
            "UPDATE tenant SET sealed_name=?, quota_bytes=?, quota_objects=?, state=? WHERE tenant=?",
            (row.sealed_name, row.quota_bytes, row.quota_objects, row.state, row.tenant),
        )
        self._seal(row)
        self._changed()

    def _changed(self) -> None:
        self._database.set_meta(META_SYSTEM_VERSION, self._database.meta(META_SYSTEM_VERSION) + 1)

    def damaged(self, tenant: int, what: str) -> FailsafeError:
        """Tell that a tenant's row is damaged -> the error to raise."""
        text = f"row of tenant {tenant} {what}"
        self._database.damage.note("tenant", tenant, 0, text)
        return FailsafeError(f"catalog {self._database.path}: {text}; {REPAIR}")

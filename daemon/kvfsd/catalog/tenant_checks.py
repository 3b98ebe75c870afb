"""The rows of all tenants held against their checks when the catalog is opened, and their use when it is closed."""

from __future__ import annotations

from kvfsd.catalog.database import Database
from kvfsd.catalog.rows import TenantRow
from kvfsd.catalog.tenants import Tenants


class TenantChecks:
    """Use changes with every commit and has no check while the catalog is open: it can be counted."""

    def __init__(self, database: Database, tenants: Tenants) -> None:
        self._database = database
        self._tenants = tenants

    def check_all(self) -> None:
        """Compare every tenant's row, what belongs to it, and use with their checks; FailsafeError.

        Use that does not fit is counted anew; its check is written when the catalog is closed in order.
        """
        checks = {row[0]: row[1:] for row in self._database.all("SELECT tenant, members, use_mac FROM tenant")}
        compares_use = self._database.was_clean and not self._database.read_only
        for row in self._tenants.all():
            members, use = checks[row.tenant]
            if members != self._tenants.members_sum(row.tenant):
                raise self._tenants.damaged(row.tenant, "has not the keys, access list or policy that it should have")
            if compares_use and use != self._use_mac(row):
                self._recount(row)

    def _use_mac(self, row: TenantRow) -> int:
        return self._database.macs.system.tenant(("use", row.tenant, row.used_bytes, row.used_objects))

    def _recount(self, row: TenantRow) -> None:
        counted = self._database.one(
            "SELECT coalesce(sum(stored_bytes), 0), count(*) FROM inode WHERE tenant=? AND ino<>?",
            (row.tenant, row.root_ino),
        )
        self._database.damage.note("tenant", row.tenant, 0, "use of the tenant was damaged, and is counted anew")
        with self._database.transaction():
            self._database.run(
                "UPDATE tenant SET used_bytes=?, used_objects=? WHERE tenant=?", (*(counted or (0, 0)), row.tenant)
            )
            self._tenants.use_changed(row.tenant)

    def seal_use(self) -> None:
        """Write the checks of use, in a transaction of its own; the last thing before a clean close."""
        with self._database.transaction():
            for row in self._tenants.all():
                self._database.run("UPDATE tenant SET use_mac=? WHERE tenant=?", (self._use_mac(row), row.tenant))

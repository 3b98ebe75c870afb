"""Methods of the admin socket that work on a pool; `kvfsctl` runs the same ones on a pool that nobody has open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from kvfs.errors import BadRecordError, FormatError, InvalidArgumentError, NotPermittedError
from kvfsd.admin.admin import Method, Methods
from kvfsd.catalog.rows import QuarantineRow
from kvfsd.metrics import Metrics
from kvfsd.pool.pool import Pool
from kvfsd.pool.tenants import Tenant, TenantChange
from kvfsd.service.quarantine import Quarantine, QuarantinePolicy

QUARANTINE_LISTED_MAX = 1024


class TenantName(msgspec.Struct, forbid_unknown_fields=True):
    """Names a tenant."""

    name: str


class TenantCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A tenant to make; quotas in bytes and objects, 0 = none; `uid` and `gid` own its root directory."""

    name: str
    quota_bytes: int = 0
    quota_objects: int = 0
    uid: int = 0
    gid: int = 0


class TenantSet(msgspec.Struct, forbid_unknown_fields=True):
    """New quotas and rules of eviction (`kvfsd.pool.tenants.TenantChange`); null leaves one as it is."""

    name: str
    quota_bytes: int | None = None
    quota_objects: int | None = None
    min_bytes: int | None = None
    high_percent: int | None = None
    low_percent: int | None = None
    eviction: bool | None = None
    layout_guard: bool | None = None


class TenantAccess(msgspec.Struct, forbid_unknown_fields=True):
    """Users and groups that may attach to a tenant; null leaves one of the lists as it is."""

    name: str
    uids: list[int] | None = None
    gids: list[int] | None = None


class TenantCredential(msgspec.Struct, forbid_unknown_fields=True):
    """A mount credential's digest (`kvfsd.pool.access.credential_digest`) in hexadecimal."""

    name: str
    digest: str


class TenantDelete(msgspec.Struct, forbid_unknown_fields=True):
    """A tenant to delete, with everything in it if `force`."""

    name: str
    force: bool = False


class QuarantineObject(msgspec.Struct, forbid_unknown_fields=True):
    """An object of a tenant that was put aside."""

    name: str
    ino: int


def tenant_value(tenant: Tenant) -> dict[str, Any]:
    """A tenant as JSON."""
    return dataclasses.asdict(tenant)


class PoolAdmin:
    """Tenants and quarantine of one pool that is open for writing in this process.

    `attached` says whether a tenant is mounted here; such a one is not deleted.
    """

    def __init__(
        self, pool: Pool, quarantine: Quarantine | None = None, attached: Callable[[str], bool] | None = None
    ) -> None:
        self._pool = pool
        self._quarantine = quarantine or Quarantine(pool.catalog, pool.ports.clock, Metrics(), QuarantinePolicy())
        self._attached = attached or (lambda name: False)

    def register(self, methods: Methods) -> None:
        """Add the methods to an admin socket's."""
        methods.add("tenant_list", Method("All tenants with quota and use.", self.tenant_list))
        methods.add("tenant_show", Method("One tenant.", self.tenant_show, TenantName))
        methods.add("tenant_create", Method("Make a tenant.", self.tenant_create, TenantCreate))
        methods.add("tenant_set", Method("Change quotas and rules of eviction.", self.tenant_set, TenantSet))
        methods.add("tenant_set_access", Method("Who may attach.", self.tenant_set_access, TenantAccess))
        methods.add("tenant_add_credential", Method("One more.", self.tenant_add_credential, TenantCredential))
        methods.add("tenant_drop_credentials", Method("All of them.", self.tenant_drop_credentials, TenantName))
        methods.add("tenant_delete", Method("Delete a tenant.", self.tenant_delete, TenantDelete))
        methods.add("quarantine_list", Method("What was put aside.", self.quarantine_list, TenantName))
        methods.add("quarantine_restore", Method("Give it back.", self.quarantine_restore, QuarantineObject))
        methods.add("quarantine_purge", Method("Free what was unlinked.", self.quarantine_purge, TenantName))

    async def tenant_list(self, _: msgspec.Struct) -> list[dict[str, Any]]:
        """Every tenant, by name."""
        return [tenant_value(tenant) for tenant in self._pool.tenants.list()]

    async def tenant_show(self, params: TenantName) -> dict[str, Any]:
        """One tenant; NotFoundError."""
        return tenant_value(self._pool.tenants.show(params.name))

    async def tenant_create(self, params: TenantCreate) -> dict[str, Any]:
        """A new tenant; ExistsError, InvalidArgumentError."""
        created = self._pool.tenants.create(
            params.name,
            quota_bytes=params.quota_bytes,
            quota_objects=params.quota_objects,
            uid=params.uid,
            gid=params.gid,
        )
        await self._pool.sync()
        return tenant_value(created)

    async def tenant_set(self, params: TenantSet) -> dict[str, Any]:
        """New quotas and rules of eviction; NotFoundError, InvalidArgumentError."""
        asked = {name: getattr(params, name) for name in TenantChange.__slots__}
        changed = self._pool.tenants.change(params.name, TenantChange(**asked))
        await self._pool.sync()
        return tenant_value(changed)

    async def tenant_set_access(self, params: TenantAccess) -> dict[str, Any]:
        """New lists of users and groups; NotFoundError, InvalidArgumentError."""
        changed = self._pool.tenants.set_access(params.name, uids=params.uids, gids=params.gids)
        await self._pool.sync()
        return tenant_value(changed)

    async def tenant_add_credential(self, params: TenantCredential) -> dict[str, Any]:
        """One more mount credential; NotFoundError, InvalidArgumentError."""
        try:
            digest = bytes.fromhex(params.digest)
        except ValueError:
            raise InvalidArgumentError("the digest is not hexadecimal") from None
        changed = self._pool.tenants.add_credential(params.name, digest)
        await self._pool.sync()
        return tenant_value(changed)

    async def tenant_drop_credentials(self, params: TenantName) -> dict[str, Any]:
        """No credential opens the tenant any more; NotFoundError."""
        changed = self._pool.tenants.drop_credentials(params.name)
        await self._pool.sync()
        return tenant_value(changed)

    async def tenant_delete(self, params: TenantDelete) -> dict[str, Any]:
        """Delete; NotFoundError, NotEmptyError, NotPermittedError while it is mounted."""
        if self._attached(params.name):
            raise NotPermittedError(f"tenant {params.name} is mounted here; unmount it first")
        self._pool.tenants.delete(params.name, force=params.force)
        await self._pool.sync()
        return {}

    async def quarantine_list(self, params: TenantName) -> list[dict[str, Any]]:
        """What of a tenant was put aside, at most QUARANTINE_LISTED_MAX objects."""
        tenant = self._pool.tenants.show(params.name)
        rows = self._pool.catalog.quarantine.all(tenant.number, QUARANTINE_LISTED_MAX)
        return [self._quarantine_value(row) for row in rows]

    def _quarantine_value(self, row: QuarantineRow) -> dict[str, Any]:
        try:
            inode = self._pool.catalog.inodes.find(row.tenant, row.ino)
        except BadRecordError:
            inode = None
        name = ""
        if row.sealed_name:
            try:
                raw = self._pool.ring.names(row.tenant).open_name(row.parent, row.sealed_name)
                name = raw.decode("utf-8", "surrogateescape")
            except FormatError:
                name = "?"
        return {
            "ino": row.ino,
            "kind": "unlinked" if row.sealed_name else "hidden",
            "name": name,
            "parent": row.parent,
            "size": inode.size if inode is not None else 0,
            "reason": row.reason,
            "time_ns": row.time_ns,
        }

    async def quarantine_restore(self, params: QuarantineObject) -> dict[str, Any]:
        """Undo an unlink, or show a hidden object again; NotFoundError, ExistsError."""
        tenant = self._pool.tenants.show(params.name)
        row = self._quarantine.restore(tenant.number, params.ino)
        await self._pool.sync()
        return self._quarantine_value(row)

    async def quarantine_purge(self, params: TenantName) -> dict[str, Any]:
        """Free all unlinked objects of a tenant that were kept; hidden ones go when their names are stored anew."""
        tenant = self._pool.tenants.show(params.name)
        before = self._pool.catalog.tenants.get(tenant.number)
        while self._quarantine.make_room(tenant.number):
            await trio.lowlevel.checkpoint()
        after = self._pool.catalog.tenants.get(tenant.number)
        await self._pool.sync()
        return {
            "freed_objects": before.used_objects - after.used_objects,
            "freed_bytes": before.used_bytes - after.used_bytes,
        }

"""Tenants of an open pool: create, list, show, set, delete. Their names are sealed under the system's names key."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from kvfs import limits
from kvfs.errors import (
    ExistsError,
    FormatError,
    InvalidArgumentError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
)
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.retention_rows import TenantPolicy
from kvfsd.catalog.rows import AccessKind, AccessRow, InodeRow, TenantRow
from kvfsd.catalog.schema import TenantState
from kvfsd.crypto.keys import SYSTEM_TENANT, KeyRing
from kvfsd.pool.access import DIGEST_BYTES, Access
from kvfsd.ports import Clock

NAME: Final = re.compile(rb"[A-Za-z0-9._-]{1,%d}" % limits.TENANT_NAME_MAX_BYTES)
NAMES_PARENT: Final = 0
"""The directory number that tenants' names are sealed for; no directory has it."""
ROOT_MODE: Final = stat.S_IFDIR | 0o755
QUOTA_MAX: Final = 2**63 - 1
U32_END: Final = (1 << 32) - 1
"""uid and gid -1 stand for "none" (chown(2))."""
ACCESS_MAX: Final = 64
"""Users, groups and credentials of a tenant, each."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as people see it. Quotas of 0 mean no bound of its own; `created_ns` is nanoseconds since the epoch.

    `min_bytes`, watermarks and `eviction`: see `kvfsd.catalog.retention_rows.TenantPolicy`.
    """

    number: int
    name: str
    quota_bytes: int
    used_bytes: int
    quota_objects: int
    used_objects: int
    root_ino: int
    created_ns: int
    min_bytes: int
    high_percent: int
    low_percent: int
    eviction: bool
    layout_guard: bool
    uids: tuple[int, ...] = ()
    """Users and groups of this machine that may attach to it through a daemon."""
    gids: tuple[int, ...] = ()
    credentials: int = 0
    """How many mount credentials open it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantChange:
    """What `TenantRegistry.set` changes; None leaves it as it is. Quotas and minimum in bytes and objects."""

    quota_bytes: int | None = None
    quota_objects: int | None = None
    min_bytes: int | None = None
    high_percent: int | None = None
    low_percent: int | None = None
    eviction: bool | None = None
    layout_guard: bool | None = None


class TenantRegistry:
    """The tenants of one open pool. Every change is one transaction of the catalog."""

    def __init__(self, catalog: Catalog, ring: KeyRing, clock: Clock, *, read_only: bool = False) -> None:
        self._catalog = catalog
        self._ring = ring
        self._clock = clock
        self._read_only = read_only

    def create(self, name: str, *, quota_bytes: int = 0, quota_objects: int = 0, uid: int = 0, gid: int = 0) -> Tenant:
        """A new tenant with keys of its own and an empty root directory (mode 0755) of `uid` and `gid`.

        Raises:
            InvalidArgumentError: the name is not 1 to 64 of A-Z a-z 0-9 . _ -, a number is out of range, or the pool
                has `limits.TENANTS_MAX` tenants.
            ExistsError: the name is taken.
        """
        self._check_writable()
        sealed = self._seal(name)
        _check_quota(quota_bytes, quota_objects)
        if not (0 <= uid < 1 << 32 and 0 <= gid < 1 << 32):
            raise InvalidArgumentError(f"tenant {name}: uid {uid}, gid {gid}: out of range")
        if self._find(sealed) is not None:
            raise ExistsError(f"tenant {name} exists already")
        database, now_ns, number = self._catalog.database, self._clock.wall_ns(), None
        try:
            with self._catalog.transaction():
                number = self._catalog.tenants.next_number()
                ino = database.next_ino()
                root = InodeRow(
                    ino, ROOT_MODE, 2, uid, gid, 0, 0, 0, now_ns, now_ns, now_ns, database.next_generation(), ino
                )
                state = TenantState.ACTIVE
                row = TenantRow(number, sealed, quota_bytes, quota_objects, 0, 0, ino, state, now_ns)
                self._catalog.tenants.create(row, self._ring.create_tenant(number), root)
        except BaseException:
            if number is not None:
                self._ring.forget_tenant(number)
            raise
        return self._shown(row)

    def list(self) -> Sequence[Tenant]:
        """All tenants, by name. A name that does not open is shown as its number (`#7`), and is damage."""
        return sorted((self._shown(row) for row in self._active()), key=lambda tenant: tenant.name)

    def show(self, name: str) -> Tenant:
        """One tenant; NotFoundError."""
        return self._shown(self._get(name))

    def name_of(self, number: int) -> str:
        """The name of tenant `number`; NotFoundError."""
        for row in self._active():
            if row.tenant == number:
                return self._shown(row).name
        raise NotFoundError(f"no tenant {number} in this pool")

    def access(self, name: str) -> Access | None:
        """Who may attach to the tenant; None if there is no such tenant, whatever is wrong with its name."""
        try:
            row = self._get(name)
        except (NotFoundError, InvalidArgumentError):
            return None
        return _access(self._catalog.tenants.access(row.tenant))

    def set_access(self, name: str, *, uids: Sequence[int] | None = None, gids: Sequence[int] | None = None) -> Tenant:
        """New lists of users and groups that may attach; None leaves one as it is.

        Raises NotFoundError, InvalidArgumentError.
        """
        self._check_writable()
        row = self._get(name)
        for what, numbers in (("uids", uids or ()), ("gids", gids or ())):
            if len(numbers) > ACCESS_MAX or not all(0 <= number < U32_END for number in numbers):
                raise InvalidArgumentError(f"tenant {name}: {what}: want at most {ACCESS_MAX} of 0 to 2^32-2")
        with self._catalog.transaction():
            for kind, given in ((AccessKind.UID, uids), (AccessKind.GID, gids)):
                if given is not None:
                    values = [number.to_bytes(4, "little") for number in given]
                    self._catalog.tenants.set_access(row.tenant, kind, values)
        return self.show(name)

    def add_credential(self, name: str, digest: bytes) -> Tenant:
        """One more mount credential, of which only the digest is kept. NotFoundError, InvalidArgumentError."""
        self._check_writable()
        row = self._get(name)
        if len(digest) != DIGEST_BYTES or self._shown(row).credentials >= ACCESS_MAX:
            raise InvalidArgumentError(f"tenant {name}: no digest, or it has {ACCESS_MAX} credentials")
        with self._catalog.transaction():
            self._catalog.tenants.add_access(row.tenant, [AccessRow(AccessKind.CREDENTIAL, digest)])
        return self.show(name)

    def drop_credentials(self, name: str) -> Tenant:
        """No mount credential opens the tenant any more; mounts that are attached stay. NotFoundError."""
        self._check_writable()
        row = self._get(name)
        with self._catalog.transaction():
            self._catalog.tenants.set_access(row.tenant, AccessKind.CREDENTIAL, ())
        return self.show(name)

    def set(self, name: str, *, quota_bytes: int | None = None, quota_objects: int | None = None) -> Tenant:
        """New hard quotas, None leaves one as it is; see `change`."""
        return self.change(name, TenantChange(quota_bytes=quota_bytes, quota_objects=quota_objects))

    def change(self, name: str, change: TenantChange) -> Tenant:
        """New quotas and rules of eviction. Use above a new quota stays until it is evicted, growth makes room first.

        Raises NotFoundError, and InvalidArgumentError if a quota, a watermark or the minimum is out of bounds.
        """
        self._check_writable()
        row = self._get(name)
        new_bytes = row.quota_bytes if change.quota_bytes is None else change.quota_bytes
        new_objects = row.quota_objects if change.quota_objects is None else change.quota_objects
        _check_quota(new_bytes, new_objects)
        before = self._catalog.retention.policy(row.tenant)
        policy = _changed_policy(before, change)
        policy.check()
        if policy.min_bytes and new_bytes and policy.min_bytes > new_bytes:
            raise InvalidArgumentError(
                f"tenant {name}: a guaranteed minimum of {policy.min_bytes} bytes is over its quota of {new_bytes}"
            )
        with self._catalog.transaction():
            self._catalog.tenants.set_quota(row.tenant, new_bytes, new_objects)
            if policy != before:
                self._catalog.retention.set_policy(row.tenant, policy)
        return self.show(name)

    def delete(self, name: str, *, force: bool = False) -> None:
        """Delete a tenant: from here on it is not found, its keys are gone from memory and catalog.

        Its space is freed afterwards, batch by batch (`catalog.purge`). The caller sees to it that it is not attached.
        Older copies of the state directory still hold its wrapped keys: `shred` is what makes those useless too.

        Raises:
            NotFoundError: no such tenant.
            NotEmptyError: it has objects, and not `force`.
        """
        self._check_writable()
        row = self._get(name)
        if row.used_objects and not force:
            raise NotEmptyError(f"tenant {name} has {row.used_objects} objects; delete them first, or force it")
        with self._catalog.transaction():
            self._catalog.tenants.begin_delete(row.tenant)
        self._ring.forget_tenant(row.tenant)

    def _active(self) -> Iterator[TenantRow]:
        return (row for row in self._catalog.tenants.all() if row.state == TenantState.ACTIVE)

    def _find(self, sealed: bytes) -> TenantRow | None:
        return next((row for row in self._active() if row.sealed_name == sealed), None)

    def _get(self, name: str) -> TenantRow:
        row = self._find(self._seal(name))
        if row is None:
            raise NotFoundError(f"no tenant {name} in this pool")
        return row

    def _seal(self, name: str) -> bytes:
        raw = name.encode("utf-8", "surrogateescape")
        if not NAME.fullmatch(raw) or raw in (b".", b".."):
            raise InvalidArgumentError(
                f"tenant name {name!r}: want 1 to {limits.TENANT_NAME_MAX_BYTES} of A-Z a-z 0-9 . _ -"
            )
        return self._ring.names(SYSTEM_TENANT).seal_name(NAMES_PARENT, raw)

    def _shown(self, row: TenantRow) -> Tenant:
        try:
            name = self._ring.names(SYSTEM_TENANT).open_name(NAMES_PARENT, row.sealed_name).decode("ascii", "replace")
        except FormatError:
            name = f"#{row.tenant}"
        policy = self._catalog.retention.policy(row.tenant)
        access = _access(self._catalog.tenants.access(row.tenant))
        return Tenant(
            number=row.tenant,
            name=name,
            quota_bytes=row.quota_bytes,
            used_bytes=row.used_bytes,
            quota_objects=row.quota_objects,
            used_objects=row.used_objects,
            root_ino=row.root_ino,
            created_ns=row.created_ns,
            min_bytes=policy.min_bytes,
            high_percent=policy.high_percent,
            low_percent=policy.low_percent,
            eviction=bool(policy.eviction),
            layout_guard=bool(policy.layout_guard),
            uids=tuple(sorted(access.uids)),
            gids=tuple(sorted(access.gids)),
            credentials=len(access.credential_digests),
        )

    def _check_writable(self) -> None:
        if self._read_only:
            raise NotPermittedError("the pool is open read-only")


def _changed_policy(before: TenantPolicy, change: TenantChange) -> TenantPolicy:
    asked = {name: getattr(change, name) for name in TenantPolicy._fields}
    return before._replace(**{name: int(value) for name, value in asked.items() if value is not None})


def _access(rows: Sequence[AccessRow]) -> Access:
    def of(kind: AccessKind) -> list[bytes]:
        return [row.value for row in rows if row.kind == kind]

    return Access(
        uids=frozenset(int.from_bytes(value, "little") for value in of(AccessKind.UID)),
        gids=frozenset(int.from_bytes(value, "little") for value in of(AccessKind.GID)),
        credential_digests=frozenset(of(AccessKind.CREDENTIAL)),
    )


def _check_quota(quota_bytes: int, quota_objects: int) -> None:
    if not (0 <= quota_bytes <= QUOTA_MAX and 0 <= quota_objects <= QUOTA_MAX):
        raise InvalidArgumentError(f"quota of {quota_bytes} bytes, {quota_objects} objects: want 0 (none) to 2^63-1")

"""Who may go: objects in order of use, what has expired, pins, removal with all names; tenants' policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kvfs import limits
from kvfs.errors import InvalidArgumentError, NotFoundError
from kvfsd.catalog import retention_flags
from kvfsd.catalog.database import Database
from kvfsd.catalog.inodes import Inodes
from kvfsd.catalog.namespace import Namespace
from kvfsd.catalog.rows import INODE_QUARANTINED, Entry
from kvfsd.catalog.tenants import Tenants

NAMES_MAX: Final = 64
"""An object with more names than this is not evicted: all its names go in one transaction (`inode_use` knows it)."""

_USE: Final = "max(atime_ns, ctime_ns)"
_PRIORITY: Final = "((flags >> 8) + 128) & 255"
_KEPT: Final = f"flags & {INODE_QUARANTINED | retention_flags.PINNED}"
_REGULAR: Final = "(mode & 0xF000) = 0x8000"
_OLDEST: Final = (
    f"SELECT ino, stored_bytes, {_USE}, ({_PRIORITY}) - 128 FROM inode"
    f" WHERE tenant=? AND {_REGULAR} AND nlink BETWEEN 1 AND {NAMES_MAX} AND ({_KEPT}) = 0"
    f" ORDER BY {_PRIORITY}, {_USE} LIMIT ?"
)
_EXPIRES: Final = (
    f"{_REGULAR} AND nlink > 0 AND (flags & {INODE_QUARANTINED}) = 0 AND flags >= {retention_flags.EXPIRES}"
)
_EXPIRED: Final = f"SELECT tenant, ino FROM inode WHERE {_EXPIRES} AND flags >> 16 <= ? ORDER BY flags >> 16 LIMIT ?"


class UseRow(NamedTuple):
    """An object that may be evicted, as the index has it: `use_ns` is its last access or change."""

    ino: int
    size_bytes: int
    use_ns: int
    priority: int


class RemovedEntry(NamedTuple):
    """A name that is gone, and what its directory's sum over names changes by."""

    entry: Entry
    members_delta: int


class TenantPolicy(NamedTuple):
    """What a tenant is guaranteed, and whether and when its own objects make room.

    `min_bytes`: others' needs do not bring it below. `high_percent`, `low_percent`: of its quota, see
    `kvfsd.eviction.policy.Watermarks`. `eviction` 0: nothing of it is ever evicted. `layout_guard` 0: blocks stay
    whatever the config.json beside them becomes (`kvfsd.service.layout_guard`).
    """

    min_bytes: int = 0
    high_percent: int = limits.TENANT_HIGH_PERCENT
    low_percent: int = limits.TENANT_LOW_PERCENT
    eviction: int = 1
    layout_guard: int = 1

    @classmethod
    def of(cls, numbers: Sequence[int]) -> TenantPolicy:
        """As system records have it: numbers in order, later versions may have more."""
        known = cls(*numbers[: len(cls._fields)])
        known.check()
        return known

    def check(self) -> None:
        """InvalidArgumentError naming what is out of bounds."""
        if not 0 <= self.min_bytes < 1 << 63:
            raise InvalidArgumentError(f"guaranteed minimum of {self.min_bytes} bytes is not 0 .. 2^63-1")
        if not 0 < self.low_percent <= self.high_percent <= 100:
            raise InvalidArgumentError(
                f"watermarks {self.low_percent} and {self.high_percent} percent: want 0 < low <= high <= 100"
            )
        if self.eviction not in (0, 1) or self.layout_guard not in (0, 1):
            raise InvalidArgumentError(f"eviction {self.eviction}, layout guard {self.layout_guard}: want 0 or 1")


class RetentionRows:
    """Queries and changes of eviction, in the caller's transaction where something changes."""

    def __init__(self, database: Database, tenants: Tenants, inodes: Inodes, namespace: Namespace) -> None:
        self._database = database
        self._tenants = tenants
        self._inodes = inodes
        self._namespace = namespace

    # --- order of use ----------------------------------------------------------------------------------

    def oldest(self, tenant: int, limit: int) -> list[UseRow]:
        """Up to `limit` objects that may go, lowest priority and oldest use first; about 1 us each."""
        return [UseRow._make(row) for row in self._database.all(_OLDEST, (tenant, limit))]

    def expired(self, now_s: int, limit: int) -> list[tuple[int, int]]:
        """Up to `limit` (tenant, ino) of objects whose time is over, pinned ones too, the longest over first."""
        return [(row[0], row[1]) for row in self._database.all(_EXPIRED, (now_s, limit))]

    def pinned_use(self, tenant: int) -> tuple[int, int]:
        """Bytes and objects that are pinned; the cost grows with their number."""
        row = self._database.one(
            "SELECT coalesce(sum(stored_bytes), 0), count(*) FROM inode"
            f" WHERE tenant=? AND {_REGULAR} AND (flags & {retention_flags.PINNED}) = {retention_flags.PINNED}",
            (tenant,),
        )
        return (row[0], row[1]) if row else (0, 0)

    def has_directory_settings(self, tenant: int) -> bool:
        """Whether any directory of the tenant says how long new objects are kept."""
        settings = retention_flags.PIN_SET | retention_flags.PRIORITY_SET | retention_flags.TTL_SET
        return bool(self.directories_with(tenant, settings, 1))

    def directories_with(self, tenant: int, bits: int, limit: int = -1) -> list[int]:
        """Directories of the tenant with any of the flags."""
        rows = self._database.all(
            "SELECT ino FROM inode WHERE tenant=? AND (mode & 0xF000) = 0x4000 AND flags > 1 AND (flags & ?) <> 0"
            " LIMIT ?",
            (tenant, bits, limit),
        )
        return [row[0] for row in rows]

    # --- removal ---------------------------------------------------------------------------------------

    def names(self, tenant: int, ino: int, limit: int = NAMES_MAX) -> list[Entry]:
        """Names of an object, at most `limit`; a damaged one that claims to be the object's is none."""
        rows = self._database.all(
            "SELECT parent, sealed_name, mac FROM dirent WHERE ino=? AND tenant=? LIMIT ?", (ino, tenant, limit)
        )
        check = self._database.macs.of(tenant).entry
        return [Entry(tenant, parent, name) for parent, name, mac in rows if check(parent, name, ino) == mac]

    def remove(self, tenant: int, ino: int, now_ns: int, keep_for: Sequence[int] = ()) -> list[RemovedEntry]:
        """Take all names of an object that is no directory, and its data with them -> the names.

        `keep_for`: attachments that have it open; the data then stays, charged, until the last of them has closed it.
        The caller touches the directories (`touch`). NotFoundError, BadRecordError.
        """
        row = self._inodes.find(tenant, ino)
        if row is None:
            raise NotFoundError(f"no object {ino}")
        names = self.names(tenant, ino, row.nlink)
        entries = [RemovedEntry(entry, self._namespace.drop_entry(entry, ino)) for entry in names]
        keeper = keep_for[0] if keep_for else None
        self._inodes.lose_name(tenant, row._replace(nlink=1), now_ns, keeper)
        for attachment in keep_for[1:]:
            self._database.run("INSERT OR IGNORE INTO open_unlinked VALUES(?,?,?)", (tenant, ino, attachment))
        return entries

    def touch(self, entries: Iterable[RemovedEntry], now_ns: int) -> None:
        """Names went from these directories: their times change, once each. A damaged directory stays as it is."""
        members: dict[tuple[int, int], int] = {}
        for entry, delta in entries:
            key = (entry.tenant, entry.parent)
            members[key] = members.get(key, 0) + delta
        for (tenant, parent), delta in members.items():
            row = self._inodes.find_sound(tenant, parent)
            if row is not None:
                self._inodes.touch(tenant, row, now_ns, delta)

    # --- tenants' policies -----------------------------------------------------------------------------

    def policy(self, tenant: int) -> TenantPolicy:
        """The tenant's, or the default."""
        row = self._database.one(
            "SELECT min_bytes, high_percent, low_percent, eviction, layout_guard FROM tenant_policy WHERE tenant=?",
            (tenant,),
        )
        return TenantPolicy._make(row) if row else TenantPolicy()

    def set_policy(self, tenant: int, policy: TenantPolicy) -> None:
        """Another policy; InvalidArgumentError. It reaches the media with the tenant's quota (system records)."""
        policy.check()
        with self._tenants.changing_members(tenant):
            self._database.run("INSERT OR REPLACE INTO tenant_policy VALUES(?,?,?,?,?,?)", (tenant, *policy))

"""Keyed checks of catalog rows: a row that was changed, moved to another key or made up does not verify. Pure.

A check is 8 bytes of BLAKE2b, keyed with the tenant's row key (`crypto.kdf.rows_key`) and personalised by table, over
the row as a msgpack array. Rows of tenants themselves are checked with the system's key. Which rows belong to an object
is checked by sums of such checks, modulo 2^64: a file has the sum over its blocks, a directory that over its names.
docs/adr/0004-rows.md has the reasons; `tests/kvfsd/catalog/test_rowmacs.py` fixed values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec
import xxhash

from kvfs.errors import InternalError

CHECK_BYTES: Final = 8
SYSTEM_TENANT: Final = 0

RowKeys: TypeAlias = Callable[[int], bytes]
"""The row key of a tenant, 0 for the system; WrongKeyError if it is not here."""

_HALF: Final = 1 << 63
_MASK: Final = (1 << 64) - 1
_encode = msgspec.msgpack.Encoder().encode


def total(*checks: int) -> int:
    """Sum of checks and of such sums, modulo 2^64, as a signed number like each of them."""
    return ((sum(checks) + _HALF) & _MASK) - _HALF


class TenantMacs:
    """Checks of one tenant's rows: signed 64-bit numbers, as SQLite keeps them."""

    __slots__ = ("_block", "_entry", "_inode", "_tenant", "_xattr")

    def __init__(self, key: bytes) -> None:
        def keyed(table: bytes) -> Any:
            return hashlib.blake2b(key=key, digest_size=CHECK_BYTES, person=table)

        self._inode, self._entry, self._block = keyed(b"inode"), keyed(b"dirent"), keyed(b"block")
        self._xattr, self._tenant = keyed(b"xattr"), keyed(b"tenant")

    def inode(self, row: Sequence[Any]) -> int:
        """Check of an object's row, the fields of `rows.InodeRow`."""
        state = self._inode.copy()
        state.update(_encode(row))
        return int.from_bytes(state.digest(), "little", signed=True)

    def entry(self, parent: int, name: bytes, ino: int) -> int:
        """Check of a sealed name in a directory that stands for an object."""
        state = self._entry.copy()
        state.update(_encode((parent, name, ino)))
        return int.from_bytes(state.digest(), "little", signed=True)

    def block(self, ino: int, row: Sequence[Any]) -> int:
        """Check of a committed block: (block, generation, length, epoch, tag), whatever follows.

        Where its replicas lie is not in it: a record in the wrong place does not open, and space is collected without
        keys.
        """
        state = self._block.copy()
        state.update(_encode((ino, *row[:5])))
        return int.from_bytes(state.digest(), "little", signed=True)

    def xattr(self, ino: int, name: bytes, value: bytes) -> int:
        """Check of an extended attribute, sealed."""
        state = self._xattr.copy()
        state.update(_encode((ino, name, value)))
        return int.from_bytes(state.digest(), "little", signed=True)

    def tenant(self, row: Sequence[Any]) -> int:
        """Check of anything about a tenant (only the system's key makes these)."""
        state = self._tenant.copy()
        state.update(_encode(row))
        return int.from_bytes(state.digest(), "little", signed=True)


class RowMacs:
    """The checks of all tenants of an open catalog; nothing that is checked can be read before `unlock`."""

    def __init__(self) -> None:
        self._keys: RowKeys | None = None
        self._tenants: dict[int, TenantMacs] = {}

    def unlock(self, keys: RowKeys) -> None:
        """Take row keys from `keys` when they are needed."""
        self._keys = keys
        self._tenants.clear()

    def of(self, tenant: int) -> TenantMacs:
        """The tenant's checks; what `RowKeys` raises, InternalError before `unlock`."""
        try:
            return self._tenants[tenant]
        except KeyError:
            if self._keys is None:
                raise InternalError("catalog: rows are read before its keys are there") from None
        made = self._tenants[tenant] = TenantMacs(self._keys(tenant))
        return made

    @property
    def system(self) -> TenantMacs:
        """The checks of tenants' own rows."""
        return self.of(SYSTEM_TENANT)

    def forget(self, tenant: int) -> None:
        """Drop a tenant's key."""
        self._tenants.pop(tenant, None)


def plain_check(key: str, value: object) -> int:
    """Check of a row that is read before any key is there: finds rot, not attackers."""
    digest: int = xxhash.xxh3_64_intdigest(_encode((key, value)))
    return total(digest)

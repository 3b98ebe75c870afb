"""Extended attributes, names and values sealed (`NameSealer.seal_value`), in the caller's transaction."""

from __future__ import annotations

from typing import Final

from kvfs import limits
from kvfs.errors import ExistsError, InvalidArgumentError, NoXattrError, XattrTooLargeError
from kvfsd.catalog.database import Database
from kvfsd.catalog.inodes import AttributeChange, Inodes
from kvfsd.ondisk.metalog import DropXattr, PutXattr

CREATE_ONLY: Final = 1
REPLACE_ONLY: Final = 2
"""Flags of setxattr(2)."""
SEALING_SLACK_BYTES: Final = 64
"""A sealed name or value is at most this much longer than the plain one."""


class Xattrs:
    """Extended attributes of objects."""

    def __init__(self, database: Database, inodes: Inodes) -> None:
        self._database = database
        self._inodes = inodes

    def get(self, tenant: int, ino: int, name: bytes) -> bytes:
        """The sealed value; NoXattrError, NotFoundError."""
        row = self._database.one(
            "SELECT sealed_value FROM xattr WHERE tenant=? AND ino=? AND sealed_name=?", (tenant, ino, name)
        )
        if row is None:
            self._inodes.get(tenant, ino)
            raise NoXattrError(f"object {ino} has no such attribute")
        value: bytes = row[0]
        return value

    def names(self, tenant: int, ino: int) -> list[bytes]:
        """All sealed names (bounded by `limits.XATTRS_PER_OBJECT_MAX_BYTES`); NotFoundError."""
        self._inodes.get(tenant, ino)
        rows = self._database.all("SELECT sealed_name FROM xattr WHERE tenant=? AND ino=?", (tenant, ino))
        return [row[0] for row in rows]

    def set(self, tenant: int, ino: int, attribute: tuple[bytes, bytes], flags: int, now_ns: int) -> None:
        """Set (sealed name, sealed value); `flags` 0, CREATE_ONLY (ExistsError) or REPLACE_ONLY (NoXattrError).

        XattrTooLargeError, NotFoundError.
        """
        name, value = attribute
        if flags not in (0, CREATE_ONLY, REPLACE_ONLY):
            raise InvalidArgumentError(f"setxattr: flags {flags:#x}")
        known = self._exists(tenant, ino, name)
        if flags == CREATE_ONLY and known:
            raise ExistsError(f"object {ino} has that attribute")
        if flags == REPLACE_ONLY and not known:
            raise NoXattrError(f"object {ino} has no such attribute")
        self._inodes.set_attributes(tenant, ino, AttributeChange(ctime_ns=now_ns))
        self.put(tenant, ino, name, value)

    def put(self, tenant: int, ino: int, name: bytes, value: bytes) -> None:
        """Write the row; XattrTooLargeError if value or all attributes together are over their limits."""
        self._database.require_transaction()
        if len(value) > limits.XATTR_VALUE_MAX_BYTES + SEALING_SLACK_BYTES:
            raise XattrTooLargeError(f"attribute of {len(value)} sealed bytes")
        self._database.run("INSERT OR REPLACE INTO xattr VALUES(?,?,?,?)", (tenant, ino, name, value))
        total = self._database.one(
            "SELECT sum(length(sealed_name)+length(sealed_value)) FROM xattr WHERE tenant=? AND ino=?", (tenant, ino)
        )
        if total and total[0] > limits.XATTRS_PER_OBJECT_MAX_BYTES:
            raise XattrTooLargeError(f"object {ino}: {total[0]} sealed bytes of attributes")
        self._database.log(tenant, PutXattr(ino, name, value))

    def remove(self, tenant: int, ino: int, name: bytes, now_ns: int) -> None:
        """Remove one; NoXattrError, NotFoundError."""
        self._inodes.set_attributes(tenant, ino, AttributeChange(ctime_ns=now_ns))
        if not self._exists(tenant, ino, name):
            raise NoXattrError(f"object {ino} has no such attribute")
        self._database.run("DELETE FROM xattr WHERE tenant=? AND ino=? AND sealed_name=?", (tenant, ino, name))
        self._database.log(tenant, DropXattr(ino, name))

    def _exists(self, tenant: int, ino: int, name: bytes) -> bool:
        key = (tenant, ino, name)
        return self._database.one("SELECT 1 FROM xattr WHERE tenant=? AND ino=? AND sealed_name=?", key) is not None

"""Extended attributes, names and values sealed (`NameSealer.seal_value`), in the caller's transaction."""

from __future__ import annotations

from typing import Final

from kvfs import limits
from kvfs.errors import ExistsError, InvalidArgumentError, NoXattrError, XattrTooLargeError
from kvfsd.catalog.database import Database
from kvfsd.catalog.inodes import AttributeChange, Inodes
from kvfsd.catalog.rowmacs import total
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
        """The sealed value; NoXattrError, NotFoundError; BadRecordError if one of the object's attributes is lost."""
        row = self._database.one(
            "SELECT sealed_value FROM xattr WHERE tenant=? AND ino=? AND sealed_name=?", (tenant, ino, name)
        )
        if row is None:
            self.names(tenant, ino)
            raise NoXattrError(f"object {ino} has no such attribute")
        value: bytes = row[0]
        return value

    def names(self, tenant: int, ino: int) -> list[bytes]:
        """All sealed names (bounded by `limits.XATTRS_PER_OBJECT_MAX_BYTES`); NotFoundError, BadRecordError."""
        inode = self._inodes.get(tenant, ino)
        rows = self._database.all("SELECT sealed_name, sealed_value FROM xattr WHERE tenant=? AND ino=?", (tenant, ino))
        check = self._database.macs.of(tenant).xattr
        if total(*[check(ino, *row) for row in rows]) != inode.xattrs:
            text = f"extended attributes of object {ino} are lost or damaged"
            raise self._database.damage.note("xattr", tenant, ino, text)
        return [row[0] for row in rows]

    def set(self, tenant: int, ino: int, attribute: tuple[bytes, bytes], flags: int, now_ns: int) -> None:
        """Set (sealed name, sealed value); `flags` 0, CREATE_ONLY (ExistsError) or REPLACE_ONLY (NoXattrError).

        XattrTooLargeError, NotFoundError.
        """
        name, value = attribute
        if flags not in (0, CREATE_ONLY, REPLACE_ONLY):
            raise InvalidArgumentError(f"setxattr: flags {flags:#x}")
        known = self._value(tenant, ino, name) is not None
        if flags == CREATE_ONLY and known:
            raise ExistsError(f"object {ino} has that attribute")
        if flags == REPLACE_ONLY and not known:
            raise NoXattrError(f"object {ino} has no such attribute")
        self._inodes.set_attributes(tenant, ino, AttributeChange(ctime_ns=now_ns))
        self.put(tenant, ino, name, value)

    def put(self, tenant: int, ino: int, name: bytes, value: bytes) -> None:
        """Write the row, and count it in the object's; XattrTooLargeError if value or all together are over limits."""
        self._database.require_transaction()
        if len(value) > limits.XATTR_VALUE_MAX_BYTES + SEALING_SLACK_BYTES:
            raise XattrTooLargeError(f"attribute of {len(value)} sealed bytes")
        replaced = self._check(tenant, ino, name)
        self._database.run("INSERT OR REPLACE INTO xattr VALUES(?,?,?,?)", (tenant, ino, name, value))
        total_bytes = self._database.one(
            "SELECT sum(length(sealed_name)+length(sealed_value)) FROM xattr WHERE tenant=? AND ino=?", (tenant, ino)
        )
        if total_bytes and total_bytes[0] > limits.XATTRS_PER_OBJECT_MAX_BYTES:
            raise XattrTooLargeError(f"object {ino}: {total_bytes[0]} sealed bytes of attributes")
        added = self._database.macs.of(tenant).xattr(ino, name, value)
        self._inodes.adjust(tenant, ino, xattrs_delta=added - replaced)
        self._database.log(tenant, PutXattr(ino, name, value))

    def remove(self, tenant: int, ino: int, name: bytes, now_ns: int) -> None:
        """Remove one; NoXattrError, NotFoundError."""
        self._inodes.set_attributes(tenant, ino, AttributeChange(ctime_ns=now_ns))
        if self._value(tenant, ino, name) is None:
            raise NoXattrError(f"object {ino} has no such attribute")
        self._inodes.adjust(tenant, ino, xattrs_delta=-self._check(tenant, ino, name))
        self._database.run("DELETE FROM xattr WHERE tenant=? AND ino=? AND sealed_name=?", (tenant, ino, name))
        self._database.log(tenant, DropXattr(ino, name))

    def _value(self, tenant: int, ino: int, name: bytes) -> bytes | None:
        key = (tenant, ino, name)
        row = self._database.one("SELECT sealed_value FROM xattr WHERE tenant=? AND ino=? AND sealed_name=?", key)
        return row[0] if row else None

    def _check(self, tenant: int, ino: int, name: bytes) -> int:
        """Check of the attribute as it is, 0 if there is none."""
        value = self._value(tenant, ino, name)
        return 0 if value is None else self._database.macs.of(tenant).xattr(ino, name, value)

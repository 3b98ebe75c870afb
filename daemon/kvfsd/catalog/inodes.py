"""Rows of objects, and what becomes of an object that loses a name."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

from kvfs.errors import NotDirectoryError, NotFoundError
from kvfsd.catalog.blocks import BLOCKS_MAX, Blocks
from kvfsd.catalog.database import Database
from kvfsd.catalog.doomed import Doomed
from kvfsd.catalog.rows import INODE_QUARANTINED, InodeRow, RemovedName
from kvfsd.catalog.schema import LISTING_COLUMNS
from kvfsd.catalog.tenants import Tenants
from kvfsd.ondisk.metalog import DropInode, PutBlock, PutInode, PutXattr, TouchInode

_SELECT: Final = f"SELECT {LISTING_COLUMNS} FROM inode i WHERE i.ino=? AND i.tenant=?"
_INSERT: Final = "INSERT INTO inode VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_UPDATE: Final = (
    "UPDATE inode SET mode=?, nlink=?, uid=?, gid=?, rdev=?, size=?, stored_bytes=?, atime_ns=?, mtime_ns=?,"
    " ctime_ns=?, generation=?, parent=?, flags=?, target=? WHERE ino=? AND tenant=?"
)
PERMISSION_BITS: Final = 0o7777


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeChange:
    """New attributes; None leaves one as it is. `mode` changes permission bits only."""

    ctime_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Inodes:
    """Objects by number. Another tenant's numbers are simply not found."""

    def __init__(self, database: Database, blocks: Blocks, tenants: Tenants, doomed: Doomed) -> None:
        self._database = database
        self._blocks = blocks
        self._tenants = tenants
        self._doomed = doomed

    def find(self, tenant: int, ino: int) -> InodeRow | None:
        """The object's row, hidden and unlinked ones too."""
        row = self._database.one(_SELECT, (ino, tenant))
        return InodeRow._make(row) if row else None

    def get(self, tenant: int, ino: int) -> InodeRow:
        """The object's row; NotFoundError if there is none, or if it is quarantined."""
        row = self._database.one(_SELECT, (ino, tenant))
        if row is None or row[13] & INODE_QUARANTINED:
            raise NotFoundError(f"no object {ino}")
        return InodeRow._make(row)

    def directory(self, tenant: int, ino: int) -> InodeRow:
        """The row of a directory that exists; NotFoundError, NotDirectoryError."""
        row = self.get(tenant, ino)
        if not stat.S_ISDIR(row.mode):
            raise NotDirectoryError(f"object {ino} is no directory")
        return row

    # --- changes (inside a transaction) ----------------------------------------------------------------

    def insert(self, tenant: int, row: InodeRow) -> None:
        """Add an object and charge it; QuotaExceededError."""
        self._database.require_transaction()
        self._tenants.charge(tenant, row.stored_bytes, 1)
        self._database.run(_INSERT, (row.ino, tenant, *row[1:]))
        self._database.log(tenant, PutInode(*row))

    def update(self, tenant: int, row: InodeRow, charged_delta_bytes: int = 0) -> None:
        """Write a changed row back; `charged_delta_bytes` is by how much its stored bytes changed."""
        self._database.require_transaction()
        if charged_delta_bytes:
            self._tenants.charge(tenant, charged_delta_bytes, 0)
        self._database.run(_UPDATE, (*row[1:], row.ino, tenant))
        if row.nlink:  # what has no name is not rebuilt
            self._database.log(tenant, PutInode(*row))

    def touch(self, tenant: int, row: InodeRow, now_ns: int, nlink_delta: int = 0) -> None:
        """A directory's content changed: new mtime and ctime, and link count when subdirectories come or go."""
        nlink = row.nlink + nlink_delta
        self._database.run(
            "UPDATE inode SET nlink=?, mtime_ns=?, ctime_ns=? WHERE ino=?", (nlink, now_ns, now_ns, row.ino)
        )
        self._database.log(tenant, TouchInode(row.ino, nlink, now_ns, now_ns))

    def set_attributes(self, tenant: int, ino: int, change: AttributeChange) -> InodeRow:
        """Change attributes -> the new row; NotFoundError."""
        row = self.get(tenant, ino)
        mode = row.mode
        if change.mode is not None:
            mode = mode & ~PERMISSION_BITS | change.mode & PERMISSION_BITS
        row = row._replace(
            mode=mode,
            uid=row.uid if change.uid is None else change.uid,
            gid=row.gid if change.gid is None else change.gid,
            atime_ns=row.atime_ns if change.atime_ns is None else change.atime_ns,
            mtime_ns=row.mtime_ns if change.mtime_ns is None else change.mtime_ns,
            ctime_ns=change.ctime_ns,
        )
        self.update(tenant, row)
        return row

    def note_access(self, tenant: int, ino: int, atime_ns: int) -> None:
        """Move an access time forward. Not in the metadata log: a rebuild knows access times of the last change."""
        self._database.require_transaction()
        self._database.run(
            "UPDATE inode SET atime_ns=max(atime_ns, ?) WHERE ino=? AND tenant=?", (atime_ns, ino, tenant)
        )

    def restore(self, tenant: int, row: InodeRow) -> None:
        """A nameless object gets a name again: its row, attributes and blocks go to the metadata log once more."""
        self.update(tenant, row)
        for name, value in self._database.all(
            "SELECT sealed_name, sealed_value FROM xattr WHERE tenant=? AND ino=?", (tenant, row.ino)
        ):
            self._database.log(tenant, PutXattr(row.ino, name, value))
        for block in self._blocks.locate_range(tenant, row.ino, 0, BLOCKS_MAX):
            self._database.log(tenant, PutBlock(row.ino, *block[:5]))

    # --- end of life -----------------------------------------------------------------------------------

    def lose_name(self, tenant: int, row: InodeRow, now_ns: int, keep_for: int | None) -> RemovedName:
        """One name of a non-directory is gone. With the last one the object goes, its data and charge with it.

        `keep_for` is the attachment that still has it open: the object then stays, nameless and charged, until
        `release_unlinked`.
        """
        nlink = row.nlink - 1
        if nlink > 0:
            self._set_nlink(tenant, row, nlink, now_ns)
            self._database.log(tenant, TouchInode(row.ino, nlink, row.mtime_ns, now_ns))
        elif keep_for is None:
            self.destroy(tenant, row)
        else:
            self._set_nlink(tenant, row, 0, now_ns)
            self._database.log(tenant, DropInode(row.ino))
            self._database.run("INSERT OR IGNORE INTO open_unlinked VALUES(?,?,?)", (tenant, row.ino, keep_for))
        return RemovedName(row.ino, max(nlink, 0))

    def _set_nlink(self, tenant: int, row: InodeRow, nlink: int, now_ns: int) -> None:
        self._database.run(
            "UPDATE inode SET nlink=?, ctime_ns=? WHERE ino=? AND tenant=?", (nlink, now_ns, row.ino, tenant)
        )

    def destroy(self, tenant: int, row: InodeRow) -> None:
        """Delete the object: row, attributes, blocks, charge, what else mentions it."""
        self._database.require_transaction()
        key = (tenant, row.ino)
        self._database.run("DELETE FROM inode WHERE ino=? AND tenant=?", (row.ino, tenant))
        self._database.run("DELETE FROM xattr WHERE tenant=? AND ino=?", key)
        if not stat.S_ISDIR(row.mode):
            self._database.run("DELETE FROM quarantine WHERE tenant=? AND ino=?", key)
            self._doomed.release_object(tenant, row.ino)
        self._tenants.charge(tenant, -row.stored_bytes, -1)
        self._database.log(tenant, DropInode(row.ino))

    def release_unlinked(self, attachment: int, tenant: int, ino: int) -> bool:
        """The attachment closed its last handle on a nameless object -> whether the object is gone now."""
        self._database.require_transaction()
        key = (tenant, ino)
        self._database.run("DELETE FROM open_unlinked WHERE tenant=? AND ino=? AND attachment=?", (*key, attachment))
        if self._database.one("SELECT 1 FROM open_unlinked WHERE tenant=? AND ino=? LIMIT 1", key):
            return False
        row = self.find(tenant, ino)
        if row is None or row.nlink or self._database.one("SELECT 1 FROM quarantine WHERE tenant=? AND ino=?", key):
            return False
        self.destroy(tenant, row)
        return True

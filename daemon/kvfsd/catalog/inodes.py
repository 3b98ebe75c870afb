"""Rows of objects, and what becomes of an object that loses a name."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

from kvfs.errors import BadRecordError, NotDirectoryError, NotFoundError, WrongKeyError
from kvfsd.catalog.blocks import BLOCKS_MAX, Blocks
from kvfsd.catalog.database import Database, Row
from kvfsd.catalog.doomed import Doomed
from kvfsd.catalog.rowmacs import TenantMacs, total
from kvfsd.catalog.rows import INODE_QUARANTINED, LOGGED_FIELDS, InodeRow, RemovedName
from kvfsd.catalog.schema import LISTING_COLUMNS
from kvfsd.catalog.tenants import Tenants
from kvfsd.ondisk.metalog import DropInode, PutBlock, PutInode, PutXattr, TouchInode

_SELECT: Final = f"SELECT {LISTING_COLUMNS} FROM inode i WHERE i.ino=? AND i.tenant=?"
INSERT_INODE: Final = "INSERT INTO inode VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_UPDATE: Final = (
    "UPDATE inode SET mode=?, nlink=?, uid=?, gid=?, rdev=?, size=?, stored_bytes=?, atime_ns=?, mtime_ns=?,"
    " ctime_ns=?, generation=?, parent=?, flags=?, target=?, members=?, xattrs=?, mac=? WHERE ino=? AND tenant=?"
)
SOUND_MAX: Final = 1024
"""Directories whose rows are remembered, about 600 bytes each."""
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


def inode_values(macs: TenantMacs, tenant: int, row: InodeRow) -> Row:
    """The values of INSERT_INODE."""
    return (row.ino, tenant, *row[1:], macs.inode(row))


class Inodes:
    """Objects by number. Another tenant's numbers are simply not found; a row that fails its check is damage."""

    def __init__(self, database: Database, blocks: Blocks, tenants: Tenants, doomed: Doomed) -> None:
        self._database = database
        self._blocks = blocks
        self._tenants = tenants
        self._doomed = doomed
        self._sound: dict[int, tuple[int, Row]] = {}

    def find(self, tenant: int, ino: int) -> InodeRow | None:
        """The object's row, hidden and unlinked ones too; BadRecordError if it fails its check."""
        row = self._database.one(_SELECT, (ino, tenant))
        return self.checked(tenant, row) if row else None

    def get(self, tenant: int, ino: int) -> InodeRow:
        """The object's row; NotFoundError if there is none, or if it is quarantined; BadRecordError as in `find`."""
        row = self.find(tenant, ino)
        if row is None or row.flags & INODE_QUARANTINED:
            raise NotFoundError(f"no object {ino}")
        return row

    def checked(self, tenant: int, fetched: Row) -> InodeRow:
        """The row of LISTING_COLUMNS; BadRecordError if it fails its check.

        A directory's row that was written here is known in every column: it is read again for the next file in it.
        """
        row, ino = InodeRow._make(fetched[:-1]), fetched[0]
        if ino in self._sound and self._sound[ino] == (tenant, fetched):
            return row
        if self._database.macs.of(tenant).inode(row) != fetched[-1]:
            raise self._database.damage.note("inode", tenant, ino, f"row of object {ino} fails its check")
        return row

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
        self._database.run(INSERT_INODE, inode_values(self._database.macs.of(tenant), tenant, row))
        self._database.log(tenant, PutInode(*row[:LOGGED_FIELDS]))

    def update(self, tenant: int, row: InodeRow, charged_delta_bytes: int = 0) -> None:
        """Write a changed row back; `charged_delta_bytes` is by how much its stored bytes changed."""
        self._database.require_transaction()
        if charged_delta_bytes:
            self._tenants.charge(tenant, charged_delta_bytes, 0)
        self._write(tenant, row)
        if row.nlink:  # what has no name is not rebuilt
            self._database.log(tenant, PutInode(*row[:LOGGED_FIELDS]))

    def _write(self, tenant: int, row: InodeRow) -> None:
        self._database.run(_UPDATE, (*row[1:], self._database.macs.of(tenant).inode(row), row.ino, tenant))

    def touch(self, tenant: int, row: InodeRow, now_ns: int, members_delta: int, nlink_delta: int = 0) -> None:
        """A directory's content changed: new mtime and ctime, `members_delta` as `Namespace.put_entry` and
        `drop_entry` said, and link count when subdirectories come or go. `row` is the directory as it is now.
        """
        nlink, members = row.nlink + nlink_delta, total(row.members, members_delta)
        # What `_replace` would do, in a third of the time: this is done for every file that is stored.
        values = (*row[:2], nlink, *row[3:9], now_ns, now_ns, *row[11:15], members, row.xattrs)
        mac = self._database.macs.of(tenant).inode(values)
        self._database.run(
            "UPDATE inode SET nlink=?, mtime_ns=?, ctime_ns=?, members=?, mac=? WHERE ino=?",
            (nlink, now_ns, now_ns, members, mac, row.ino),
        )
        if len(self._sound) >= SOUND_MAX:
            self._sound.clear()
        self._sound[row.ino] = (tenant, (*values, mac))
        self._database.log(tenant, TouchInode(row.ino, nlink, now_ns, now_ns))

    def adjust(self, tenant: int, ino: int, members_delta: int = 0, xattrs_delta: int = 0) -> None:
        """Rows that belong to the object came or went, and nothing else of it changed; a damaged row stays so."""
        row = self.find_sound(tenant, ino)
        if row is not None:
            members, xattrs = total(row.members, members_delta), total(row.xattrs, xattrs_delta)
            self._write(tenant, row._replace(members=members, xattrs=xattrs))

    def find_sound(self, tenant: int, ino: int) -> InodeRow | None:
        """`find`, but None for damage, which is told, and for a tenant that is being deleted and has no keys."""
        try:
            return self.find(tenant, ino)
        except (BadRecordError, WrongKeyError):
            return None

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
        row = self.find_sound(tenant, ino)
        if row is not None and row.atime_ns < atime_ns:
            mac = self._database.macs.of(tenant).inode(row._replace(atime_ns=atime_ns))
            self._database.run("UPDATE inode SET atime_ns=?, mac=? WHERE ino=?", (atime_ns, mac, ino))

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
        mac = self._database.macs.of(tenant).inode(row._replace(nlink=nlink, ctime_ns=now_ns))
        self._database.run(
            "UPDATE inode SET nlink=?, ctime_ns=?, mac=? WHERE ino=? AND tenant=?",
            (nlink, now_ns, mac, row.ino, tenant),
        )

    def destroy(self, tenant: int, row: InodeRow) -> None:
        """Delete the object: row, attributes, blocks, charge, what else mentions it."""
        self._destroy(tenant, row.ino, row.stored_bytes, is_directory=stat.S_ISDIR(row.mode))

    def destroy_unchecked(self, tenant: int, ino: int) -> None:
        """`destroy` for a tenant whose keys are gone, so that nothing of it can be checked."""
        row = self._database.one("SELECT stored_bytes FROM inode WHERE ino=? AND tenant=?", (ino, tenant))
        if row is not None:
            self._destroy(tenant, ino, row[0] if isinstance(row[0], int) else 0, is_directory=False)

    def _destroy(self, tenant: int, ino: int, stored_bytes: int, *, is_directory: bool) -> None:
        self._database.require_transaction()
        key = (tenant, ino)
        self._database.run("DELETE FROM inode WHERE ino=? AND tenant=?", (ino, tenant))
        self._database.run("DELETE FROM xattr WHERE tenant=? AND ino=?", key)
        if not is_directory:
            self._database.run("DELETE FROM quarantine WHERE tenant=? AND ino=?", key)
            self._doomed.release_object(tenant, ino)
        self._tenants.charge(tenant, -stored_bytes, -1)
        self._database.log(tenant, DropInode(ino))

    def release_unlinked(self, attachment: int, tenant: int, ino: int) -> bool:
        """The attachment closed its last handle on a nameless object -> whether the object is gone now."""
        self._database.require_transaction()
        key = (tenant, ino)
        self._database.run("DELETE FROM open_unlinked WHERE tenant=? AND ino=? AND attachment=?", (*key, attachment))
        if self._database.one("SELECT 1 FROM open_unlinked WHERE tenant=? AND ino=? LIMIT 1", key):
            return False
        row = self.find_sound(tenant, ino)
        if row is None or row.nlink or self._database.one("SELECT 1 FROM quarantine WHERE tenant=? AND ino=?", key):
            return False
        self.destroy(tenant, row)
        return True

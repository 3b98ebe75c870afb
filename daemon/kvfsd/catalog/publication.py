"""The commit of an open file: blocks, size, attributes, name and charge in the caller's one transaction."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvfs import limits
from kvfs.errors import FileTooLargeError, InvalidArgumentError, IsDirectoryError
from kvfsd.catalog.blocks import Blocks, Stored
from kvfsd.catalog.database import Database
from kvfsd.catalog.inodes import Inodes
from kvfsd.catalog.namespace import Namespace
from kvfsd.catalog.rows import INODE_QUARANTINED, Entry, InodeRow, RemovedName
from kvfsd.catalog.xattrs import Xattrs


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A `kvfs.commands.Commit` with everything sealed and translated.

    `flags` are those of the object's row, None leaves them.
    `attachment` is whose uncommitted blocks count. `entry` names a new file; None: `ino` is published already.
    """

    attachment: int
    tenant: int
    ino: int
    entry: Entry | None
    size: int
    base_limit_bytes: int
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    xattrs: Sequence[tuple[bytes, bytes]] = ()
    keep_open: bool = False
    flags: int | None = None


class Published(NamedTuple):
    """The object as it is now, and the object that lost its name to it (ino 0: none)."""

    inode: InodeRow
    replaced: RemovedName


class Publisher:
    """Publishes open files."""

    def __init__(self, database: Database, namespace: Namespace, inodes: Inodes, blocks: Blocks) -> None:
        self._database = database
        self._namespace = namespace
        self._inodes = inodes
        self._blocks = blocks
        self._xattrs = Xattrs(database, inodes)

    def publish(self, publication: Publication) -> Published:
        """Make the file's uncommitted state the committed one.

        Raises NotFoundError (directory, or object), IsDirectoryError (the name is a directory's), QuotaExceededError,
        FileTooLargeError, XattrTooLargeError; the caller's transaction then undoes all of it.
        """
        if not 0 <= publication.size <= limits.FILE_MAX_BYTES or publication.base_limit_bytes < 0:
            raise FileTooLargeError(f"object {publication.ino}: size {publication.size}")
        if not stat.S_ISREG(publication.mode):
            raise InvalidArgumentError(f"object {publication.ino}: mode {publication.mode:o} is no regular file")
        published = self._publish_new(publication) if publication.entry else self._publish_again(publication)
        for name, value in publication.xattrs:
            self._xattrs.put(publication.tenant, publication.ino, name, value)
        return published

    def _publish_new(self, publication: Publication) -> Published:
        entry, tenant, now_ns = publication.entry, publication.tenant, publication.ctime_ns
        if entry is None or entry.tenant != tenant:
            raise InvalidArgumentError(f"object {publication.ino}: its name is not the tenant's")
        parent = self._inodes.directory(tenant, entry.parent)
        replaced = self._take_name(entry, publication)
        stored = self._blocks.commit_staged(publication.attachment, tenant, publication.ino, 0)
        row = self._row(publication, nlink=1, stored=stored)._replace(flags=publication.flags or 0)
        self._inodes.insert(tenant, row)
        self._inodes.touch(tenant, parent, now_ns, self._namespace.put_entry(entry, row.ino))
        return Published(row, replaced)

    def _take_name(self, entry: Entry, publication: Publication) -> RemovedName:
        row = self._namespace.find_hidden_too(entry)
        if row is None:
            return RemovedName()
        if stat.S_ISDIR(row.mode):
            raise IsDirectoryError(f"object {row.ino} is a directory")
        if row.ino == publication.ino:
            raise InvalidArgumentError(f"object {row.ino} is published already")
        hidden = bool(row.flags & INODE_QUARANTINED)
        keep_for = publication.attachment if publication.keep_open and not hidden else None
        removed = self._inodes.lose_name(entry.tenant, row, publication.ctime_ns, keep_for)
        return RemovedName() if hidden else removed

    def _publish_again(self, publication: Publication) -> Published:
        before = self._inodes.get(publication.tenant, publication.ino)
        if not stat.S_ISREG(before.mode):
            raise InvalidArgumentError(f"object {publication.ino} is no regular file")
        had = Stored(before.stored_bytes, before.members)
        stored = self._blocks.commit_staged(
            publication.attachment, publication.tenant, publication.ino, publication.base_limit_bytes, had
        )
        flags = before.flags if publication.flags is None else publication.flags
        row = self._row(publication, nlink=before.nlink, stored=stored)._replace(flags=flags, xattrs=before.xattrs)
        self._inodes.update(publication.tenant, row, stored.stored_bytes - had.stored_bytes)
        return Published(row, RemovedName())

    def _row(self, publication: Publication, *, nlink: int, stored: Stored) -> InodeRow:
        return InodeRow(
            ino=publication.ino,
            mode=publication.mode,
            nlink=nlink,
            uid=publication.uid,
            gid=publication.gid,
            rdev=0,
            size=publication.size,
            stored_bytes=stored.stored_bytes,
            atime_ns=publication.atime_ns,
            mtime_ns=publication.mtime_ns,
            ctime_ns=publication.ctime_ns,
            generation=self._database.next_generation(),
            members=stored.members,
        )

"""Commands that only look: each a plain function that never waits. None stands for NOT_FOUND, the normal miss.

A miss of `Lookup` is what engines ask for most (docs: engine contract), so that path makes no exception and no text.
"""

from __future__ import annotations

import logging
import stat
from typing import TYPE_CHECKING

from kvfs import limits, retention
from kvfs.commands import (
    Attributes,
    Bytes,
    DirectoryEntry,
    DirectoryListing,
    FilesystemUsage,
    Found,
    GetAttributes,
    GetXattr,
    ListXattrs,
    Lookup,
    Names,
    OpenObject,
    ReadDirectory,
    ReadLink,
    StatFilesystem,
)
from kvfs.errors import FormatError, InvalidArgumentError, NotFoundError
from kvfsd.catalog.retention_flags import EXPIRES
from kvfsd.catalog.retention_flags import is_expired as expires_before
from kvfsd.catalog.rows import InodeRow
from kvfsd.catalog.wholeness import LostBlocksError
from kvfsd.service.sealedxattrs import read_names, read_xattr
from kvfsd.service.session_retention import is_expired, state_of
from kvfsd.service.validation import INTEGER_MAX, check_name, check_xattr

if TYPE_CHECKING:
    from kvfsd.service.session import Session

log = logging.getLogger(__name__)

LINK_TARGET = b"target"
"""Purpose of a sealed link target (`NameSealer.seal_value`)."""


def attributes_of(session: Session, row: InodeRow) -> Attributes:
    """An inode row as the host sees it: the tenant's root is ino 1, accesses not written yet are in."""
    pending_ns = session.accesses.pending_ns(row.ino)
    if row.ino == session.root_ino:
        row = row._replace(ino=1)
    if pending_ns > row.atime_ns:
        row = row._replace(atime_ns=pending_ns)
    return Attributes(*row[:12])


def lookup(session: Session, command: Lookup) -> Found | None:
    """Lookup: the object behind a name."""
    parent, name = session.inward(command.parent), command.name
    check_name(name)
    row = session.catalog.namespace.lookup(session.tenant, parent, session.names.seal_name(parent, name))
    if row is None or (row.flags >= EXPIRES and is_expired(session, row)):
        return None
    fences = session.service.guard.fences
    if fences and fences.hides(session.tenant, parent, name, row):
        return None
    return Found(attributes_of(session, row))


def get_attributes(session: Session, command: GetAttributes) -> Found:
    """GetAttributes: also of objects without a name that are still open."""
    ino = session.inward(command.ino)
    row = session.catalog.inodes.get(session.tenant, ino)
    return Found(attributes_of(session, row))


def read_directory(session: Session, command: ReadDirectory) -> DirectoryListing:
    """ReadDirectory: a batch of names in the order of their cookies."""
    ino, cookie = session.inward(command.ino), command.cookie
    if not 0 <= cookie <= INTEGER_MAX or command.limit < 1:
        raise InvalidArgumentError(f"listing of directory {ino}: cookie {cookie}, limit {command.limit}")
    limit = min(command.limit, limits.DIRECTORY_BATCH_MAX)
    listed, end = session.catalog.namespace.list_directory(session.tenant, ino, cookie, limit)
    entries = []
    now_ns, fences = session.now_ns(), session.service.guard.fences
    for entry in listed:
        inode = entry.inode
        if inode.flags >= EXPIRES and stat.S_ISREG(inode.mode) and expires_before(inode.flags, now_ns):
            continue
        try:
            name = session.names.open_name(ino, entry.name)
        except FormatError as error:  # one damaged row of the catalog costs that name, not its directory
            session.metrics.counters.damaged_names += 1
            log.warning("listing of directory %d: %s", ino, error)
            continue
        if fences and fences.hides(session.tenant, ino, name, inode):
            continue
        entries.append(DirectoryEntry(name, entry.cookie, attributes_of(session, entry.inode)))
    return DirectoryListing(tuple(entries), end)


def read_link(session: Session, command: ReadLink) -> Bytes:
    """ReadLink: the target of a symbolic link."""
    row = session.catalog.inodes.get(session.tenant, session.inward(command.ino))
    if not row.target:
        raise InvalidArgumentError(f"object {command.ino} is no symbolic link")
    return Bytes(session.names.open_value(row.ino, LINK_TARGET, row.target))


def get_xattr(session: Session, command: GetXattr) -> Bytes:
    """GetXattr: one value."""
    check_xattr(command.name)
    ino = session.inward(command.ino)
    if command.name == retention.STATE:
        return Bytes(state_of(session, ino))
    return Bytes(read_xattr(session, ino, command.name))


def list_xattrs(session: Session, command: ListXattrs) -> Names:
    """ListXattrs: all names."""
    return Names(read_names(session, session.inward(command.ino)))


def stat_filesystem(session: Session, _: StatFilesystem) -> FilesystemUsage:
    """StatFilesystem: reserved bytes and objects count as used, as they do at admission."""
    row = session.catalog.tenants.get(session.tenant)
    admission = session.admission
    free_bytes, pool_bytes = session.service.pool_space()
    return FilesystemUsage(
        quota_bytes=row.quota_bytes,
        used_bytes=row.used_bytes + admission.reserved_bytes(session.tenant),
        quota_objects=row.quota_objects,
        used_objects=row.used_objects + admission.reserved_objects(session.tenant),
        pool_free_bytes=free_bytes,
        pool_bytes=pool_bytes,
    )


def open_object(session: Session, command: OpenObject) -> Found:
    """OpenObject: a reader's access is noted in memory; what a mount has open is not evicted.

    A small object is looked at as a whole.
    """
    row = session.catalog.inodes.get(session.tenant, session.inward(command.ino))
    if row.flags >= EXPIRES and is_expired(session, row):
        raise NotFoundError(f"object {row.ino} has expired")
    fences = session.service.guard.fences
    if fences and fences.hides_object(session.tenant, row):
        raise NotFoundError(f"object {row.ino} was stored under another layout")
    try:
        session.catalog.wholeness.opened(session.tenant, row)
    except LostBlocksError as error:
        session.service.hide(session.tenant, row.ino, str(error))
        raise
    session.opens.add(row.ino, command.serial)
    if command.reading:
        session.accesses.note(session.tenant, row)
    return Found(attributes_of(session, row))

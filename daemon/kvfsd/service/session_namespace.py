"""Commands that change names and attributes. Each runs inside one catalog transaction, together with its completion.

Names are sealed under the directory they are in, so a renamed name is sealed anew. What is to happen once the
transaction is committed (events, reservations) is left with `session.after_commit`.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvfs import limits, retention
from kvfs.commands import (
    Commit,
    Done,
    EntryGone,
    Found,
    Link,
    MakeNode,
    ObjectChanged,
    Removed,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
)
from kvfs.errors import InvalidArgumentError, NotFoundError, XattrTooLargeError
from kvfsd.catalog.inodes import AttributeChange
from kvfsd.catalog.publication import Publication
from kvfsd.catalog.rows import Entry, InodeRow
from kvfsd.service import session_retention, validation
from kvfsd.service.layout_guard import CONFIG_NAME
from kvfsd.service.sealedxattrs import sealed_name, sealed_xattr
from kvfsd.service.session_lookups import LINK_TARGET, attributes_of

if TYPE_CHECKING:
    from kvfsd.service.session import Session


def entry_of(session: Session, parent: int, name: bytes) -> Entry:
    """A name of a command, checked and sealed."""
    validation.check_name(name)
    inward = session.inward(parent)
    return Entry(session.tenant, inward, session.names.seal_name(inward, name))


def make_node(session: Session, command: MakeNode) -> Found:
    """MakeNode: anything but a regular file."""
    validation.check_node(command.mode, command.target)
    validation.check_owner(command.uid, command.gid)
    entry = entry_of(session, command.parent, command.name)
    session.admission.check(session.tenant, 0, 1)
    ino = session.catalog.database.next_ino()
    now_ns = session.now_ns()
    node = InodeRow(
        ino=ino,
        mode=command.mode,
        nlink=0,  # the catalog knows
        uid=command.uid,
        gid=command.gid,
        rdev=0,
        size=len(command.target),
        stored_bytes=0,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        generation=session.catalog.database.next_generation(),
        target=session.names.seal_value(ino, LINK_TARGET, command.target) if command.target else b"",
    )
    row = session.catalog.namespace.insert_node(entry, node)
    session.announce(ObjectChanged(entry.parent))
    return Found(attributes_of(session, row))


def set_attributes(session: Session, command: SetAttributes) -> Found:
    """SetAttributes: never the size."""
    validation.check_permissions(command.mode)
    validation.check_owner(command.uid, command.gid)
    validation.check_times(command.atime_ns, command.mtime_ns, command.ctime_ns)
    ino = session.inward(command.ino)
    if command.atime_ns is not None:
        session.accesses.forget(ino)
    change = AttributeChange(
        ctime_ns=command.ctime_ns,
        mode=command.mode,
        uid=command.uid,
        gid=command.gid,
        atime_ns=command.atime_ns,
        mtime_ns=command.mtime_ns,
    )
    row = session.catalog.inodes.set_attributes(session.tenant, ino, change)
    session.announce(ObjectChanged(ino))
    return Found(attributes_of(session, row))


def set_xattr(session: Session, command: SetXattr) -> Done:
    """SetXattr: name and value are sealed, the value bound to its name."""
    validation.check_xattr(command.name, command.value)
    validation.check_flags("setxattr", command.flags, validation.XATTR_FLAGS_MAX)
    ino = session.inward(command.ino)
    sealed = sealed_xattr(session, ino, command.name, command.value)
    session.catalog.xattrs.set(session.tenant, ino, sealed, command.flags, session.now_ns())
    if command.name.startswith(retention.PREFIX):
        session_retention.apply(session, ino, command.name, command.value)
    session.announce(ObjectChanged(ino))
    return Done()


def remove_xattr(session: Session, command: RemoveXattr) -> Done:
    """RemoveXattr."""
    validation.check_xattr(command.name)
    ino = session.inward(command.ino)
    session.catalog.xattrs.remove(session.tenant, ino, sealed_name(session, ino, command.name), session.now_ns())
    if command.name.startswith(retention.PREFIX):
        session_retention.apply(session, ino, command.name, None)
    session.announce(ObjectChanged(ino))
    return Done()


def unlink(session: Session, command: Unlink) -> Removed:
    """Unlink: one that follows a fault of the object goes to quarantine and can be undone."""
    entry = entry_of(session, command.parent, command.name)
    keep_for = session.attachment if command.keep_open else None
    removed = session.quarantine.unlink(entry, keep_for)
    session.announce(EntryGone(command.parent, command.name))
    return Removed(removed.ino, removed.nlink)


def remove_directory(session: Session, command: RemoveDirectory) -> Removed:
    """RemoveDirectory: an empty one."""
    entry = entry_of(session, command.parent, command.name)
    removed = session.catalog.namespace.remove_directory(entry, session.now_ns())
    session.announce(EntryGone(command.parent, command.name))
    return Removed(removed.ino, removed.nlink)


def rename(session: Session, command: Rename) -> Removed:
    """Rename: the target is replaced, exchanged, or refused, as the flags say."""
    validation.check_flags("rename", command.flags, 2)
    source = entry_of(session, command.parent, command.name)
    target = entry_of(session, command.new_parent, command.new_name)
    keep_for = session.attachment if command.keep_open else None
    removed = session.catalog.renames.rename(source, target, command.flags, session.now_ns(), keep_for)
    session.after_commit(lambda: session.service.retention.moved(session.tenant))
    session.after_commit(lambda: _note_rename(session, source, target, command))
    session.announce(EntryGone(command.parent, command.name))
    session.announce(EntryGone(command.new_parent, command.new_name))
    return Removed(removed.ino, removed.nlink)


def _note_rename(session: Session, source: Entry, target: Entry, command: Rename) -> None:
    """What the layout guard is told of a rename."""
    guard = session.service.guard
    if guard.fences:
        guard.fences.moved()
    for entry, name in ((source, command.name), (target, command.new_name)):
        row = session.catalog.namespace.lookup(*entry) if name == CONFIG_NAME else None
        if row is not None:
            guard.note_config(session.tenant, entry.parent, row.ino)


def link(session: Session, command: Link) -> Found:
    """Link: another name for a published object."""
    entry = entry_of(session, command.parent, command.name)
    row = session.catalog.namespace.add_link(entry, session.inward(command.ino), session.now_ns())
    session.announce(ObjectChanged(row.ino))
    return Found(attributes_of(session, row))


def commit(session: Session, command: Commit) -> Found:
    """Commit: what an attachment staged of one object becomes the object, and its reservation becomes use."""
    publication = _publication(session, command)
    reservation = session.reservations.for_commit(command.ino, new=command.entry is not None)
    published = session.catalog.publisher.publish(publication)
    session.after_commit(lambda: session.reservations.committed(command.ino, reservation))
    session.accesses.forget(command.ino)
    session.opens.add(command.ino, command.serial)
    guard = session.service.guard
    if publication.entry is None:
        session.after_commit(lambda: guard.note_rewrite(command.ino))
    elif command.entry is not None and command.entry.name == CONFIG_NAME:
        parent = publication.entry.parent
        session.after_commit(lambda: guard.note_config(session.tenant, parent, command.ino))
    if command.entry is not None:
        session.announce(EntryGone(command.entry.parent, command.entry.name))
    session.announce(ObjectChanged(command.ino))
    return Found(attributes_of(session, published.inode))


def _publication(session: Session, command: Commit) -> Publication:
    validation.check_ino(command.ino)
    if command.ino == session.root_ino or command.ino == 1:
        raise NotFoundError("the root directory is no file")
    validation.check_regular(command.mode)
    validation.check_owner(command.uid, command.gid)
    validation.check_times(command.atime_ns, command.mtime_ns, command.ctime_ns)
    validation.check_size(command.size)
    validation.check_size(command.base_limit_bytes)
    entry = entry_of(session, command.entry.parent, command.entry.name) if command.entry else None
    flags, xattrs = _kept(session, command, entry)
    return Publication(
        attachment=session.attachment,
        tenant=session.tenant,
        ino=command.ino,
        entry=entry,
        size=command.size,
        base_limit_bytes=command.base_limit_bytes,
        mode=stat.S_IFREG | stat.S_IMODE(command.mode),
        uid=command.uid,
        gid=command.gid,
        atime_ns=command.atime_ns,
        mtime_ns=command.mtime_ns,
        ctime_ns=command.ctime_ns,
        xattrs=[sealed_xattr(session, command.ino, name, value) for name, value in xattrs],
        keep_open=command.keep_open,
        flags=flags,
    )


def _kept(session: Session, command: Commit, entry: Entry | None) -> tuple[int | None, Sequence[tuple[bytes, bytes]]]:
    """How long it is kept, as flags (None: as before), and its attributes with what directories add to them."""
    plain_bytes = sum(len(name) + len(value) for name, value in command.xattrs)
    if plain_bytes > limits.XATTRS_PER_OBJECT_MAX_BYTES:
        raise XattrTooLargeError(f"object {command.ino}: {plain_bytes} bytes of attributes")
    for name, value in command.xattrs:
        validation.check_xattr(name, value)
    if entry is not None:
        return session_retention.of_new_object(session, command, entry.parent)
    if any(name.startswith(retention.PREFIX) for name, _ in command.xattrs):
        raise InvalidArgumentError(f"object {command.ino} is published: how long it is kept is set by SetXattr")
    return session_retention.of_rewritten_object(session, command.ino), command.xattrs

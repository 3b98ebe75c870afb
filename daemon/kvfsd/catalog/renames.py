"""rename(2) with RENAME_NOREPLACE and RENAME_EXCHANGE, in the caller's transaction."""

from __future__ import annotations

import stat

from kvfs.commands import RENAME_EXCHANGE, RENAME_NOREPLACE
from kvfs.errors import ExistsError, InvalidArgumentError, IsDirectoryError, NotDirectoryError
from kvfsd.catalog.inodes import Inodes
from kvfsd.catalog.namespace import Namespace
from kvfsd.catalog.rows import INODE_QUARANTINED, Entry, InodeRow, RemovedName

DEPTH_MAX = 1 << 20
"""Directories above one another that a rename walks up before it calls the tree damaged."""


class Renames:
    """Moves of names within a tenant."""

    def __init__(self, namespace: Namespace, inodes: Inodes) -> None:
        self._namespace = namespace
        self._inodes = inodes

    def rename(self, source: Entry, target: Entry, flags: int, now_ns: int, keep_for: int | None = None) -> RemovedName:
        """Move a name -> the replaced object that lost its name (ino 0 if none).

        `keep_for` as in `Inodes.lose_name`, for the replaced object. Raises NotFoundError, ExistsError (NOREPLACE),
        NotEmptyError, IsDirectoryError, NotDirectoryError, InvalidArgumentError (flags; a directory moved into itself).
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE) or source.tenant != target.tenant:
            raise InvalidArgumentError(f"rename: flags {flags:#x}")
        moved = self._namespace.visible(source)
        directory = self._inodes.directory(target.tenant, target.parent)
        self._refuse_own_subtree(moved, target)
        if flags == RENAME_EXCHANGE:
            self._exchange(source, target, moved, now_ns)
            return RemovedName()
        replaced = self._namespace.find_hidden_too(target)
        if replaced and flags == RENAME_NOREPLACE and not replaced.flags & INODE_QUARANTINED:
            raise ExistsError(f"name taken in directory {target.parent}")
        if replaced and replaced.ino == moved.ino:
            return RemovedName()  # two names of one object: rename(2) does nothing
        removed = RemovedName()
        if replaced:
            removed = self._replace(target, moved, replaced, now_ns, keep_for)
            directory = self._inodes.directory(target.tenant, target.parent)
        dropped = self._namespace.drop_entry(source, moved.ino)
        put = self._namespace.put_entry(target, moved.ino, replaced.ino if replaced else 0)
        self._arrive(source.tenant, moved, target.parent, now_ns)
        if source.parent == target.parent:
            self._inodes.touch(source.tenant, directory, now_ns, dropped + put)
        else:
            subdirectory = int(stat.S_ISDIR(moved.mode))
            self._touch(source, now_ns, dropped, -subdirectory)
            self._inodes.touch(target.tenant, directory, now_ns, put, subdirectory)
        return removed

    def _replace(
        self, target: Entry, moved: InodeRow, replaced: InodeRow, now_ns: int, keep_for: int | None
    ) -> RemovedName:
        if replaced.flags & INODE_QUARANTINED:
            self._inodes.lose_name(target.tenant, replaced, now_ns, None)
            return RemovedName()
        if not stat.S_ISDIR(replaced.mode):
            if stat.S_ISDIR(moved.mode):
                raise NotDirectoryError(f"object {replaced.ino} is no directory, {moved.ino} is one")
            return self._inodes.lose_name(target.tenant, replaced, now_ns, keep_for)
        if not stat.S_ISDIR(moved.mode):
            raise IsDirectoryError(f"object {replaced.ino} is a directory, {moved.ino} is none")
        self._namespace.destroy_directory(target.tenant, replaced, now_ns)
        self._touch(target, now_ns, 0, -1)
        return RemovedName(replaced.ino, 0)

    def _exchange(self, source: Entry, target: Entry, moved: InodeRow, now_ns: int) -> None:
        other = self._namespace.visible(target)
        self._refuse_own_subtree(other, source)
        if other.ino == moved.ino:
            return
        tenant = source.tenant
        here = self._namespace.put_entry(source, other.ino, moved.ino)
        there = self._namespace.put_entry(target, moved.ino, other.ino)
        self._arrive(tenant, moved, target.parent, now_ns)
        self._arrive(tenant, other, source.parent, now_ns)
        difference = int(stat.S_ISDIR(other.mode)) - int(stat.S_ISDIR(moved.mode))
        if source.parent == target.parent:
            self._touch(source, now_ns, here + there)
        else:
            self._touch(source, now_ns, here, difference)
            self._touch(target, now_ns, there, -difference)

    def _arrive(self, tenant: int, row: InodeRow, parent: int, now_ns: int) -> None:
        new_parent = parent if stat.S_ISDIR(row.mode) else 0
        self._inodes.update(tenant, row._replace(parent=new_parent, ctime_ns=now_ns))

    def _touch(self, entry: Entry, now_ns: int, members_delta: int, nlink_delta: int = 0) -> None:
        """The directory of a name has changed; it is read again, as it may have been touched before."""
        directory = self._inodes.directory(entry.tenant, entry.parent)
        self._inodes.touch(entry.tenant, directory, now_ns, members_delta, nlink_delta)

    def _refuse_own_subtree(self, moved: InodeRow, target: Entry) -> None:
        if not stat.S_ISDIR(moved.mode):
            return
        ino = target.parent
        for _ in range(DEPTH_MAX):
            if ino == moved.ino:
                raise InvalidArgumentError(f"directory {moved.ino} cannot move into itself")
            parent = self._inodes.directory(target.tenant, ino).parent
            if parent == ino:
                return
            ino = parent
        raise InvalidArgumentError(f"directory {target.parent} is over {DEPTH_MAX} directories deep")

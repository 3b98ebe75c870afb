"""Handlers of names: mkdir, mknod, symlink, link, unlink, rmdir, rename."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import TypeAlias

from pyfuse3 import EntryAttributes, RequestContext

from kvfs.commands import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Attributes,
    GetAttributes,
    Link,
    MakeNode,
    Placement,
    Removed,
    RemoveDirectory,
    Rename,
    Unlink,
)
from kvfs.errors import (
    ExistsError,
    InvalidArgumentError,
    KvfsError,
    NameTooLongError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
)
from kvfs.fuse.errno_map import Context
from kvfs.fuse.files import FileHandlers
from kvfs.fuse.guard import guarded
from kvfs.fuse.state import check_name, entry_of
from kvfs.limits import SYMLINK_MAX_BYTES
from kvfs.openfile import OpenFile

_Removal: TypeAlias = Callable[[bool], Unlink | RemoveDirectory | Rename]
"""Makes the command, given keep_open."""


class NameHandlers(FileHandlers):
    """Directory entries. A name that is pending is settled first: committed, or taken from its file."""

    @guarded(Context.NAME)
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """Make a directory; `mode` has the umask applied."""
        return await self._make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), b"", ctx)

    @guarded(Context.NAME)
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        """Make a symbolic link."""
        if len(target) > SYMLINK_MAX_BYTES:
            raise NameTooLongError(f"a link target of {len(target)} bytes, at most {SYMLINK_MAX_BYTES}")
        return await self._make(parent_inode, name, stat.S_IFLNK | 0o777, target, ctx)

    @guarded(Context.NAME)
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        """Make an empty file, a fifo or a socket; devices have no place on a shared tier."""
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise NotPermittedError("kvfs has no device nodes")
        if not stat.S_ISREG(mode):
            return await self._make(parent_inode, name, mode, b"", ctx)
        await self._check_free(parent_inode, name)
        file = await self.new_file(parent_inode, name, mode, ctx)
        try:
            await self.state.publish(file)
        except KvfsError:
            await self.state.poisoned.try_discard(file)
            raise
        return entry_of(file.committed)

    async def _make(self, parent: int, name: bytes, mode: int, target: bytes, ctx: RequestContext) -> EntryAttributes:
        check_name(name)
        if self.state.pending.get(parent, name) is not None:
            raise ExistsError("the name is taken")
        mode, gid = await self.state.ownership(parent, mode, ctx)
        command = MakeNode(parent=parent, name=name, mode=mode, uid=ctx.uid, gid=gid, target=target)
        attributes = await self.state.found(command)
        self.state.changes.note(parent)
        return entry_of(attributes)

    async def _check_free(self, parent: int, name: bytes) -> None:
        check_name(name)
        if self.state.pending.get(parent, name) is not None or await self.state.lookup(parent, name) is not None:
            raise ExistsError("the name is taken")

    @guarded(Context.NAME)
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Give an object another name; a file that is still pending is committed first."""
        state = self.state
        check_name(new_name)
        if state.pending.get(new_parent_inode, new_name) is not None:
            raise ExistsError("the name is taken")
        opened = state.table.get(inode)
        if opened is not None and opened.file is not None and not opened.file.published:
            await state.publish(opened.file)
        attributes = await state.found(Link(ino=inode, parent=new_parent_inode, name=new_name))
        state.changes.note(inode, new_parent_inode)
        opened = state.table.get(inode)
        if opened is not None:
            opened.attributes = attributes
            if opened.file is not None:
                opened.file.committed = attributes
        return state.overlaid(attributes)

    @guarded(Context.NAME)
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Take a name away; an open file stays readable and writable until its last close."""
        check_name(name)
        file = self.state.pending.get(parent_inode, name)
        if file is not None and await self._detached(file, parent_inode, name):
            return
        target = await self.state.lookup(parent_inode, name)
        if target is None:
            if self.state.pending.forget_lost(parent_inode, name):
                return
            raise NotFoundError("no such name")
        await self._remove(
            target.ino, lambda keep_open: Unlink(parent=parent_inode, name=name, keep_open=keep_open), parent_inode
        )

    async def _detached(self, file: OpenFile, parent: int, name: bytes) -> bool:
        """Take a pending name from its file -> False if it was published while we waited."""
        async with file.commit_lock:
            if self.state.pending.get(parent, name) is not file:
                return False
            self.state.detach(file)
            return True

    async def _remove(self, ino: int | None, command: _Removal, *parents: int) -> None:
        """Run a command that takes a name from `ino` (None = nobody loses one) and changes directories `parents`."""
        table = self.state.table
        keep_open = False if ino is None else table.begin_removal(ino)
        try:
            result = (await self.state.queue_pair.submit(command(keep_open))).result
            assert isinstance(result, Removed)
            self.state.changes.note(*parents)
            await self.state.note_removed(result, keep_open=keep_open)
        finally:
            if ino is not None:
                table.end_removal(ino)

    @guarded(Context.NAME)
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory; a file that is being created in it counts."""
        check_name(name)
        state = self.state
        if state.pending.get(parent_inode, name) is not None:
            raise NotDirectoryError("the name is a file")
        directory = await state.lookup(parent_inode, name)
        if directory is None:
            raise NotFoundError("no such name")
        if state.pending.has_children(directory.ino):
            raise NotEmptyError("a file is being created in the directory")
        await self._remove(None, lambda keep_open: RemoveDirectory(parent=parent_inode, name=name), parent_inode)
        state.removed_directories.add(directory)


class RenameHandlers(NameHandlers):
    """rename(2), which is the commit point of every engine."""

    @guarded(Context.NAME)
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """What was written under either name is committed first; a poisoned file is not renamed."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise InvalidArgumentError(f"rename flags {flags:#x} are not supported")
        check_name(name_old)
        check_name(name_new)
        old, new = Placement(parent=parent_inode_old, name=name_old), Placement(parent=parent_inode_new, name=name_new)
        if not flags & RENAME_EXCHANGE and await self._published_renamed(old, new, flags):
            return
        source = await self._committed(old)
        if flags & RENAME_EXCHANGE:
            await self._committed(new)
            await self._rename(old, new, flags, None)
            return
        target = self.state.pending.get(new.parent, new.name)
        if target is not None and await self._renamed_over_pending(old, new, flags, source, target):
            return
        replaced = await self.state.lookup(new.parent, new.name)
        await self._rename(old, new, flags, replaced.ino if replaced is not None else None)

    async def _published_renamed(self, old: Placement, new: Placement, flags: int) -> bool:
        """A file that was never closed gets its new name in one Commit, so that no crash leaves the old one behind.

        False: this is not such a rename, or one that has to be refused.
        """
        state = self.state
        file = state.pending.get(old.parent, old.name)
        if file is None or state.pending.get(new.parent, new.name):
            return False
        replaced = await state.lookup(new.parent, new.name)
        if replaced is None:
            return await self._published_as(file, old, new)
        if flags & RENAME_NOREPLACE or stat.S_ISDIR(replaced.mode):
            return False
        keep_open = file.replaces_open = state.table.begin_removal(replaced.ino)
        try:
            if not await self._published_as(file, old, new):
                return False
            await state.note_removed(await self._after_removal(replaced.ino), keep_open=keep_open)
            return True
        finally:
            file.replaces_open = False
            state.table.end_removal(replaced.ino)

    async def _published_as(self, file: OpenFile, old: Placement, new: Placement) -> bool:
        """Commit a pending file under another name -> False if it was published meanwhile."""
        state = self.state
        async with file.commit_lock:  # nobody is publishing it under the old name meanwhile
            if state.pending.get(old.parent, old.name) is not file:
                return False
            file.check_poison()
            state.pending.move(file, new)
        try:
            await state.publish(file)
        except BaseException:
            if state.pending.get(new.parent, new.name) is file:
                state.pending.move(file, old)
            elif state.pending.forget_lost(new.parent, new.name):  # poisoned: it never had the new name
                state.pending.lose(old, file)
            raise
        state.changes.note(old.parent)
        return True

    async def _after_removal(self, ino: int) -> Removed:
        """What is left of an object that has lost a name."""
        try:
            return Removed(ino=ino, nlink=(await self.state.found(GetAttributes(ino=ino))).nlink)
        except NotFoundError:
            return Removed(ino=ino, nlink=0)

    async def _committed(self, entry: Placement) -> Attributes:
        """Commit what is staged of the object behind a name -> its attributes. Raises NotFoundError, or its poison."""
        state = self.state
        file = state.pending.get(entry.parent, entry.name)
        if file is None:
            attributes = await state.lookup(entry.parent, entry.name)
            if attributes is None:
                lost = state.pending.lost(entry.parent, entry.name)
                if lost is not None:
                    lost.check_poison()
                raise NotFoundError("no such name")
            state.poisoned.check_name(state.table.get(attributes.ino))
            file = state.table.staged(attributes.ino)
            if file is None:
                return attributes
        await state.publish(file)
        return file.committed

    async def _renamed_over_pending(
        self, old: Placement, new: Placement, flags: int, source: Attributes, target: OpenFile
    ) -> bool:
        """The new name is pending: its file loses it -> False if it was published while we waited."""
        async with target.commit_lock:  # so that it cannot be published over the renamed object
            if self.state.pending.get(new.parent, new.name) is not target:
                return False
            if flags & RENAME_NOREPLACE:
                raise ExistsError("the new name is taken")
            if stat.S_ISDIR(source.mode):
                raise NotDirectoryError("the new name is a file")
            await self._rename(old, new, flags, None)
            self.state.detach(target)
            return True

    async def _rename(self, old: Placement, new: Placement, flags: int, replaced: int | None) -> None:
        await self._remove(
            replaced,
            lambda keep_open: Rename(
                parent=old.parent,
                name=old.name,
                new_parent=new.parent,
                new_name=new.name,
                flags=flags,
                keep_open=keep_open,
            ),
            old.parent,
            new.parent,
        )

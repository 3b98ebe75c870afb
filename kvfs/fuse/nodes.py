"""Handlers of attributes: lookup, getattr, setattr, readlink, statfs."""

from __future__ import annotations

import stat
from typing import Final

from pyfuse3 import EntryAttributes, RequestContext, SetattrFields, StatvfsData

from kvfs.commands import Bytes, FilesystemUsage, Lookup, ReadLink, SetAttributes, StatFilesystem
from kvfs.errors import NotFoundError
from kvfs.fuse.errno_map import Context
from kvfs.fuse.guard import guarded
from kvfs.fuse.state import MountState, check_name, entry_of, entry_of_file
from kvfs.limits import NAME_MAX_BYTES

STATFS_BLOCK_BYTES: Final = 4096
"""One engine drops direct I/O when a block is no multiple of f_bsize (engine contract, 7)."""
_UNBOUNDED_OBJECTS: Final = 1 << 40


class NodeHandlers:
    """What an object is, apart from its names and data."""

    state: MountState

    @guarded(Context.LOOKUP)
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """The hot path: engines ask for many names that do not exist. A miss is never cached by the kernel."""
        state = self.state
        file = state.pending.get(parent_inode, name)
        if file is not None:
            return entry_of_file(file)
        check_name(name)
        try:
            return state.overlaid(await state.found(Lookup(parent=parent_inode, name=name)))
        except NotFoundError:
            state.asked_anew.end(ctx.pid)
            raise

    @guarded(Context.LOOKUP)
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Attributes for stat(2) and fstat(2)."""
        try:
            return await self.state.entry_of(inode)
        except NotFoundError as error:
            raise self.state.asked_anew.refusal(ctx.pid, inode) from error

    @guarded(Context.WRITE)
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """chmod, chown, utimens, truncate, ftruncate; the kernel has checked permissions and cleared suid bits."""
        if fields.update_size:
            if fh is not None:
                await self.state.poisoned.tell(self.state.table.handle(fh))
            await self._truncate(inode, attr.st_size, commit=fh is None)
        command = SetAttributes(
            ino=inode,
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=self.state.now_ns(),
        )
        values = (command.mode, command.uid, command.gid, command.atime_ns, command.mtime_ns)
        if any(value is not None for value in values):
            return await self._change(command)
        return await self.state.entry_of(inode)

    async def _change(self, command: SetAttributes) -> EntryAttributes:
        state = self.state
        inode = state.table.get(command.ino)
        file = inode.file if inode is not None else None
        if file is not None:
            async with file.commit_lock:
                if not file.published:
                    file.change(command)
                    file.changed = True
                    return entry_of_file(file)
                attributes = await state.found(command)
                file.change(command)
                file.committed = attributes
                state.changes.note(command.ino)
            return state.overlaid(attributes)
        attributes = await state.found(command)
        state.changes.note(command.ino)
        if inode is not None:
            inode.attributes = attributes
        return entry_of(attributes)

    async def _truncate(self, ino: int, size: int, *, commit: bool) -> None:
        """Stage the new size; by path (no handle that will be closed) it is published at once."""
        state = self.state
        inode = await state.table.acquire(ino)
        try:
            file = await state.file_for_writing(inode)
            await state.staging.truncate(file, size)
            if commit:
                await state.publish(file)
        finally:
            await state.let_go(inode)

    @guarded(Context.LOOKUP)
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """Target of a symbolic link."""
        result = (await self.state.queue_pair.submit(ReadLink(ino=inode))).result
        assert isinstance(result, Bytes)
        return result.value

    @guarded(Context.NAME)
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The tenant's quota and use; without a quota the pool's."""
        usage = (await self.state.queue_pair.submit(StatFilesystem())).result
        assert isinstance(usage, FilesystemUsage)
        total, free = usage.pool_bytes, usage.pool_free_bytes
        if usage.quota_bytes:
            total = usage.quota_bytes
            free = min(free, max(0, total - usage.used_bytes))
        objects = usage.quota_objects or _UNBOUNDED_OBJECTS
        data = StatvfsData()
        data.f_bsize = data.f_frsize = STATFS_BLOCK_BYTES
        data.f_blocks = total // STATFS_BLOCK_BYTES
        data.f_bfree = data.f_bavail = free // STATFS_BLOCK_BYTES
        data.f_files = objects
        data.f_ffree = data.f_favail = max(0, objects - usage.used_objects)
        data.f_namemax = NAME_MAX_BYTES
        return data

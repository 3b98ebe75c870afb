"""Handlers of file data: read, write, flush, fsync, release."""

from __future__ import annotations

import os

from kvfs.commands import Sync
from kvfs.errors import KvfsError
from kvfs.fuse.errno_map import Context
from kvfs.fuse.guard import guarded
from kvfs.fuse.handles import Handle
from kvfs.fuse.opens import OpenHandlers
from kvfs.limits import BLOCK_BYTES


class FileHandlers(OpenHandlers):
    """Data of regular files. Writes go to staging, reads come from staging or from verified blocks."""

    @guarded(Context.READ)
    async def read(self, fh: int, off: int, size: int) -> bytes | bytearray | memoryview:
        """Less than `size` at the end of the file only. pyfuse3 copies the reply before anything else runs."""
        state = self.state
        handle = state.table.handle(fh)
        inode = handle.inode
        if handle.torn:
            await state.poisoned.tell(handle)
        staged = inode.staged
        if staged is not None:
            inode.shown_generation = staged.committed.generation
            return await state.staging.read(staged, off, size)
        attributes = inode.attributes or await state.refresh(inode)
        data = await state.reads.read(inode.ino, attributes.size, off, size)
        if attributes.size > state.verify_at_open_max_bytes and off == handle.next_offset:
            state.reads.look_ahead(inode.ino, attributes.size, (off + len(data)) // BLOCK_BYTES)
        handle.next_offset = off + len(data)
        if handle.generation == attributes.generation and not handle.flags & os.O_DIRECT:
            state.hints.note_served(inode.ino, attributes.generation, len(data))
        return data

    @guarded(Context.WRITE)
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """All of `buf` or an error, which poisons the file."""
        handle = self.state.table.handle(fh)
        inode = handle.inode
        await self.state.poisoned.tell(handle)
        file = inode.file
        if file is None:
            file = await self.state.file_for_writing(inode)
            await self.state.poisoned.tell(handle)
        if not handle.direct:  # the kernel shows these bytes to all cached handles from now on
            inode.shown_generation = file.committed.generation
        try:
            await self.state.staging.write(file, off, buf)
        except KvfsError:
            await self.state.poisoned.tell(handle)
            raise
        if handle.direct and inode.cached_handles:
            # The kernel dropped the range before this request; a reader may have brought older bytes back since.
            self.state.invalidations.inode(inode.ino)
        return len(buf)

    @guarded(Context.WRITE)
    async def flush(self, fh: int) -> None:
        """A descriptor is closed: what was written through this mount is published, or the error is told."""
        handle = self.state.table.handle(fh)
        if not handle.writable:
            return
        try:
            await self._store(handle)
        except KvfsError:
            if handle.lost is not None:
                handle.lost.told = True
            raise

    async def _store(self, handle: Handle) -> None:
        await self.state.poisoned.tell(handle)
        if handle.inode.file is not None:
            await self.state.publish(handle.inode.file)

    @guarded(Context.WRITE)
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Published, and safe from a power loss."""
        await self._store(self.state.table.handle(fh))
        await self.state.queue_pair.submit(Sync())

    @guarded(Context.WRITE)
    async def release(self, fh: int) -> None:
        """The last descriptor of this handle is gone."""
        handle = self.state.table.remove(fh)
        assert isinstance(handle, Handle)
        handle.inode.cached_handles -= not handle.direct
        if handle.generation:
            self.state.hints.note_served(handle.inode.ino, handle.generation, 0)
        await self.state.let_go(handle.inode)

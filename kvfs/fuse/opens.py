"""Handlers that open files: create, open."""

from __future__ import annotations

import os
import stat

from pyfuse3 import EntryAttributes, FileInfo, RequestContext

from kvfs.commands import AllocateIno, Attributes, GetAttributes, Ino, OpenObject, Placement
from kvfs.errors import BadRecordError, ExistsError, IsDirectoryError, KvfsError, NotFoundError
from kvfs.fuse.errno_map import Context
from kvfs.fuse.guard import guarded
from kvfs.fuse.handles import Handle, OpenInode
from kvfs.fuse.state import MountState, check_name, entry_of_file
from kvfs.openfile import OpenFile


class OpenHandlers:
    """How a regular file comes to have a handle."""

    state: MountState

    @guarded(Context.NAME)
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Open a name that the kernel does not know, with O_CREAT; it is pending until the first commit."""
        state = self.state
        check_name(name)
        state.table.check_room()
        pending = state.pending.get(parent_inode, name)
        existing = pending.attributes() if pending else await state.lookup(parent_inode, name)
        if existing is not None:  # another mount was faster
            if flags & os.O_EXCL:
                raise ExistsError("the name is taken")
            if stat.S_ISDIR(existing.mode):
                raise IsDirectoryError("the name is a directory")
            info = await self._open(existing.ino, flags, ctx)
            return info, await state.entry_of(existing.ino)
        file = await self.new_file(parent_inode, name, mode, ctx)
        inode = state.table.acquire_now(file.ino)
        inode.file = file
        file.serial, inode.told = inode.serial, True  # its commits tell it
        try:
            info = self._handle(inode, flags, keep_cache=False)
        except KvfsError as error:
            file.poison_with(error)
            await state.let_go(inode)
            raise
        state.pending.add(file)
        return info, entry_of_file(file)

    async def new_file(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> OpenFile:
        """An empty file that nobody has seen yet; `mode` has the umask applied (by the kernel)."""
        mode, gid = await self.state.ownership(parent, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        result = (await self.state.queue_pair.submit(AllocateIno())).result
        assert isinstance(result, Ino)
        now_ns = self.state.now_ns()
        attributes = Attributes(
            ino=result.ino,
            mode=mode,
            nlink=1,
            uid=ctx.uid,
            gid=gid,
            rdev=0,
            size=0,
            stored_bytes=0,
            atime_ns=now_ns,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
            generation=0,
        )
        entry = Placement(parent=parent, name=name)
        return OpenFile(attributes, entry=entry, published=False, on_poison=self.state.poisoned.note)

    @guarded(Context.LOOKUP)
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open an existing file. A file of KV-block size is fetched and verified before this returns."""
        self.state.table.check_room()
        return await self._open(inode, flags, ctx)

    async def _open(self, ino: int, flags: int, ctx: RequestContext) -> FileInfo:
        asked_anew = self.state.asked_anew
        try:
            info = await self._open_found(ino, flags)
        except (NotFoundError, BadRecordError) as error:
            if not await self._is_gone(ino):
                raise
            raise asked_anew.refusal(ctx.pid, ino) from error
        asked_anew.end(ctx.pid)
        return info

    async def _open_found(self, ino: int, flags: int) -> FileInfo:
        inode = await self.state.table.acquire(ino)
        try:
            keep_cache = await self._prepare(inode, flags)
            if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
                await self._truncate_opened(inode)
            generation = inode.attributes.generation if inode.staged is None and inode.attributes else 0
            return self._handle(inode, flags, keep_cache=keep_cache, generation=generation)
        except BaseException:
            await self.state.let_go(inode)
            raise

    async def _is_gone(self, ino: int) -> bool:
        """No name leads to the object any more, so that it is worth asking for the name anew."""
        try:
            await self.state.found(GetAttributes(ino=ino))
        except NotFoundError:
            return True
        return False

    async def _truncate_opened(self, inode: OpenInode) -> None:
        """O_TRUNC. Another writer's staging that is poisoned under our hands is not ours: begin again without it."""
        file = await self.state.file_for_writing(inode)
        try:
            await self.state.staging.truncate(file, 0)
        except KvfsError:
            if inode.file is file:
                raise
            await self.state.staging.truncate(await self.state.file_for_writing(inode), 0)

    async def _prepare(self, inode: OpenInode, flags: int) -> bool:
        """Learn the file's attributes, verify its data for a reader -> whether the kernel's cached data is current."""
        state = self.state
        if inode.staged is not None:
            state.hints.forget(inode.ino)
            return False
        reader = flags & os.O_ACCMODE == os.O_RDONLY
        inode.told = True
        attributes = await state.found(OpenObject(ino=inode.ino, serial=inode.serial, reading=reader))
        if inode.staged is not None:  # a writer began meanwhile
            state.hints.forget(inode.ino)
            return False
        state.note_current(inode, attributes)
        keep_cache = state.hints.note_open(inode.ino, attributes.generation)
        if reader:
            state.invalidations.accessed(inode.ino)
            cached = not flags & os.O_DIRECT and state.hints.is_served(
                inode.ino, attributes.generation, attributes.size
            )
            if not cached and attributes.size <= state.verify_at_open_max_bytes:
                await state.reads.verify(inode.ino, attributes.size)
        return keep_cache

    def _handle(self, inode: OpenInode, flags: int, *, keep_cache: bool, generation: int = 0) -> FileInfo:
        """A handle of its own for an acquired inode: write-only ones bypass the kernel's cache."""
        direct = flags & os.O_ACCMODE == os.O_WRONLY
        number = self.state.table.add(Handle(inode, flags, direct, 0 if direct else generation))
        inode.cached_handles += not direct
        return FileInfo(fh=number, direct_io=direct, keep_cache=keep_cache or direct)

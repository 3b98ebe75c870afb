"""What all handlers of a mount share, and the life of an open inode: acquire, commit, close."""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Callable
from typing import Final

import msgspec
from pyfuse3 import EntryAttributes, RequestContext

from kvfs.blockreads import BlockReads
from kvfs.commands import (
    Attributes,
    Command,
    Found,
    GetAttributes,
    Lookup,
    ReleaseUnlinked,
    Removed,
)
from kvfs.errors import InvalidArgumentError, KvfsError, NameTooLongError, NotFoundError
from kvfs.fuse.handles import AskedAnew, CacheHints, ChangeLog, OpenInode, OpenTable, RemovedDirectories
from kvfs.fuse.invalidation import Invalidations
from kvfs.fuse.pending import PendingNames
from kvfs.fuse.poisoned import PoisonedFiles
from kvfs.limits import BLOCK_BYTES, NAME_MAX_BYTES, VERIFY_AT_OPEN_MAX_BYTES
from kvfs.openfile import OpenFile
from kvfs.queuepair import QueuePair
from kvfs.staging import Staging
from kvfs.tracebacks import without_text

log = logging.getLogger(__name__)

CACHE_TIMEOUT_S: Final = 3600.0
"""How long the kernel keeps names and attributes; events revoke them earlier (docs/CONCURRENCY.md)."""


class MountState:
    """One mount: the queue pair, staging and reads behind it, and the tables of what is open and pending."""

    def __init__(
        self,
        queue_pair: QueuePair,
        reads: BlockReads,
        staging: Staging,
        *,
        verify_at_open_max_bytes: int = VERIFY_AT_OPEN_MAX_BYTES,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.queue_pair = queue_pair
        self.reads = reads
        self.staging = staging
        self.verify_at_open_max_bytes = verify_at_open_max_bytes
        self.now_ns = now_ns
        self.table = OpenTable()
        self.pending = PendingNames()
        self.hints = CacheHints()
        self.changes = ChangeLog()
        self.asked_anew = AskedAnew()
        self.removed_directories = RemovedDirectories()
        self.invalidations = Invalidations()
        self.poisoned = PoisonedFiles(self)

    # --- attributes ------------------------------------------------------------------------------------

    async def found(self, command: Command) -> Attributes:
        """Run a command that answers with attributes."""
        result = (await self.queue_pair.submit(command)).result
        assert isinstance(result, Found)
        return result.attributes

    async def entry_of(self, ino: int) -> EntryAttributes:
        """Attributes of `ino` as this mount sees them."""
        staged = self.table.staged(ino)
        if staged is not None:
            return entry_of_file(staged)
        try:
            return entry_of(await self.found(GetAttributes(ino=ino)))
        except NotFoundError:
            gone = self.removed_directories.get(ino) or self._outdated(ino)
            if gone is None:
                raise
            return entry_of(gone)

    def _outdated(self, ino: int) -> Attributes | None:
        """Last known attributes of an open object: fstat and read of it must not say that there is no such file."""
        inode = self.table.get(ino)
        return None if inode is None else inode.attributes or inode.outdated

    def overlaid(self, attributes: Attributes) -> EntryAttributes:
        """What the daemon reported, under what this mount has changed and not committed."""
        staged = self.table.staged(attributes.ino)
        return entry_of_file(staged) if staged else entry_of(attributes)

    async def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """Attributes of a committed name, None if there is none."""
        try:
            return await self.found(Lookup(parent=parent, name=name))
        except NotFoundError:
            return None

    async def ownership(self, parent: int, mode: int, ctx: RequestContext) -> tuple[int, int]:
        """(mode, gid) of a new object: a set-group-id directory gives its group, and to directories the bit too."""
        directory = await self.found(GetAttributes(ino=parent))
        if not directory.mode & stat.S_ISGID:
            return mode, ctx.gid
        return (mode | stat.S_ISGID if stat.S_ISDIR(mode) else mode), directory.gid

    # --- open inodes -----------------------------------------------------------------------------------

    async def refresh(self, inode: OpenInode) -> Attributes:
        """Attributes of a clean inode, asked for if they are not known."""
        attributes = inode.attributes
        if attributes is None:
            try:
                attributes = await self.found(GetAttributes(ino=inode.ino))
            except NotFoundError:
                if inode.outdated is None:
                    raise
                return inode.outdated  # reading its blocks says what became of it
            if inode.staged is None:
                self.note_current(inode, attributes)
        return attributes

    def note_current(self, inode: OpenInode, attributes: Attributes) -> None:
        """The daemon reported `attributes` of an inode that has nothing staged."""
        inode.attributes = attributes
        self.reads.note_generation(inode.ino, attributes.generation)
        if inode.file is not None:
            inode.file.adopt(attributes)

    async def file_for_writing(self, inode: OpenInode) -> OpenFile:
        """The inode's staging, made now if it has none. What a poisoned one left behind is discarded before."""
        while inode.file is None:
            poisoned = self.poisoned.get(inode.ino)
            if poisoned is not None:
                await self.poisoned.discard(poisoned)
            attributes = await self.refresh(inode)
            if not stat.S_ISREG(attributes.mode):
                raise InvalidArgumentError("only regular files have a size and data")
            if inode.file is None and self.poisoned.get(inode.ino) is None:  # other tasks may have been here meanwhile
                inode.file = OpenFile(attributes, unlinked=inode.unlinked, on_poison=self.poisoned.note)
        return inode.file

    async def publish(self, file: OpenFile) -> None:
        """Commit what was written to `file`, if anything. Raises what makes it impossible, now and later."""
        try:
            command = await self.staging.commit(file)
        except KvfsError:
            await self.poisoned.try_discard(file)
            raise
        if command is None:
            return
        if command.entry is not None:
            self.pending.remove(command.entry, file)
            self.changes.note(command.entry.parent)
        self.changes.note(file.ino)
        self.reads.note_generation(file.ino, file.committed.generation, same_content=True)
        inode = self.table.get(file.ino)
        if inode is not None:
            inode.attributes = file.committed

    async def let_go(self, inode: OpenInode) -> None:
        """One handle less; the last one stores or drops what is staged. Never raises KvfsError: nobody would see it."""
        inode.handles -= 1
        tried: OpenFile | None = None
        while inode.handles == 0:
            poisoned = self.poisoned.get(inode.ino)
            if inode.file is None and poisoned is tried:
                break
            inode.handles = 1  # ours, so that nobody forgets the inode while it is being closed
            try:
                if inode.file is not None:
                    await self._close(inode, inode.file)
                elif poisoned is not None:
                    await self.poisoned.try_discard(poisoned)
                    tried = poisoned
            finally:
                inode.handles -= 1
        if inode.handles == 0:
            self.table.forget(inode)
            if inode.unlinked:
                self.reads.drop(inode.ino)
            for command in inode.last_commands():
                await self._last_rites(command)

    async def _close(self, inode: OpenInode, file: OpenFile) -> None:
        try:
            if file.dirty and not file.unlinked:
                await self.publish(file)
            elif file.dirty or not file.published:
                await self.staging.discard(file)
        except KvfsError as error:
            log.warning("closing an object failed: %s", error.status.name)
        except Exception as error:
            log.error("closing an object failed unexpectedly: %s", without_text(error))  # noqa: TRY400 - kvfs.tracebacks
            inode.file = None
        if inode.handles == 1 and inode.file is file and (not file.dirty or file.unlinked):
            inode.file = None

    async def _last_rites(self, command: Command) -> None:
        try:
            await self.queue_pair.submit(command)
        except KvfsError as error:
            log.warning("telling that an object is closed failed: %s", error.status.name)

    # --- removed names ---------------------------------------------------------------------------------

    def detach(self, file: OpenFile) -> None:
        """A pending file loses its name before it was published. The caller holds its commit_lock."""
        assert file.entry is not None
        self.pending.remove(file.entry, file)
        file.entry = None
        file.unlinked = True

    async def note_removed(self, removed: Removed, *, keep_open: bool) -> None:
        """The daemon took a name away from an object."""
        if not removed.ino:
            return
        self.changes.note(removed.ino)
        inode = self.table.get(removed.ino)
        if inode is None:
            if removed.nlink == 0:
                self.reads.drop(removed.ino)
                self.hints.forget(removed.ino)
                if keep_open:
                    await self._last_rites(ReleaseUnlinked(ino=removed.ino))
            return
        inode.unlinked = removed.nlink == 0
        if inode.attributes is not None:
            inode.attributes = msgspec.structs.replace(inode.attributes, nlink=removed.nlink)
        if inode.file is not None:
            inode.file.unlinked = inode.unlinked
            inode.file.committed = msgspec.structs.replace(inode.file.committed, nlink=removed.nlink)


def entry_of(attributes: Attributes, timeout_s: float = CACHE_TIMEOUT_S) -> EntryAttributes:
    """pyfuse3's form of attributes; the kernel keeps them for `timeout_s`."""
    entry = EntryAttributes()
    entry.st_ino = attributes.ino
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size
    entry.st_blocks = (attributes.stored_bytes + 511) // 512
    entry.st_blksize = BLOCK_BYTES
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    entry.entry_timeout = CACHE_TIMEOUT_S
    entry.attr_timeout = timeout_s
    return entry


def entry_of_file(file: OpenFile) -> EntryAttributes:
    """Attributes of a file that is being written: the kernel asks again every time."""
    return entry_of(file.attributes(), timeout_s=0.0)


def check_name(name: bytes) -> None:
    """Raise NameTooLongError for a name that no directory can hold (the kernel lets up to 1,024 bytes through)."""
    if len(name) > NAME_MAX_BYTES:
        raise NameTooLongError(f"a name of {len(name)} bytes, at most {NAME_MAX_BYTES}")

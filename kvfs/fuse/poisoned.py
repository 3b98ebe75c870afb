"""Files that lost a write: from that moment on their name and object are what the daemon has, for everybody.

Who had the file open is told (`Handle.lost`); who opens it anew sees the committed version, or no such file. What was
staged is given back to the daemon by the first call that reports the failure, so that a store that was refused for
space takes none from the next one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kvfs.errors import KvfsError
from kvfs.fuse.handles import Handle, OpenInode
from kvfs.openfile import OpenFile

if TYPE_CHECKING:
    from kvfs.fuse.state import MountState

log = logging.getLogger(__name__)


class PoisonedFiles:
    """Takes poisoned files out of a mount's tables, and remembers what is still to be discarded of them."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self._staged: dict[int, OpenFile] = {}
        """Object -> a poisoned file of which the daemon may still hold uncommitted blocks."""

    def get(self, ino: int) -> OpenFile | None:
        """The poisoned file of which something is still to be discarded."""
        return self._staged.get(ino)

    def note(self, file: OpenFile) -> None:
        """`OpenFile.on_poison`: `file` has just been poisoned."""
        state = self._state
        self._staged[file.ino] = file
        entry = file.entry
        if entry is not None and state.pending.get(entry.parent, entry.name) is file:
            state.pending.lose(entry, file)
            state.changes.note(entry.parent)
        state.changes.note(file.ino)
        state.reads.drop(file.ino)
        state.hints.forget(file.ino)
        state.invalidations.inode(file.ino)
        inode = state.table.get(file.ino)
        if inode is not None:
            self._take_from(inode, file)

    def _take_from(self, inode: OpenInode, file: OpenFile) -> None:
        torn = not file.published or inode.shown_generation == file.committed.generation
        for handle in self._state.table.handles_of(inode):
            handle.lost = file
            handle.torn = torn or handle.writable
            handle.generation = 0  # the kernel may have cached what was staged
        inode.failed = file
        inode.file = None
        inode.attributes = file.committed if file.published else None

    async def discard(self, file: OpenFile) -> None:
        """Let the daemon forget what it holds of a poisoned file. Raises what Discard raises: to be tried again."""
        await self._state.staging.discard(file)
        if self._staged.get(file.ino) is file:
            del self._staged[file.ino]

    async def try_discard(self, file: OpenFile) -> None:
        """`discard` for whoever has an error to report already: its own failure is only logged."""
        try:
            await self.discard(file)
        except KvfsError as error:
            log.warning("discarding a poisoned file failed: %s", error.status.name)

    async def tell(self, handle: Handle) -> None:
        """Raise the poison of what the handle had open, if there is any, once that is discarded."""
        if handle.lost is not None:
            await self.try_discard(handle.lost)
            handle.lost.check_poison()

    def check_name(self, inode: OpenInode | None) -> None:
        """Raise the poison of an object that is about to be renamed, if its writer has not been told by a close yet."""
        if inode is None or inode.failed is None or inode.failed.told:
            return
        if any(handle.lost is inode.failed and handle.writable for handle in self._state.table.handles_of(inode)):
            inode.failed.check_poison()

"""Handlers of directory listings: opendir, readdir, releasedir, fsyncdir.

A listing is `.` and `..`, the names that were pending when it began, then the daemon's listing without those. Cookies
from 2^62 on are ours, smaller ones the daemon's, so that any offset resumes without state.
"""

from __future__ import annotations

import contextlib
from typing import Final

from pyfuse3 import EntryAttributes, ReaddirToken, RequestContext, readdir_reply

from kvfs.commands import DirectoryEntry, DirectoryListing, GetAttributes, ReadDirectory, Sync
from kvfs.errors import InvalidArgumentError, NotFoundError
from kvfs.fuse.errno_map import Context
from kvfs.fuse.guard import guarded
from kvfs.fuse.handles import DirectoryHandle
from kvfs.fuse.state import MountState, entry_of, entry_of_file
from kvfs.limits import DIRECTORY_BATCH_MAX

OWN_COOKIES: Final = 1 << 62
"""The daemon's cookies are below (kvfs.commands.DirectoryEntry)."""
_DOTS: Final = (b".", b"..")
_BUSY_BATCH: Final = 32
"""Batch of a directory that changes while it is listed: most of a larger one would be read in vain."""


class DirectoryHandlers:
    """Listings, in batches, so that a million names take bounded memory."""

    state: MountState

    @guarded(Context.NAME)
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """A handle; the listing begins when it is read from offset 0."""
        return self.state.table.add(DirectoryHandle(inode))

    @guarded(Context.NAME)
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Entries after cookie `start_id` until the reply is full."""
        handle = self.state.table.directory(fh)
        if start_id < 0:
            raise InvalidArgumentError(f"directory offset {start_id}")
        cookie = 0
        if start_id == 0:
            handle.begin(self.state.pending.snapshot(handle.ino))
        if start_id == 0 or start_id >= OWN_COOKIES:
            position = start_id - OWN_COOKIES + 1 if start_id else 0
            if not await self._reply_own(handle, position, token):
                return
        else:
            cookie = start_id
        await self._reply_daemon(handle, cookie, token)

    async def _reply_own(self, handle: DirectoryHandle, position: int, token: ReaddirToken) -> bool:
        """Entries that the daemon does not list -> whether there was room for all."""
        if position < len(_DOTS):
            directory = entry_of(await self.state.found(GetAttributes(ino=handle.ino)))
            for index in range(position, len(_DOTS)):
                if not readdir_reply(token, _DOTS[index], directory, OWN_COOKIES + index):
                    return False
        first = max(0, position - len(_DOTS))
        for index, (name, file) in enumerate(handle.pending[first:], start=first):
            if self.state.pending.get(handle.ino, name) is not file:  # published meanwhile, or gone
                handle.listed_pending.discard(name)
                continue
            if not readdir_reply(token, name, entry_of_file(file), OWN_COOKIES + len(_DOTS) + index):
                return False
            handle.listed_pending.add(name)
        return True

    async def _reply_daemon(self, handle: DirectoryHandle, cookie: int, token: ReaddirToken) -> None:
        while await self._load(handle, cookie):
            while handle.batch_position < len(handle.batch):
                entry = handle.batch[handle.batch_position]
                attributes = await self._current(handle, entry)
                if attributes is not None and not readdir_reply(token, entry.name, attributes, entry.cookie):
                    return
                cookie = handle.batch_start = entry.cookie
                handle.batch_position += 1

    async def _current(self, handle: DirectoryHandle, entry: DirectoryEntry) -> EntryAttributes | None:
        """Attributes of a listed name as of now, None if it is not to be listed."""
        if entry.name in handle.listed_pending:
            return None
        state, ino = self.state, entry.attributes.ino
        if state.changes.changed_since(ino, handle.batch_sequence):
            with contextlib.suppress(NotFoundError):
                return await state.entry_of(ino)
            return None
        return state.overlaid(entry.attributes)

    async def _load(self, handle: DirectoryHandle, cookie: int) -> bool:
        """Have a batch with entries after `cookie` -> False at the end of the directory.

        A batch that is older than a change of the directory is read again: a name that is gone must not come back.
        """
        changes = self.state.changes
        changed = changes.changed_since(handle.ino, handle.batch_sequence)
        if handle.batch_start == cookie and not changed:
            if handle.batch_position < len(handle.batch):
                return True
            if handle.batch_end:
                return False
        limit = _BUSY_BATCH if changed and handle.batch else DIRECTORY_BATCH_MAX
        sequence = changes.sequence
        listing = (await self.state.queue_pair.submit(ReadDirectory(ino=handle.ino, cookie=cookie, limit=limit))).result
        assert isinstance(listing, DirectoryListing)
        handle.batch, handle.batch_end, handle.batch_sequence = listing.entries, listing.end, sequence
        handle.batch_start, handle.batch_position = cookie, 0
        return bool(listing.entries)

    @guarded(Context.NAME)
    async def releasedir(self, fh: int) -> None:
        """The directory handle is gone."""
        self.state.table.remove(fh)

    @guarded(Context.WRITE)
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names survive a power loss."""
        await self.state.queue_pair.submit(Sync())

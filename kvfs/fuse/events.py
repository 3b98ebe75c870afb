"""The events of the daemon: what changed behind this mount's back is dropped here and revoked in the kernel."""

from __future__ import annotations

import logging

from kvfs.commands import EntryGone, Event, ObjectChanged, OpenObject
from kvfs.errors import KvfsError, PoisonedError
from kvfs.fuse.state import MountState

log = logging.getLogger(__name__)


async def follow_events(state: MountState) -> None:
    """Work events off until cancelled."""
    while True:
        await state.queue_pair.wait_event()
        for event in state.queue_pair.take_events():
            apply_event(state, event)
            if event == ObjectChanged(0):  # after a reconnection the daemon may be another process
                await tell_opens(state)


async def tell_opens(state: MountState) -> None:
    """Tell the daemon again what is open here, so that it is not evicted."""
    for inode in state.table.inodes():
        if inode.told and state.table.get(inode.ino) is inode:
            try:
                await state.queue_pair.submit(OpenObject(ino=inode.ino, serial=inode.serial, reading=False))
            except KvfsError as error:
                log.warning("telling that an object is open failed: %s", error.status.name)


def lose_staged(state: MountState) -> None:
    """The daemon lost what was not committed: every file that counts on it is never published."""
    for inode in state.table.inodes():
        file = inode.file
        if file is not None and (file.sent or not file.published):
            file.poison_with(PoisonedError("the daemon lost what was written and not stored yet"))
    # a block that is on its way fails by itself, and poisons its file then


def apply_event(state: MountState, event: Event) -> None:
    """Drop what one event makes stale."""
    match event:
        case EntryGone(parent=parent, name=name):
            state.changes.note(parent)
            state.invalidations.entry(parent, name)
        case ObjectChanged(ino=0):  # events were lost: nothing that is cached may be trusted
            state.changes.note_all()
            state.reads.drop_all()
            state.hints.clear()
            for inode in state.table.inodes():
                inode.doubt()
                state.invalidations.inode(inode.ino)
            state.invalidations.everything()
        case ObjectChanged(ino=ino):
            state.changes.note(ino)
            state.reads.drop(ino)
            state.hints.forget(ino)
            opened = state.table.get(ino)
            if opened is not None:
                opened.doubt()
            state.invalidations.inode(ino)

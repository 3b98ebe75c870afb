"""The events of the daemon: what changed behind this mount's back is dropped here and revoked in the kernel."""

from __future__ import annotations

from kvfs.commands import EntryGone, Event, ObjectChanged
from kvfs.fuse.state import MountState


async def follow_events(state: MountState) -> None:
    """Work events off until cancelled."""
    while True:
        await state.queue_pair.wait_event()
        for event in state.queue_pair.take_events():
            apply_event(state, event)


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

"""The pyfuse3 handlers of a mount, put together from their families."""

from __future__ import annotations

from collections.abc import Sequence

import pyfuse3
import trio

from kvfs.fuse.directories import DirectoryHandlers
from kvfs.fuse.names import RenameHandlers
from kvfs.fuse.nodes import NodeHandlers
from kvfs.fuse.state import MountState
from kvfs.fuse.xattrs import XattrHandlers


class Operations(NodeHandlers, RenameHandlers, DirectoryHandlers, XattrHandlers, pyfuse3.Operations):  # type: ignore[misc]  # precise types of handlers
    """What the kernel calls. Handlers that are missing here are refused by pyfuse3 (docs/ERRORS.md)."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, state: MountState) -> None:
        super().__init__()
        self.state = state
        self.initialised = trio.Event()

    def init(self) -> None:
        """The kernel's INIT request is about to be answered."""
        self.initialised.set()

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept per looked-up inode, so nothing is forgotten. Must not raise."""

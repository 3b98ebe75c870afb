"""A null filesystem on pyfuse3: keeps names and sizes, throws data away, reads zeros: the price of FUSE in Python.

`python -m kvfs_tools.quickstart.nullfs MOUNTPOINT` serves it until it is unmounted. It is the calibration beside which
the quickstart and tests/bench measure kvfs: mount options and the modes in which files are opened are those of kvfs, so
what it cannot do on a machine, no filesystem on pyfuse3 can.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyfuse3
import trio
from pyfuse3 import FUSEError, InodeT

from kvfs.fuse.allocator import keep_large_allocations

BLOCK_BYTES = 1 << 20
CACHE_SECONDS = 3600.0


@dataclass(slots=True)
class _Node:
    mode: int
    uid: int
    gid: int
    size: int = 0
    entries: dict[bytes, int] = field(default_factory=dict)


class NullFilesystem(pyfuse3.Operations):
    """Files without content, in directories that exist in memory only."""

    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self._nodes = {int(pyfuse3.ROOT_INODE): _Node(stat.S_IFDIR | 0o777, os.getuid(), os.getgid())}
        self._numbers = itertools.count(int(pyfuse3.ROOT_INODE) + 1)
        self._zeros = memoryview(bytes(BLOCK_BYTES))

    def _attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        node = self._nodes[ino]
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = InodeT(ino)
        attributes.st_mode = pyfuse3.ModeT(node.mode)
        attributes.st_uid, attributes.st_gid = node.uid, node.gid
        attributes.st_size = node.size
        attributes.st_nlink = 1
        attributes.st_blksize = BLOCK_BYTES
        attributes.entry_timeout = attributes.attr_timeout = CACHE_SECONDS
        return attributes

    def _add(self, parent: int, name: bytes, mode: int, ctx: Any) -> int:
        ino = next(self._numbers)
        self._nodes[ino] = _Node(mode, ctx.uid, ctx.gid)
        self._nodes[parent].entries[name] = ino
        return ino

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """Find a name."""
        ino = self._nodes[parent_inode].entries.get(name)
        if ino is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes(ino)

    async def getattr(self, inode: InodeT, ctx: Any) -> pyfuse3.EntryAttributes:
        """Attributes of an object."""
        return self._attributes(inode)

    async def setattr(self, inode: InodeT, attr: Any, fields: Any, fh: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        """Take a new size; everything else stays as it is."""
        if fields.update_size:
            self._nodes[inode].size = attr.st_size
        return self._attributes(inode)

    async def mkdir(self, parent_inode: InodeT, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        return self._attributes(self._add(parent_inode, name, stat.S_IFDIR | mode, ctx))

    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file and open it."""
        ino = self._add(parent_inode, name, stat.S_IFREG | mode, ctx)
        return await self.open(InodeT(ino), flags, ctx), self._attributes(ino)

    async def open(self, inode: InodeT, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Open a file as kvfs does: one that is only written past the kernel's cache, any other through it."""
        direct = flags & os.O_ACCMODE == os.O_WRONLY
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=direct, keep_cache=True)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Note how long the file is now."""
        node = self._nodes[fh]
        node.size = max(node.size, off + len(buf))
        return len(buf)

    async def read(self, fh: int, off: int, size: int) -> Any:
        """Zeros, up to the file's size."""
        return self._zeros[: max(0, min(size, self._nodes[fh].size - off))]

    async def flush(self, fh: int) -> None:
        """Nothing to flush."""

    async def release(self, fh: int) -> None:
        """Nothing to release."""

    async def forget(self, inode_list: Any) -> None:
        """Nothing to forget."""

    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: Any) -> None:
        """Remove a name."""
        if self._nodes[parent_inode].entries.pop(name, None) is None:
            raise FUSEError(errno.ENOENT)

    async def rename(
        self, parent_inode_old: InodeT, name_old: bytes, parent_inode_new: InodeT, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        """Move a name."""
        ino = self._nodes[parent_inode_old].entries.pop(name_old, None)
        if ino is None:
            raise FUSEError(errno.ENOENT)
        self._nodes[parent_inode_new].entries[name_new] = ino

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        """Enough for a program that asks for the block size."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_namemax = 255
        return data


def serve(filesystem: NullFilesystem, mountpoint: str) -> None:
    """Mount and serve until it is unmounted, with the memory allocator and the number of tasks of kvfs."""
    keep_large_allocations()
    pyfuse3.init(filesystem, mountpoint, set(pyfuse3.default_options) | {"fsname=null"})
    try:
        trio.run(partial(pyfuse3.main, min_tasks=4))
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    serve(NullFilesystem(), sys.argv[1])

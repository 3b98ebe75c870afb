"""A FUSE filesystem that does nothing, on the same pyfuse3 and with the same modes as kvfs: the floor of a mount.

    python tests/bench/nullfs.py MOUNTPOINT

It remembers names and sizes, throws written bytes away and reads zeros. What kvfs takes longer than this is ours.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys

import pyfuse3
import trio

BLOCK_BYTES = 1 << 20
ZEROS = memoryview(bytes(BLOCK_BYTES))


class NullOperations(pyfuse3.Operations):
    """Names in dictionaries, no contents."""

    def __init__(self) -> None:
        super().__init__()
        self._inos = itertools.count(2)
        self._names: dict[tuple[int, bytes], int] = {}
        self._sizes: dict[int, int] = {}
        self._directories = {pyfuse3.ROOT_INODE}

    def _attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        directory = ino in self._directories
        entry.st_ino = pyfuse3.InodeT(ino)
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o777 if directory else stat.S_IFREG | 0o666)
        entry.st_nlink = 2 if directory else 1
        entry.st_size = self._sizes.get(ino, 0)
        entry.st_blksize = BLOCK_BYTES
        entry.entry_timeout = entry.attr_timeout = 3600
        return entry

    async def getattr(self, inode, ctx=None):
        return self._attributes(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        if fields.update_size:
            self._sizes[inode] = attr.st_size
        return self._attributes(inode)

    async def lookup(self, parent_inode, name, ctx=None):
        ino = self._names.get((parent_inode, name))
        if ino is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(ino)

    async def mkdir(self, parent_inode, name, mode, ctx):
        ino = self._names[parent_inode, name] = next(self._inos)
        self._directories.add(ino)
        return self._attributes(ino)

    async def create(self, parent_inode, name, mode, flags, ctx):
        ino = self._names[parent_inode, name] = next(self._inos)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(ino), direct_io=True), self._attributes(ino)

    async def open(self, inode, flags, ctx):
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=writes, keep_cache=not writes)

    async def write(self, fh, off, buf):
        self._sizes[fh] = max(self._sizes.get(fh, 0), off + len(buf))
        return len(buf)

    async def read(self, fh, off, size):
        return ZEROS[: max(0, min(size, self._sizes.get(fh, 0) - off))]

    async def flush(self, fh):
        pass

    async def release(self, fh):
        pass

    async def forget(self, inode_list):
        pass

    async def rename(self, parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx):
        self._names[parent_inode_new, name_new] = self._names.pop((parent_inode_old, name_old))

    async def unlink(self, parent_inode, name, ctx):
        del self._names[parent_inode, name]

    async def statfs(self, ctx):
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 30
        data.f_namemax = 255
        return data


def main() -> None:
    """Serve until unmounted."""
    options = set(pyfuse3.default_options) | {"fsname=null", "allow_other"}
    pyfuse3.init(NullOperations(), sys.argv[1], options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()

"""The null filesystem opens files in the modes of kvfs, so that it is the floor of what kvfs can reach."""

import os
from types import SimpleNamespace

import pytest
from pyfuse3 import ROOT_INODE, InodeT

from kvfs_tools.quickstart.nullfs import NullFilesystem

CTX = SimpleNamespace(uid=1000, gid=100)


@pytest.mark.parametrize(("flags", "past_the_cache"), [(os.O_RDONLY, False), (os.O_WRONLY, True), (os.O_RDWR, False)])
async def test_only_files_that_are_only_written_go_past_the_cache(flags: int, past_the_cache: bool) -> None:
    filesystem = NullFilesystem()
    created, attributes = await filesystem.create(ROOT_INODE, b"f", 0o640, flags, CTX)
    opened = await filesystem.open(InodeT(attributes.st_ino), flags, CTX)
    assert (created.direct_io, opened.direct_io) == (past_the_cache, past_the_cache)
    assert opened.keep_cache, "what was read once is read from the kernel's cache, as on kvfs"
    assert (attributes.st_uid, attributes.st_gid, attributes.st_mode & 0o777) == (1000, 100, 0o640)

"""Damage to the media between two mounts: every block is exact or a clean miss, and one flip costs one block."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import mountlib
from tests.conformance.clients import MIB, expect_errno, outcome, pattern, read_whole, store_by_rename
from tests.mount.conftest import MakePool

pytestmark = pytest.mark.mount
Mounted = Callable[[mountlib.Mount], Path]
COUNT = 40
SIZE = MIB + 12_345


def filled(make_pool: MakePool, mounted: Mounted) -> tuple[mountlib.PoolFixture, mountlib.Mount]:
    """A pool with COUNT blocks, cleanly unmounted."""
    pool = make_pool("--size", "256M")
    mount = pool.mount("engine")
    root = mounted(mount)
    for number in range(COUNT):
        store_by_rename(root / f"{number}.bin", pattern(number, SIZE))
    mount.stop()
    return pool, mount


def medium_of(pool: mountlib.PoolFixture) -> Path:
    """The pool's one medium file: its largest file."""
    return max(pool.pool.iterdir(), key=lambda path: path.stat().st_size)


def flip_bytes(medium: Path, offsets: list[int]) -> None:
    with medium.open("r+b") as stream:
        for offset in offsets:
            stream.seek(offset)
            byte = stream.read(1)
            stream.seek(offset)
            stream.write(bytes([byte[0] ^ 0x10]))


def stored_extent(medium: Path) -> list[int]:
    """Offsets of 4 KiB that hold something."""
    with medium.open("rb") as stream:
        data = stream.read(128 * MIB)
    return [start for start in range(0, len(data), 4096) if data.count(0, start, start + 4096) < 1000]


def survivors(root: Path) -> int:
    """Blocks that are exact; everything else must be a miss that says ENOENT, and stays one."""
    exact = 0
    for number in range(COUNT):
        path = root / f"{number}.bin"
        code, content = outcome(read_whole, path, SIZE)
        if code == 0:
            assert content == pattern(number, SIZE), f"block {number}: wrong bytes"
            exact += 1
        else:
            assert code == errno.ENOENT, f"block {number}: {errno.errorcode[code]}"
            assert not os.access(path, os.F_OK), "a bad block is still found by lookup"
            expect_errno(errno.ENOENT, os.stat, path)
            store_by_rename(path, pattern("again", 4096))
            assert read_whole(path, 4096) == pattern("again", 4096)
    return exact


@pytest.mark.parametrize("flips", [1, 8])
def test_flipped_bytes_cost_at_most_one_block_each(make_pool: MakePool, mounted: Mounted, flips: int) -> None:
    pool, mount = filled(make_pool, mounted)
    rng = random.Random(flips)
    offsets = [start + rng.randrange(4096) for start in rng.sample(stored_extent(medium_of(pool))[8:], flips)]
    flip_bytes(medium_of(pool), offsets)
    mount.start()
    assert COUNT - flips <= survivors(mount.mountpoint) <= COUNT


def test_zeroed_range_is_a_miss_and_the_rest_is_kept(make_pool: MakePool, mounted: Mounted) -> None:
    pool, mount = filled(make_pool, mounted)
    extent = stored_extent(medium_of(pool))
    with medium_of(pool).open("r+b") as stream:
        stream.seek(extent[len(extent) // 2])
        stream.write(bytes(3 * MIB))
    mount.start()
    exact = survivors(mount.mountpoint)
    assert COUNT - 6 <= exact < COUNT


def test_swapped_stretches_never_show_wrong_bytes(make_pool: MakePool, mounted: Mounted) -> None:
    """Two aligned stretches of stored records change places: valid records, in the wrong place."""
    pool, mount = filled(make_pool, mounted)
    extent = stored_extent(medium_of(pool))
    first, second, length = extent[len(extent) // 4], extent[len(extent) // 2], 2 * MIB
    with medium_of(pool).open("r+b") as stream:
        stream.seek(first)
        one = stream.read(length)
        stream.seek(second)
        two = stream.read(length)
        stream.seek(first)
        stream.write(two)
        stream.seek(second)
        stream.write(one)
    mount.start()
    assert COUNT - 12 <= survivors(mount.mountpoint) < COUNT


def test_medium_rolled_back_never_shows_old_bytes(make_pool: MakePool, mounted: Mounted) -> None:
    """The medium of yesterday under the catalog of today: what is newer than the medium is a miss."""
    pool, mount = filled(make_pool, mounted)
    old = medium_of(pool).read_bytes()
    mount.start()
    for number in range(0, COUNT, 4):
        store_by_rename(mount.mountpoint / f"{number}.bin", pattern(f"new {number}", SIZE))
    mount.stop()
    medium_of(pool).write_bytes(old)
    try:
        mount.start()
    except mountlib.MountError as refusal:
        assert "medium" in str(refusal)  # noqa: PT017 - a refusal that says so is as good
        return
    for number in range(COUNT):
        code, content = outcome(read_whole, mount.mountpoint / f"{number}.bin", SIZE)
        if number % 4 == 0:
            assert code == errno.ENOENT
        else:
            assert code != 0 or content == pattern(number, SIZE)


def test_large_file_with_a_bad_block_gives_eio_only_there(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool("--size", "256M")
    mount = pool.mount("engine", "verify_at_open_max=1M")
    root = mounted(mount)
    store_by_rename(root / "large", pattern("large", 16 * MIB))
    mount.stop()
    extent = stored_extent(medium_of(pool))
    flip_bytes(medium_of(pool), [extent[len(extent) // 2] + 100])
    mount.start()
    descriptor = os.open(root / "large", os.O_RDONLY | os.O_DIRECT)
    results = [outcome(os.pread, descriptor, MIB, block * MIB) for block in range(16)]
    os.close(descriptor)
    codes = [code for code, _ in results]
    assert set(codes) == {0, errno.EIO}, codes
    wanted = pattern("large", 16 * MIB)
    for block, (code, content) in enumerate(results):
        assert code == errno.EIO or content == wanted[block * MIB : (block + 1) * MIB]
    expect_errno(errno.ENOENT, os.open, root / "large", os.O_RDONLY)

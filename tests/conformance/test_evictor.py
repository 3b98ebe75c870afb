"""External evictors: walk by access and modification time, statvfs for pressure, unlink."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.conformance.clients import MIB, pattern, read_whole, store_by_rename
from tests.conformance.conftest import Target


def oldest_first(root: Path) -> list[Path]:
    found: list[tuple[int, Path]] = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory) / name
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def test_walk_by_modification_time(target: Target) -> None:
    base = time.time_ns() - 3600 * 10**9
    for number in range(12):
        path = target / f"{number % 3}" / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        store_by_rename(path, pattern(number, 10_000))
        os.utime(path, ns=(base + number * 10**9, base + number * 10**9))
    assert [path.name for path in oldest_first(target.path)] == [f"{number}.bin" for number in range(12)]
    target.remount()
    assert [path.name for path in oldest_first(target.path)] == [f"{number}.bin" for number in range(12)]


def test_new_files_have_present_times(target: Target) -> None:
    before = time.time()
    path = target / "x.bin"
    store_by_rename(path, b"x" * 4096)
    after = time.time()
    status = path.stat()
    for stamp in (status.st_atime, status.st_mtime, status.st_ctime):
        assert before - 2 <= stamp <= after + 2


def test_read_never_moves_access_time_back(target: Target) -> None:
    path = target / "x.bin"
    store_by_rename(path, b"x" * 4096)
    first = path.stat().st_atime_ns
    read_whole(path, 4096)
    assert path.stat().st_atime_ns >= first


def test_access_time_follows_use_of_an_old_block(target: Target) -> None:
    """An evictor that goes by atime must see that a block stored long ago was read just now (relatime's rule)."""
    path = target / "x.bin"
    store_by_rename(path, b"x" * 4096)
    old = time.time_ns() - 48 * 3600 * 10**9
    os.utime(path, ns=(old, old))
    target.remount()
    read_whole(path, 4096)
    target.remount()
    assert path.stat().st_atime_ns > old
    assert path.stat().st_mtime_ns == old


def test_statvfs_shows_use_and_room(target: Target) -> None:
    shown = os.statvfs(target.path)
    assert shown.f_bsize == 4096
    assert shown.f_namemax == 255
    assert shown.f_blocks > 0
    assert shown.f_blocks >= shown.f_bfree >= shown.f_bavail > 0
    assert shown.f_files > shown.f_ffree > 0


def test_statvfs_follows_stores_and_unlinks(target: Target) -> None:
    def free_bytes() -> int:
        shown = os.statvfs(target.path)
        return shown.f_bfree * shown.f_frsize

    if not target.kvfs:
        pytest.skip("other users of the disk move its figures")
    before = free_bytes()
    for number in range(8):
        store_by_rename(target / f"{number}", pattern(number, 2 * MIB))
    used = before - free_bytes()
    assert used >= 16 * MIB
    assert used <= 20 * MIB
    for number in range(8):
        os.unlink(target / f"{number}")
    assert free_bytes() >= before - 4 * MIB


def test_unlink_of_the_oldest_while_the_walk_goes_on(target: Target) -> None:
    for number in range(300):
        store_by_rename(target / f"{number:04d}.bin", b"x" * 100)
    with os.scandir(target.path) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(target.path) == []

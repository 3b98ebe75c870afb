"""Eviction seen through a real mount: a miss like any other, names and data gone together, open files untouched."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import mountlib
from tests.conformance.clients import MIB, expect_errno, pattern, read_whole, store_by_rename
from tests.mount.conftest import MakePool

pytestmark = pytest.mark.mount
Mounted = Callable[[mountlib.Mount], Path]


def name_of(number: int) -> str:
    return f"{number:03d}.bin"


def fill(root: Path, numbers: range, size: int = MIB) -> None:
    for number in numbers:
        store_by_rename(root / name_of(number), pattern(number, size))


def there(root: Path, numbers: range) -> list[int]:
    listed = set(os.listdir(root))
    return [number for number in numbers if name_of(number) in listed]


def eventually(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    """The kernel is told of what is gone a moment after it went."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "still not so"
        time.sleep(0.02)


def test_a_tenant_at_its_quota_goes_on_storing_and_loses_its_oldest(make_pool: MakePool, mounted: Mounted) -> None:
    mount = make_pool().mount("engine", "quota=8M")
    root = mounted(mount)
    fill(root, range(6))
    assert read_whole(root / name_of(0), MIB) == pattern(0, MIB)
    fill(root, range(6, 12))
    eventually(lambda: len(there(root, range(12))) == 7)  # 8 are above the high watermark, 98 % of the quota
    kept = there(root, range(12))
    assert 0 in kept, "it was read, so it is younger than 1"
    assert {9, 10, 11} <= set(kept)
    assert not {1, 2, 3} & set(kept)
    for number in kept:
        assert read_whole(root / name_of(number), MIB) == pattern(number, MIB)
    assert not os.access(root / name_of(1), os.F_OK)
    expect_errno(errno.ENOENT, os.open, root / name_of(1), os.O_RDONLY)
    mount.kill()
    mount.start()
    assert there(root, range(12)) == kept
    fill(root, range(20, 24))
    assert {20, 21, 22, 23} <= set(there(root, range(20, 24)))
    assert os.statvfs(root).f_blocks * os.statvfs(root).f_frsize == 8 * MIB


def test_an_open_file_is_not_evicted_and_a_closed_one_is(make_pool: MakePool, mounted: Mounted) -> None:
    root = mounted(make_pool().mount("engine", "quota=8M"))
    fill(root, range(2))
    descriptor = os.open(root / name_of(0), os.O_RDONLY)
    writer = os.open(root / name_of(1), os.O_RDWR)
    try:
        fill(root, range(10, 22))
        assert there(root, range(2)) == [0, 1]
        assert os.pread(descriptor, 2 * MIB, 0) == pattern(0, MIB)
        os.pwrite(writer, b"new", 0)
    finally:
        os.close(descriptor)
        os.close(writer)
    assert read_whole(root / name_of(1), MIB)[:4] == b"new" + pattern(1, MIB)[3:4]
    fill(root, range(22, 34))
    assert there(root, range(2)) == []


def test_a_full_pool_goes_on_storing(make_pool: MakePool, mounted: Mounted) -> None:
    root = mounted(make_pool("--size", "64M").mount("engine"))
    fill(root, range(60), 2 * MIB)
    assert read_whole(root / name_of(59), 2 * MIB) == pattern(59, 2 * MIB)
    assert len(there(root, range(60))) >= 8
    for number in there(root, range(60)):
        assert read_whole(root / name_of(number), 2 * MIB) == pattern(number, 2 * MIB)


def test_pin_time_to_live_and_state_through_a_mount(make_pool: MakePool, mounted: Mounted) -> None:
    mount = make_pool().mount("engine", "quota=8M")
    root = mounted(mount)
    os.mkdir(root / "pinned")
    os.setxattr(root / "pinned", "user.kvfs.pin", b"1")
    fill(root / "pinned", range(2))
    assert os.listxattr(root / "pinned" / name_of(0)) == ["user.kvfs.pin"]
    fill(root, range(10, 30))
    assert there(root / "pinned", range(2)) == [0, 1]
    eventually(lambda: os.getxattr(root / "pinned" / name_of(0), "user.kvfs.state") == b"sealed pinned")
    expect_errno(errno.EINVAL, os.setxattr, root / "pinned", "user.kvfs.pin", b"maybe")
    expect_errno(errno.EINVAL, os.setxattr, root / "pinned", "user.kvfs.what", b"1")
    expect_errno(errno.EPERM, os.setxattr, root / "pinned", "user.kvfs.state", b"1")
    descriptor = os.open(root / "new", os.O_WRONLY | os.O_CREAT)
    try:
        assert os.getxattr(descriptor, "user.kvfs.state") == b"staged open"
        expect_errno(errno.EINVAL, os.setxattr, descriptor, "user.kvfs.ttl", b"-1")
        os.setxattr(descriptor, "user.kvfs.ttl", b"1")
        os.write(descriptor, b"soon gone")
    finally:
        os.close(descriptor)
    eventually(lambda: not os.access(root / "new", os.F_OK))
    assert "new" not in os.listdir(root)
    mount.kill()
    mount.start()
    assert os.getxattr(root / "pinned" / name_of(1), "user.kvfs.pin") == b"1"
    fill(root, range(30, 50))
    assert there(root / "pinned", range(2)) == [0, 1]


def test_another_layout_beside_the_blocks_makes_them_misses(make_pool: MakePool, mounted: Mounted) -> None:
    mount = make_pool().mount("engine")
    root = mounted(mount)
    base = root / "org_model_0123456789ab"
    blocks = root / "org_model_0123456789ab_r0" / "0ab" / "cd_g0"
    base.mkdir()
    blocks.mkdir(parents=True)
    (base / "config.json").write_text('{"tp_size": 1}')
    fill(blocks, range(3))
    eventually(lambda: "user.kvfs.layout" in os.listxattr(base))
    store_by_rename(base / "config.json", b'{"tp_size": 2}')
    eventually(lambda: not os.access(blocks / name_of(0), os.F_OK))
    assert os.listdir(blocks) == []
    fill(blocks, range(2))
    mount.kill()
    mount.start()
    assert sorted(os.listdir(blocks)) == [name_of(0), name_of(1)]
    assert read_whole(blocks / name_of(1), MIB) == pattern(1, MIB)
    mount.stop()
    mount.options = (*mount.options, "layout_guard=off")
    mount.start()
    (base / "config.json").write_text('{"tp_size": 3}')
    time.sleep(0.5)
    assert sorted(os.listdir(blocks)) == [name_of(0), name_of(1)]

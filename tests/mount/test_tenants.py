"""Tenants of one pool through real mounts: isolation, refusals, hard quotas, a full pool, sealed media."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import mountlib
from tests.conformance.clients import MIB, expect_errno, outcome, pattern, read_whole, store_by_rename
from tests.mount.conftest import MakePool

pytestmark = pytest.mark.mount
Mounted = Callable[[mountlib.Mount], Path]


def test_tenants_see_nothing_of_each_other(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool(tenants=("alice", "bob"))
    alice, bob = pool.mount("alice", at="a"), pool.mount("bob", at="b")
    root = mounted(alice)
    store_by_rename(root / "block.bin", pattern("alice", 2 * MIB))
    os.setxattr(root / "block.bin", "user.k", b"alice")
    alice.stop()
    root = mounted(bob)
    assert os.listdir(root) == []
    assert not os.access(root / "block.bin", os.F_OK)
    store_by_rename(root / "block.bin", pattern("bob", MIB))
    bob.kill()
    alice.start()
    assert read_whole(alice.mountpoint / "block.bin", 2 * MIB) == pattern("alice", 2 * MIB)


@pytest.mark.skipif(mountlib.SPLIT, reason="what a mount refuses that opens the pool itself")
def test_second_mount_of_an_embedded_pool_is_refused(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool(tenants=("alice", "bob"))
    mounted(pool.mount("alice", at="a"))
    with pytest.raises(mountlib.MountError, match=r"is mounted at|in use"):
        pool.mount("bob", at="b").start()


@pytest.mark.skipif(mountlib.SPLIT, reason="what a mount refuses that opens the pool itself")
def test_wrong_key_and_unknown_tenant_are_refused(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool()
    with pytest.raises(mountlib.MountError, match="nobody"):
        pool.mount("nobody").start()
    right = pool.kek.read_bytes()
    pool.kek.write_bytes(os.urandom(32).hex().encode() + b"\n")
    with pytest.raises(mountlib.MountError, match=r"(?i)key"):
        pool.mount("engine").start()
    pool.kek.write_bytes(right)
    mounted(pool.mount("engine"))


def fill(root: Path, size: int, limit: int = 400) -> tuple[int, int]:
    """Store files until one fails -> (how many were stored, errno)."""
    for number in range(limit):
        code, _ = outcome(store_by_rename, root / f"{number:04d}.bin", pattern(number, size))
        if code != 0:
            return number, code
    return limit, 0


def test_byte_quota_is_hard_and_exact(make_pool: MakePool, mounted: Mounted) -> None:
    mount = make_pool().mount("engine", "quota=8M,eviction=off")
    root = mounted(mount)
    stored, code = fill(root, MIB)
    assert (stored, code) == (8, errno.EDQUOT)
    assert not os.access(root / "0008.bin", os.F_OK)
    for number in range(8):
        assert read_whole(root / f"{number:04d}.bin", MIB) == pattern(number, MIB)
    mount.kill()
    mount.start()
    for leftover in set(os.listdir(root)) - {f"{number:04d}.bin" for number in range(8)}:
        os.unlink(root / leftover)
    code, _ = outcome(store_by_rename, root / "more.bin", b"x")
    assert code == errno.EDQUOT
    os.unlink(root / "0003.bin")
    store_by_rename(root / "more.bin", pattern("more", MIB))
    assert read_whole(root / "more.bin", MIB) == pattern("more", MIB)
    shown = os.statvfs(root)
    assert shown.f_blocks * shown.f_frsize == 8 * MIB
    assert shown.f_bavail == 0


def test_object_quota_is_hard_and_exact(make_pool: MakePool, mounted: Mounted) -> None:
    root = mounted(make_pool().mount("engine", "quota_objects=10,eviction=off"))
    for number in range(10):
        (root / f"{number}").write_bytes(b"x")
    expect_errno(errno.EDQUOT, os.mkdir, root / "d")
    expect_errno(errno.EDQUOT, (root / "eleventh").write_bytes, b"x")
    assert sorted(os.listdir(root)) == [f"{number}" for number in range(10)]
    os.link(root / "0", root / "link")
    os.unlink(root / "1")
    os.mkdir(root / "d")
    shown = os.statvfs(root)
    assert (shown.f_files, shown.f_ffree) == (10, 0)


def test_full_pool_is_enospc_and_everything_else_goes_on(make_pool: MakePool, mounted: Mounted) -> None:
    mount = make_pool("--size", "64M").mount("engine", "eviction=off")
    root = mounted(mount)
    stored, code = fill(root, 2 * MIB)
    assert code == errno.ENOSPC
    assert stored * 2 * MIB > 24 * MIB, "the pool was full far too early"
    for number in range(stored):
        assert read_whole(root / f"{number:04d}.bin", 2 * MIB) == pattern(number, 2 * MIB)
    mount.kill()
    mount.start()
    for number in range(stored):
        assert read_whole(root / f"{number:04d}.bin", 2 * MIB) == pattern(number, 2 * MIB)
    for name in os.listdir(root):
        os.unlink(root / name)
    again, _ = fill(root, 2 * MIB, stored // 2)
    assert again == stored // 2, "the room of unlinked files was not reclaimed"


def test_store_that_failed_for_space_leaves_the_old_version(make_pool: MakePool, mounted: Mounted) -> None:
    root = mounted(make_pool().mount("engine", "quota=4M,eviction=off"))
    store_by_rename(root / "f", b"o" * MIB)
    code, _ = outcome((root / "f").write_bytes, b"n" * 6 * MIB)
    assert code == errno.EDQUOT
    assert (root / "f").read_bytes() in (b"o" * MIB, b"")
    store_by_rename(root / "f", b"p" * MIB)
    assert (root / "f").read_bytes() == b"p" * MIB


def test_store_that_failed_for_space_is_out_of_the_way_at_once(make_pool: MakePool, mounted: Mounted) -> None:
    """While its writer still has it open, and the moment it has closed it: no error of its reaches anybody else."""
    root = mounted(make_pool().mount("engine", "quota=4M"))
    old = pattern("old", MIB)
    store_by_rename(root / "f", old)
    for turn in range(10):
        failed = os.open(root / "f", os.O_WRONLY | os.O_TRUNC)
        outcome(os.write, failed, pattern(turn, 6 * MIB))
        expect_errno(errno.EDQUOT, os.fsync, failed)
        assert (root / "f").read_bytes() == old
        assert os.stat(root / "f").st_size == MIB
        store_by_rename(root / "room", pattern("room", 3 * MIB))
        expect_errno(errno.EDQUOT, os.close, failed)
        os.unlink(root / "room")
        code, _ = outcome((root / "new").write_bytes, bytes(6 * MIB))
        assert code == errno.EDQUOT
        assert not os.access(root / "new", os.F_OK)
        old = pattern(f"new {turn}", MIB)
        store_by_rename(root / "f", old)
        assert (root / "f").read_bytes() == old


def everything_below(*roots: Path) -> bytes:
    """All bytes of all files, for a search."""
    parts = []
    for root in roots:
        for directory, _, names in os.walk(root):
            parts += [(Path(directory) / name).read_bytes() for name in names]
            parts += [os.fsencode(name) for name in names]
    return b"\0".join(parts)


def test_media_and_state_hold_no_plaintext(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool("--size", "64M")
    mount = pool.mount("engine")
    root = mounted(mount)
    data = pattern("sealed", 2 * MIB + 5000)
    (root / "org--secret-model_r0").mkdir()
    path = root / "org--secret-model_r0" / "0123456789abcdef0123456789abcdef.bin"
    store_by_rename(path, data)
    os.setxattr(path, "user.secret-attribute", b"secret-attribute-value")
    os.symlink("secret-link-target", root / "secret-link")
    mount.stop()
    sealed = everything_below(pool.pool) + mount.log.read_bytes()
    assert len(sealed) > len(data)
    needles = [data[start : start + 32] for start in range(0, len(data) - 32, 65_536 + 7)]
    needles += [b"secret", b"0123456789abcdef", b"org--"]
    assert [needle for needle in needles if needle in sealed] == []
    planted = sealed + b"\0control " + data[7:39]
    assert data[7:39] in planted, "the search finds nothing at all"

"""Attributes: extended ones, times, modes, sizes of blocks, statvfs."""

from __future__ import annotations

import errno
import os
import stat
import time

import pytest

from tests.conformance.clients import MIB, expect_errno
from tests.conformance.conftest import Target

# --- extended attributes -------------------------------------------------------------------------------


def test_xattr_set_get_list_remove(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x")
    assert os.listxattr(path) == []
    os.setxattr(path, "user.vllm.kv_crc32c", b"\x12\x34\0\xff")
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.vllm.kv_crc32c") == b"\x12\x34\0\xff"
    assert os.getxattr(path, "user.empty") == b""
    assert sorted(os.listxattr(path)) == ["user.empty", "user.vllm.kv_crc32c"]
    target.crash()
    assert sorted(os.listxattr(path)) == ["user.empty", "user.vllm.kv_crc32c"]
    assert os.getxattr(path, "user.vllm.kv_crc32c") == b"\x12\x34\0\xff"
    os.removexattr(path, "user.empty")
    assert os.listxattr(path) == ["user.vllm.kv_crc32c"]
    expect_errno(errno.ENODATA, os.getxattr, path, "user.empty")
    expect_errno(errno.ENODATA, os.removexattr, path, "user.empty")


def test_xattr_flags(target: Target) -> None:
    path = target / "f"
    path.touch()
    expect_errno(errno.ENODATA, os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    expect_errno(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"


def test_xattr_of_an_open_dirty_file(target: Target) -> None:
    """The CRC of vLLM is set on the temporary file through its handle, before close and rename."""
    with open(target / "tmp", "wb", buffering=0) as stream:
        stream.write(b"x" * 5000)
        os.setxattr(stream.fileno(), "user.vllm.kv_crc32c", b"crc1")
        assert os.getxattr(stream.fileno(), "user.vllm.kv_crc32c") == b"crc1"
        assert os.listxattr(stream.fileno()) == ["user.vllm.kv_crc32c"]
    os.rename(target / "tmp", target / "f")
    target.crash()
    assert os.getxattr(target / "f", "user.vllm.kv_crc32c") == b"crc1"


def test_xattr_of_directories(target: Target) -> None:
    os.setxattr(target.path, "user.d", b"dir")
    assert os.getxattr(target.path, "user.d") == b"dir"
    os.removexattr(target.path, "user.d")


@pytest.mark.parametrize("size", [1, 1000, 3000])
def test_xattr_value_sizes(target: Target, size: int) -> None:
    path = target / "f"
    path.touch()
    os.setxattr(path, "user.v", b"v" * size)
    assert os.getxattr(path, "user.v") == b"v" * size


def test_xattr_limits(target: Target) -> None:
    path = target / "f"
    path.touch()
    expect_errno(errno.E2BIG, os.setxattr, path, "user.v", b"v" * (65_536 + 1))
    expect_errno([errno.ERANGE, errno.ENAMETOOLONG], os.setxattr, path, "user." + "n" * 251, b"")
    os.setxattr(path, "user." + "n" * 250, b"longest name")
    assert os.getxattr(path, "user." + "n" * 250) == b"longest name"
    if target.kvfs:  # ext4 keeps all attributes in 4 KiB
        os.setxattr(path, "user.big", b"v" * 65_536)
        assert os.getxattr(path, "user.big") == b"v" * 65_536


def test_xattr_list_of_many(target: Target) -> None:
    path = target / "f"
    path.touch()
    names = [f"user.n{number:03d}" for number in range(60)]
    for name in names:
        os.setxattr(path, name, name.encode())
    assert sorted(os.listxattr(path)) == names
    target.remount()
    assert sorted(os.listxattr(path)) == names
    assert all(os.getxattr(path, name) == name.encode() for name in names)


def test_xattr_namespace_nobody_serves(target: Target) -> None:
    path = target / "f"
    path.touch()
    expect_errno([errno.EOPNOTSUPP, errno.EPERM], os.setxattr, path, "nonsense.name", b"x")


# --- times ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stamp_ns", [0, 1, 1_700_000_000_123_456_789, 4_102_444_800_000_000_001, -1_000_000_001], ids=str
)
def test_utimens_keeps_nanoseconds(target: Target, stamp_ns: int) -> None:
    path = target / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(stamp_ns, stamp_ns + 5))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (stamp_ns, stamp_ns + 5)
    target.remount()
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (stamp_ns, stamp_ns + 5)


def test_utimens_now_and_on_links_and_directories(target: Target) -> None:
    path = target / "f"
    path.touch()
    os.symlink("f", target / "s")
    before = time.time()
    os.utime(path)
    assert before - 1 <= path.stat().st_mtime <= time.time() + 1
    os.utime(target / "s", ns=(10, 20), follow_symlinks=False)
    assert os.lstat(target / "s").st_mtime_ns == 20
    assert path.stat().st_mtime > 1000
    os.utime(target.path, ns=(30, 40))
    assert os.stat(target.path).st_mtime_ns == 40


def test_utimens_of_an_open_dirty_file_outlives_its_close(target: Target) -> None:
    path = target / "f"
    with open(path, "wb", buffering=0) as stream:
        stream.write(b"x" * 100)
        os.utime(stream.fileno(), ns=(111, 222))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (111, 222)
    target.crash()
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (111, 222)


def test_writes_move_mtime_and_ctime(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(5, 5))
    changed = path.stat().st_ctime_ns
    with open(path, "ab") as stream:
        stream.write(b"y")
    assert path.stat().st_mtime_ns > 5
    assert path.stat().st_ctime_ns >= changed


def test_names_move_the_times_of_their_directory(target: Target) -> None:
    os.utime(target.path, ns=(5, 5))
    (target / "f").touch()
    first = os.stat(target.path).st_mtime_ns
    assert first > 5
    os.utime(target.path, ns=(5, 5))
    os.unlink(target / "f")
    assert os.stat(target.path).st_mtime_ns > 5


def test_truncate_to_the_same_size_is_allowed(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"abc")
    os.truncate(path, 3)
    assert path.read_bytes() == b"abc"


# --- modes and the rest of stat ------------------------------------------------------------------------


def test_chmod_keeps_all_twelve_bits(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x")
    for mode in (0o000, 0o644, 0o4755, 0o2755, 0o1777, 0o600):
        os.chmod(path, mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    target.remount()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_ISREG(path.stat().st_mode)


def test_chmod_of_an_open_dirty_file_outlives_its_close(target: Target) -> None:
    with open(target / "f", "wb", buffering=0) as stream:
        stream.write(b"x")
        os.fchmod(stream.fileno(), 0o640)
        assert stat.S_IMODE((target / "f").stat().st_mode) == 0o640
    target.crash()
    assert stat.S_IMODE((target / "f").stat().st_mode) == 0o640


def test_umask_is_applied_once(target: Target) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(target / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(target / "d", 0o777)
        os.mkfifo(target / "p", 0o666)
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((target / name).stat().st_mode) for name in ("f", "d", "p")}
    assert modes == {"f": 0o640, "d": 0o750, "p": 0o640}


def test_st_blocks_counts_what_is_stored(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x" * MIB)
    blocks = path.stat().st_blocks * 512
    assert MIB <= blocks <= MIB + 65_536


def test_inode_numbers_are_stable_across_a_remount(target: Target) -> None:
    for name in ("a", "b", "c"):
        (target / name).touch()
    before = {name: (target / name).stat().st_ino for name in ("a", "b", "c")}
    assert len(set(before.values())) == 3
    target.remount()
    assert {name: (target / name).stat().st_ino for name in ("a", "b", "c")} == before


def test_file_keeps_its_inode_number_from_open_to_after_close(target: Target) -> None:
    with open(target / "f", "wb") as stream:
        first = os.fstat(stream.fileno()).st_ino
    os.rename(target / "f", target / "g")
    assert (target / "g").stat().st_ino == first

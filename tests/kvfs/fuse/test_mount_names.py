"""Names on a mount over the fake DPU half: pending and committed, rename, link, unlink, attributes, xattrs."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kvfs.limits import MIB
from tests.kvfs.fuse.conftest import ServedMount, code_of, write_new

pytestmark = pytest.mark.mount
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def refused(code: int, call: Callable[..., object], *args: object, **kwargs: object) -> None:
    assert code_of(call, *args, **kwargs) == errno.errorcode[code]


def test_a_file_that_is_being_created_is_visible_here_and_nowhere_else(mount: ServedMount) -> None:
    path = mount.path / "new"
    with open(path, "wb", buffering=0) as stream:
        stream.write(b"abc")
        assert os.stat(path).st_size == os.fstat(stream.fileno()).st_size == 3
        assert os.listdir(mount.path) == ["new"]
        assert path.read_bytes() == b"abc"
        refused(errno.EEXIST, os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        refused(errno.EEXIST, os.mkdir, path)
        refused(errno.EEXIST, os.symlink, "x", path)
        os.chmod(path, 0o600)
        os.utime(path, ns=(5, 7))
        os.setxattr(path, b"user.crc", b"v")
        assert os.getxattr(path, b"user.crc") == b"v"
        assert mount.order(calls=True).get("Commit", 0) == 0
    shown = os.stat(path)
    assert (shown.st_mode & 0o777, shown.st_mtime_ns, shown.st_size) == (0o600, 7, 3)
    assert os.listxattr(path) == ["user.crc"]


def test_a_directory_with_a_pending_file_is_not_empty(mount: ServedMount) -> None:
    os.mkdir(mount.path / "d")
    with open(mount.path / "d/f", "wb"):
        refused(errno.ENOTEMPTY, os.rmdir, mount.path / "d")
    refused(errno.ENOTEMPTY, os.rmdir, mount.path / "d")
    os.unlink(mount.path / "d/f")
    os.rmdir(mount.path / "d")
    assert os.listdir(mount.path) == []


def test_unlink_of_a_pending_file(mount: ServedMount) -> None:
    path = mount.path / "f"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 2 * MIB)
    os.unlink(path)
    assert not path.exists()
    assert os.pread(descriptor, 5, 2 * MIB - 5) == b"xxxxx"
    os.write(descriptor, b"more")
    os.fsync(descriptor)
    assert os.fstat(descriptor).st_nlink == 0
    write_new(path, b"another")
    os.close(descriptor)
    assert path.read_bytes() == b"another"
    mount.settled(allocated=0, handles=0, staged=0, blocks=0, pending=0, nodes=2)


def test_unlink_of_an_open_published_file(mount: ServedMount) -> None:
    path = mount.path / "f"
    write_new(path, b"x" * 2 * MIB)
    descriptor = os.open(path, os.O_RDWR)
    os.unlink(path)
    assert os.pread(descriptor, 4, 0) == b"xxxx"
    os.pwrite(descriptor, b"yy", 1)
    assert os.pread(descriptor, 4, 0) == b"xyyx"
    assert os.fstat(descriptor).st_nlink == 0
    os.fchmod(descriptor, 0o600)
    assert mount.state()["kept_open"] == 1
    os.close(descriptor)
    mount.settled(allocated=0, kept_open=0, nodes=1, inodes=0, staged=0, blocks=0)


def test_rename_over_an_open_file(mount: ServedMount) -> None:
    write_new(mount.path / "a", b"new")
    write_new(mount.path / "b", b"old")
    with open(mount.path / "b", "rb", buffering=0) as stream:
        os.rename(mount.path / "a", mount.path / "b")
        assert stream.read() == b"old"
        assert (mount.path / "b").read_bytes() == b"new"
    mount.settled(allocated=0, kept_open=0, nodes=2)


def test_rename_of_a_file_that_is_being_written(mount: ServedMount) -> None:
    with open(mount.path / "a", "wb", buffering=0) as stream:
        stream.write(b"1" * MIB)
        os.rename(mount.path / "a", mount.path / "b")
        assert mount.content("b") == b"1" * MIB
        stream.write(b"2")
        os.rename(mount.path / "b", mount.path / "c")
        assert mount.content("c") == b"1" * MIB + b"2"
    assert os.listdir(mount.path) == ["c"]


def test_rename_of_a_new_file_over_an_existing_one_is_one_commit(mount: ServedMount) -> None:
    """Two commands would leave the temporary name behind, complete, if the process died between them."""
    write_new(mount.path / "b", b"old")
    os.link(mount.path / "b", mount.path / "other")
    write_new(mount.path / "c", b"old as well")
    with open(mount.path / "a", "wb", buffering=0) as new, open(mount.path / "b", "rb", buffering=0) as reader:
        new.write(b"first")
        mount.order(calls=True)
        os.rename(mount.path / "a", mount.path / "b")
        calls = mount.order(calls=True)
        assert (calls.get("Commit"), calls.get("Rename")) == (1, None)
        assert (reader.read(), os.fstat(reader.fileno()).st_nlink) == (b"old", 1)
        assert os.stat(mount.path / "other").st_nlink == 1
        new.write(b" and more")
    assert (mount.path / "b").read_bytes() == b"first and more"
    with open(mount.path / "a", "wb", buffering=0) as new, open(mount.path / "c", "rb", buffering=0) as reader:
        new.write(b"second")
        os.rename(mount.path / "a", mount.path / "c")
        assert (reader.read(), os.fstat(reader.fileno()).st_nlink) == (b"old as well", 0)
        assert mount.state()["kept_open"] == 1
    assert sorted(os.listdir(mount.path)) == ["b", "c", "other"]
    mount.settled(allocated=0, kept_open=0, pending=0, staged=0, nodes=4)


def test_rename_of_a_new_file_over_one_that_must_stay(mount: ServedMount) -> None:
    write_new(mount.path / "b", b"old")
    os.mkdir(mount.path / "d")
    with open(mount.path / "a", "wb", buffering=0) as new:
        new.write(b"new")
        refused(errno.EISDIR, os.rename, mount.path / "a", mount.path / "d")
        refused(errno.EEXIST, renameat2, mount.path / "a", mount.path / "b", RENAME_NOREPLACE)
        new.write(b"er")
        os.rename(mount.path / "a", mount.path / "b")
    assert (mount.path / "b").read_bytes() == b"newer"


def test_rename_over_a_pending_file(mount: ServedMount) -> None:
    write_new(mount.path / "a", b"committed")
    os.mkdir(mount.path / "d")
    with open(mount.path / "b", "wb", buffering=0) as stream:
        stream.write(b"pending")
        refused(errno.EEXIST, renameat2, mount.path / "a", mount.path / "b", RENAME_NOREPLACE)
        refused(errno.ENOTDIR, os.rename, mount.path / "d", mount.path / "b")
        os.rename(mount.path / "a", mount.path / "b")
    assert (mount.path / "b").read_bytes() == b"committed"
    mount.settled(allocated=0, pending=0, staged=0, blocks=0)


def test_rename_flags(mount: ServedMount) -> None:
    write_new(mount.path / "a", b"A")
    write_new(mount.path / "b", b"B")
    refused(errno.EEXIST, renameat2, mount.path / "a", mount.path / "b", RENAME_NOREPLACE)
    renameat2(mount.path / "a", mount.path / "c", RENAME_NOREPLACE)
    renameat2(mount.path / "b", mount.path / "c", RENAME_EXCHANGE)
    assert ((mount.path / "b").read_bytes(), (mount.path / "c").read_bytes()) == (b"A", b"B")
    refused(errno.EINVAL, renameat2, mount.path / "b", mount.path / "d", RENAME_WHITEOUT)
    with open(mount.path / "e", "wb", buffering=0) as stream:
        stream.write(b"E")
        renameat2(mount.path / "e", mount.path / "b", RENAME_EXCHANGE)
    assert ((mount.path / "b").read_bytes(), (mount.path / "e").read_bytes()) == (b"E", b"A")


def test_hard_links(mount: ServedMount) -> None:
    with open(mount.path / "a", "wb", buffering=0) as stream:
        stream.write(b"one")
        os.link(mount.path / "a", mount.path / "b")
        assert os.fstat(stream.fileno()).st_nlink == 2
        stream.write(b" two")
    assert (mount.path / "b").read_bytes() == b"one two"
    os.unlink(mount.path / "a")
    assert os.stat(mount.path / "b").st_nlink == 1
    refused(errno.EPERM, os.link, mount.path, mount.path / "dir")


def test_symbolic_links_and_special_files(mount: ServedMount) -> None:
    os.symlink("target" * 100, mount.path / "l")
    assert os.readlink(mount.path / "l") == "target" * 100
    os.mkfifo(mount.path / "p")
    assert stat.S_ISFIFO(os.stat(mount.path / "p").st_mode)
    os.mknod(mount.path / "empty", 0o640 | stat.S_IFREG)
    assert (mount.path / "empty").read_bytes() == b""
    refused(errno.EPERM, os.mknod, mount.path / "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    refused(errno.EEXIST, os.mknod, mount.path / "empty", 0o640 | stat.S_IFREG)


def test_names_of_every_byte(mount: ServedMount) -> None:
    names = [bytes([value]) * 3 for value in range(1, 256) if value not in b"/."] + [b"n" * 255, b"\xff\xfe name\n"]
    base = os.fsencode(mount.path)
    for name in names:
        write_new(os.path.join(base, name), name)  # type: ignore[arg-type]
    assert sorted(os.listdir(base)) == sorted(names)
    for name in names:
        with open(os.path.join(base, name), "rb") as stream:
            assert stream.read() == name
    for call in (os.stat, os.unlink, os.mkdir):
        refused(errno.ENAMETOOLONG, call, os.path.join(base, b"n" * 256))


def test_set_group_id_directories_pass_their_group_on(mount: ServedMount) -> None:
    os.mkdir(mount.path / "d")
    os.chown(mount.path / "d", -1, 4242)
    os.chmod(mount.path / "d", 0o2775)
    write_new(mount.path / "d/f", b"")
    os.mkdir(mount.path / "d/sub")
    assert os.stat(mount.path / "d/f").st_gid == 4242
    assert os.stat(mount.path / "d/sub").st_gid == 4242
    assert os.stat(mount.path / "d/sub").st_mode & stat.S_ISGID
    assert not os.stat(mount.path / "d/f").st_mode & stat.S_ISGID


def test_chown_clears_set_user_id(mount: ServedMount) -> None:
    write_new(mount.path / "f", b"x")
    os.chmod(mount.path / "f", 0o4755)
    os.chown(mount.path / "f", 1000, 1000)
    assert os.stat(mount.path / "f").st_mode & 0o7777 == 0o755


def test_extended_attributes(mount: ServedMount) -> None:
    path = mount.path / "f"
    write_new(path, b"x")
    os.setxattr(path, b"user.vllm.kv_crc32c", b"\x00\x01")
    refused(errno.EEXIST, os.setxattr, path, b"user.vllm.kv_crc32c", b"", os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, path, b"user.none", b"", os.XATTR_REPLACE)
    os.setxattr(path, b"user.vllm.kv_crc32c", b"2", os.XATTR_REPLACE)
    os.setxattr(path, b"user.large", b"v" * 65536)
    assert os.getxattr(path, b"user.large") == b"v" * 65536
    assert sorted(os.listxattr(path)) == ["user.large", "user.vllm.kv_crc32c"]
    refused(errno.E2BIG, os.setxattr, path, b"user.second", b"v" * 65536)
    os.removexattr(path, b"user.large")
    refused(errno.ENODATA, os.getxattr, path, b"user.large")
    refused(errno.ENODATA, os.removexattr, path, b"user.large")
    refused(errno.EOPNOTSUPP, os.setxattr, path, b"trusted.x", b"")
    refused(errno.EOPNOTSUPP, os.setxattr, path, b"security.x", b"")
    refused(errno.ENODATA, os.getxattr, path, b"security.capability")
    os.setxattr(path, b"user.after", b"still works")


def test_a_removed_directory_that_is_still_open(mount: ServedMount) -> None:
    os.mkdir(mount.path / "d")
    descriptor = os.open(mount.path / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(mount.path / "d")
    assert os.fstat(descriptor).st_nlink == 0
    assert os.listdir(descriptor) == []
    refused(errno.ENOENT, os.open, "f", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
    os.close(descriptor)


def test_what_is_refused_on_purpose(mount: ServedMount) -> None:
    """The last table of docs/ERRORS.md."""
    path = mount.path / "f"
    write_new(path, b"0123456789" * 1000)
    with open(path, "r+b", buffering=0) as stream:
        assert _libc.fallocate(stream.fileno(), 0, ctypes.c_long(0), ctypes.c_long(20_000)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(stream.fileno(), 0, 20_000)  # the C library writes instead
        assert os.fstat(stream.fileno()).st_size == 20_000
        os.ftruncate(stream.fileno(), 10_000)
        refused(errno.EOPNOTSUPP, os.open, mount.path, os.O_TMPFILE | os.O_RDWR)
        refused(errno.ENOTTY, fcntl.ioctl, stream.fileno(), 0x5413)
        assert os.lseek(stream.fileno(), 0, os.SEEK_HOLE) == 10_000
        assert os.lseek(stream.fileno(), 5, os.SEEK_DATA) == 5
        with open(mount.path / "g", "w+b", buffering=0) as copy:
            assert os.copy_file_range(stream.fileno(), copy.fileno(), 10_000, 0) == 10_000
        fcntl.flock(stream, fcntl.LOCK_EX)
        with open(path, "rb") as other:
            refused(errno.EAGAIN, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (mount.path / "g").read_bytes() == path.read_bytes()


def test_statvfs_shows_the_quota(make_mount: Callable[..., ServedMount]) -> None:
    mount = make_mount(quota_bytes=64 * MIB)
    write_new(mount.path / "f", bytes(range(256)) * 4096)
    shown = os.statvfs(mount.path)
    assert (shown.f_bsize, shown.f_frsize, shown.f_namemax) == (4096, 4096, 255)
    assert (shown.f_blocks, shown.f_bfree) == (64 * MIB // 4096, 63 * MIB // 4096)

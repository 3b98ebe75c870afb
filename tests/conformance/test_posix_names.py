"""Names: rename in every combination, unlink while open, hard and symbolic links, what a name may be."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat

import pytest

from tests.conformance.clients import MIB, expect_errno, pattern, store_by_rename
from tests.conformance.conftest import Target

LIBC = ctypes.CDLL(None, use_errno=True)


def renameat2(old: os.PathLike[str], new: os.PathLike[str], flags: int) -> None:
    if LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


# --- rename --------------------------------------------------------------------------------------------


def test_rename_over_a_file(target: Target) -> None:
    (target / "a").write_bytes(b"a")
    (target / "b").write_bytes(b"b" * 100_000)
    os.rename(target / "a", target / "b")
    assert os.listdir(target.path) == ["b"]
    assert (target / "b").read_bytes() == b"a"
    target.crash()
    assert os.listdir(target.path) == ["b"]
    assert (target / "b").read_bytes() == b"a"


def test_rename_over_an_open_file(target: Target) -> None:
    """The reader of the replaced file goes on reading what it opened."""
    store_by_rename(target / "f", b"o" * 3 * MIB)
    with open(target / "f", "rb", buffering=0) as reader:
        assert reader.read(10) == b"o" * 10
        store_by_rename(target / "f", b"n" * MIB)
        assert os.pread(reader.fileno(), MIB, 2 * MIB) == b"o" * MIB
        assert os.fstat(reader.fileno()).st_nlink == 0
    assert (target / "f").read_bytes() == b"n" * MIB


def test_rename_over_a_file_that_another_handle_is_writing(target: Target) -> None:
    with open(target / "f", "wb", buffering=0) as writer:
        writer.write(b"doomed" * 1000)
        store_by_rename(target / "f", b"winner")
        writer.write(b"more")
    assert (target / "f").read_bytes() == b"winner"
    target.crash()
    assert (target / "f").read_bytes() == b"winner"


def test_rename_of_an_open_dirty_file(target: Target) -> None:
    with open(target / "tmp", "w+b", buffering=0) as stream:
        stream.write(b"1" * 100_000)
        os.rename(target / "tmp", target / "final")
        stream.write(b"2" * 100_000)
        stream.seek(0)
        assert stream.read(200_001) == b"1" * 100_000 + b"2" * 100_000
    assert os.listdir(target.path) == ["final"]
    target.crash()
    assert (target / "final").read_bytes() == b"1" * 100_000 + b"2" * 100_000


def test_rename_of_an_open_dirty_file_over_an_existing_name(target: Target) -> None:
    (target / "final").write_bytes(b"old")
    with open(target / "tmp", "wb", buffering=0) as stream:
        stream.write(b"new" * 50_000)
        os.rename(target / "tmp", target / "final")
    assert os.listdir(target.path) == ["final"]
    target.crash()
    assert (target / "final").read_bytes() == b"new" * 50_000


def test_rename_of_an_open_file_twice_before_close(target: Target) -> None:
    (target / "d").mkdir()
    with open(target / "a", "wb", buffering=0) as stream:
        stream.write(b"x" * 10)
        os.rename(target / "a", target / "b")
        os.rename(target / "b", target / "d" / "c")
        stream.write(b"y" * 10)
    target.remount()
    assert os.listdir(target.path) == ["d"]
    assert (target / "d" / "c").read_bytes() == b"x" * 10 + b"y" * 10


def test_rename_onto_itself_and_onto_a_hard_link_of_itself(target: Target) -> None:
    (target / "a").write_bytes(b"a")
    os.rename(target / "a", target / "a")
    os.link(target / "a", target / "b")
    os.rename(target / "a", target / "b")
    assert sorted(os.listdir(target.path)) == ["a", "b"]


def test_rename_of_directories(target: Target) -> None:
    os.makedirs(target / "a" / "sub")
    (target / "a" / "sub" / "f").write_bytes(b"f")
    (target / "empty").mkdir()
    (target / "full").mkdir()
    (target / "full" / "x").touch()
    (target / "file").touch()
    expect_errno([errno.ENOTEMPTY, errno.EEXIST], os.rename, target / "a", target / "full")
    expect_errno(errno.ENOTDIR, os.rename, target / "a", target / "file")
    expect_errno(errno.EISDIR, os.rename, target / "file", target / "empty")
    expect_errno(errno.EINVAL, os.rename, target / "a", target / "a" / "sub" / "inside")
    expect_errno(errno.ENOENT, os.rename, target / "absent", target / "b")
    os.rename(target / "a", target / "empty")
    assert (target / "empty" / "sub" / "f").read_bytes() == b"f"
    target.remount()
    assert (target / "empty" / "sub" / "f").read_bytes() == b"f"
    assert sorted(os.listdir(target.path)) == ["empty", "file", "full"]


def test_rename_noreplace_and_exchange(target: Target) -> None:
    (target / "a").write_bytes(b"a")
    (target / "b").write_bytes(b"b")
    expect_errno(errno.EEXIST, renameat2, target / "a", target / "b", 1)
    renameat2(target / "a", target / "b", 2)
    assert ((target / "a").read_bytes(), (target / "b").read_bytes()) == (b"b", b"a")
    renameat2(target / "a", target / "c", 1)
    target.crash()
    assert ((target / "c").read_bytes(), (target / "b").read_bytes()) == (b"b", b"a")


def test_link_counts_of_directories(target: Target) -> None:
    base = os.stat(target.path).st_nlink
    (target / "a").mkdir()
    (target / "b").mkdir()
    assert os.stat(target.path).st_nlink == base + 2
    os.rename(target / "a", target / "b" / "a")
    assert os.stat(target.path).st_nlink == base + 1
    assert os.stat(target / "b").st_nlink == 3
    os.rmdir(target / "b" / "a")
    os.rmdir(target / "b")
    assert os.stat(target.path).st_nlink == base


# --- unlink --------------------------------------------------------------------------------------------


def test_unlinked_open_file_is_read_and_written_on(target: Target) -> None:
    path = target / "f"
    path.write_bytes(pattern("u", 2 * MIB))
    with open(path, "r+b", buffering=0) as stream:
        os.unlink(path)
        assert not path.exists()
        assert os.fstat(stream.fileno()).st_nlink == 0
        assert os.pread(stream.fileno(), MIB, MIB) == pattern("u", 2 * MIB)[MIB:]
        assert os.pwrite(stream.fileno(), b"w" * 5000, MIB - 100) == 5000
        assert os.pread(stream.fileno(), 5200, MIB - 200) == (
            pattern("u", 2 * MIB)[MIB - 200 : MIB - 100] + b"w" * 5000 + pattern("u", 2 * MIB)[MIB + 4900 : MIB + 5000]
        )
        os.ftruncate(stream.fileno(), 100)
        assert os.fstat(stream.fileno()).st_size == 100
    assert os.listdir(target.path) == []


def test_unlinked_before_the_first_close(target: Target) -> None:
    path = target / "f"
    with open(path, "w+b", buffering=0) as stream:
        stream.write(b"x" * 100_000)
        os.unlink(path)
        assert os.listdir(target.path) == []
        stream.write(b"y" * 100_000)
        stream.seek(0)
        assert stream.read(300_000) == b"x" * 100_000 + b"y" * 100_000
    assert os.listdir(target.path) == []
    target.crash()
    assert os.listdir(target.path) == []


def test_name_is_free_again_while_the_old_file_is_open(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"old")
    with open(path, "rb", buffering=0) as old:
        os.unlink(path)
        path.write_bytes(b"new!")
        assert os.fstat(old.fileno()).st_ino != path.stat().st_ino
        assert old.read() == b"old"
    assert path.read_bytes() == b"new!"


def test_unlink_errors(target: Target) -> None:
    (target / "d").mkdir()
    (target / "f").touch()
    expect_errno([errno.EISDIR, errno.EPERM], os.unlink, target / "d")
    expect_errno(errno.ENOTDIR, os.rmdir, target / "f")
    expect_errno(errno.ENOENT, os.unlink, target / "absent")
    (target / "d" / "x").touch()
    expect_errno([errno.ENOTEMPTY, errno.EEXIST], os.rmdir, target / "d")
    expect_errno(errno.ENOTDIR, os.open, target / "f" / "x", os.O_RDONLY)


# --- links ---------------------------------------------------------------------------------------------


def test_hard_links_share_everything(target: Target) -> None:
    (target / "a").write_bytes(b"first")
    os.link(target / "a", target / "b")
    assert os.stat(target / "a").st_ino == os.stat(target / "b").st_ino
    assert os.stat(target / "a").st_nlink == 2
    (target / "b").write_bytes(b"second")
    assert (target / "a").read_bytes() == b"second"
    os.chmod(target / "a", 0o600)
    assert os.stat(target / "b").st_mode & 0o777 == 0o600
    os.unlink(target / "a")
    assert os.stat(target / "b").st_nlink == 1
    target.crash()
    assert (target / "b").read_bytes() == b"second"


def test_hard_link_of_an_open_dirty_file(target: Target) -> None:
    with open(target / "a", "wb", buffering=0) as stream:
        stream.write(b"x" * 5000)
        os.link(target / "a", target / "b")
        stream.write(b"y" * 5000)
    assert (target / "b").read_bytes() == b"x" * 5000 + b"y" * 5000
    target.crash()
    assert (target / "a").read_bytes() == (target / "b").read_bytes() == b"x" * 5000 + b"y" * 5000


def test_hard_link_errors(target: Target) -> None:
    (target / "d").mkdir()
    (target / "a").touch()
    (target / "b").touch()
    expect_errno(errno.EPERM, os.link, target / "d", target / "e")
    expect_errno(errno.EEXIST, os.link, target / "a", target / "b")
    expect_errno(errno.ENOENT, os.link, target / "absent", target / "c")


def test_symbolic_links(target: Target) -> None:
    (target / "f").write_bytes(b"through")
    os.symlink("f", target / "s")
    assert os.readlink(target / "s") == "f"
    assert (target / "s").read_bytes() == b"through"
    assert os.lstat(target / "s").st_size == 1
    os.symlink("nowhere", target / "dangling")
    expect_errno(errno.ENOENT, os.stat, target / "dangling")
    expect_errno(errno.EEXIST, os.symlink, "f", target / "s")
    expect_errno(errno.EINVAL, os.readlink, target / "f")
    target.remount()
    assert os.readlink(target / "s") == "f"
    os.unlink(target / "s")
    assert (target / "f").exists()


def test_symbolic_link_loop(target: Target) -> None:
    os.symlink("b", target / "a")
    os.symlink("a", target / "b")
    expect_errno(errno.ELOOP, os.stat, target / "a")
    expect_errno(errno.ELOOP, os.open, target / "a", os.O_RDONLY | os.O_NOFOLLOW)


@pytest.mark.parametrize("size", [1, 255, 1000, 4095])
def test_long_symbolic_link_targets(target: Target, size: int) -> None:
    wanted = ("t" * 200 + "/") * 21
    wanted = wanted[: size - 1] + "x"
    os.symlink(wanted, target / "s")
    assert os.readlink(target / "s") == wanted
    assert os.lstat(target / "s").st_size == size
    target.remount()
    assert os.readlink(target / "s") == wanted


def test_too_long_symbolic_link_target(target: Target) -> None:
    expect_errno(errno.ENAMETOOLONG, os.symlink, "t" * 4096, target / "s")


# --- what a name may be --------------------------------------------------------------------------------


def test_names_of_every_byte(target: Target) -> None:
    names = [bytes([value]) for value in range(1, 256) if value not in b"./"]
    names += [b"...", b"\xff\xfe\xfd", "Modell-Zustände-模型".encode(), b"a\nb", b"-rf"]
    root = os.fsencode(target.path)
    for name in names:
        with open(root + b"/" + name, "wb") as stream:
            stream.write(name)
    target.crash()
    assert sorted(os.listdir(root)) == sorted(names)
    for name in names:
        with open(root + b"/" + name, "rb") as stream:
            assert stream.read() == name


def test_name_of_255_bytes_and_of_256(target: Target) -> None:
    longest, over = target / ("n" * 255), target / ("n" * 256)
    longest.write_bytes(b"x")
    assert longest.read_bytes() == b"x"
    os.rename(longest, target / ("m" * 255))
    expect_errno(errno.ENAMETOOLONG, os.open, over, os.O_WRONLY | os.O_CREAT)
    expect_errno(errno.ENAMETOOLONG, os.mkdir, over)
    expect_errno(errno.ENAMETOOLONG, os.stat, over)
    expect_errno(errno.ENAMETOOLONG, os.rename, target / ("m" * 255), over)
    assert os.listdir(target.path) == ["m" * 255]


def test_case_and_normalisation_are_kept(target: Target) -> None:
    names = ["A", "a", "\u00e9", "e\u0301"]  # the same letter, composed and decomposed
    for name in names:
        (target / name).write_text(name)
    assert sorted(os.listdir(target.path)) == sorted(names)


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_special_files(target: Target, kind: str) -> None:
    """A fifo or socket is a name like others."""
    path = target / kind
    if kind == "fifo":
        os.mkfifo(path)
        assert stat.S_ISFIFO(path.stat().st_mode)
    else:
        descriptor = os.open(target.path, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{descriptor}/{kind}")
        os.close(descriptor)
        assert stat.S_ISSOCK(path.stat().st_mode)
    os.unlink(path)

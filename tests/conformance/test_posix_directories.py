"""Directories: storms of mkdir, deep paths, listing while others change it, seekdir, large listings."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance.clients import expect_errno
from tests.conformance.conftest import Target


def test_mkdir_storm(target: Target) -> None:
    """16 threads make 2,000 directories, each asked for by two of them."""

    def make(number: int) -> bool:
        try:
            os.mkdir(target / f"{number % 1000:03d}")
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        made = list(threads.map(make, range(2000)))
    assert sum(made) == 1000
    assert len(os.listdir(target.path)) == 1000


def test_deep_path_up_to_path_max(target: Target) -> None:
    """Walk down with directory handles past PATH_MAX; whole paths work up to the limit, then ENAMETOOLONG."""
    name = "d" * 200
    depth = 40  # 8 KB of path
    here = os.open(target.path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    descriptor = os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(descriptor, b"deep")
    os.close(descriptor)
    os.close(here)
    fits = target.path
    while len(os.fsencode(fits)) + 201 < 4090:
        fits = fits / name
    assert os.listdir(fits) == [name]
    expect_errno(errno.ENAMETOOLONG, os.stat, str(fits / name / name))
    target.remount()
    here = os.open(target.path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    descriptor = os.open("leaf", os.O_RDONLY, dir_fd=here)
    assert os.read(descriptor, 10) == b"deep"
    os.close(descriptor)
    os.close(here)


def test_dot_and_dot_dot(target: Target) -> None:
    (target / "a").mkdir()
    (target / "a" / "b").mkdir()
    assert os.stat(target.path / "a" / "b" / "..").st_ino == os.stat(target / "a").st_ino
    assert os.stat(f"{target.path}/a/.").st_ino == os.stat(target / "a").st_ino
    expect_errno([errno.EINVAL, errno.ENOTEMPTY, errno.EBUSY], os.rmdir, f"{target.path}/a/.")


def test_listing_while_files_come_and_go(target: Target) -> None:
    """Every name that is there throughout is listed exactly once, whatever happens to the others."""
    stable = {f"stable{number:04d}" for number in range(500)}
    for name in stable:
        (target / name).touch()
    ended = threading.Event()

    def churn() -> None:
        number = 0
        while not ended.is_set():
            path = target / f"churn{number % 50}"
            path.write_bytes(b"x")
            os.rename(path, target / f"moved{number % 50}")
            os.unlink(target / f"moved{number % 50}")
            number += 1

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(20):
            listed = os.listdir(target.path)
            assert len(listed) == len(set(listed)), "a name was listed twice"
            assert stable <= set(listed), f"missing: {sorted(stable - set(listed))[:5]}"
    finally:
        ended.set()
        worker.join()


def test_removal_of_everything_while_listing(target: Target) -> None:
    for number in range(2000):
        (target / f"{number}").touch()
    with os.scandir(target.path) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(target.path) == []
    os.rmdir(target.path)
    target.path.mkdir()


class _Dirent(ctypes.Structure):
    _fields_ = [
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    ]


def _c_library() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.argtypes = [ctypes.c_void_p]
    libc.readdir.restype = ctypes.POINTER(_Dirent)
    for name in ("telldir", "closedir", "rewinddir"):
        getattr(libc, name).argtypes = [ctypes.c_void_p]
    libc.telldir.restype = ctypes.c_long
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    return libc


@pytest.mark.parametrize("count", [3, 1500])
def test_seekdir_returns_to_the_same_entry(target: Target, count: int) -> None:
    for number in range(count):
        (target / f"{number:05d}").touch()
    libc = _c_library()
    stream = libc.opendir(os.fsencode(target.path))
    assert stream
    places: list[int] = []
    names: list[bytes] = []
    while True:
        place = libc.telldir(stream)
        entry = libc.readdir(stream)
        if not entry:
            break
        places.append(place)
        names.append(bytes(entry.contents.d_name))
    assert len(names) == len(set(names)) == count + 2
    for index in (count + 1, 0, count // 2, 1, count):
        libc.seekdir(stream, places[index])
        assert bytes(libc.readdir(stream).contents.d_name) == names[index]
    libc.rewinddir(stream)
    assert bytes(libc.readdir(stream).contents.d_name) == names[0]
    libc.closedir(stream)


def test_rewind_shows_new_names(target: Target) -> None:
    (target / "a").touch()
    descriptor = os.open(target.path, os.O_RDONLY | os.O_DIRECTORY)
    assert os.listdir(descriptor) == ["a"]
    (target / "b").touch()
    assert sorted(os.listdir(descriptor)) == ["a", "b"]
    os.close(descriptor)


def test_pending_files_are_listed_by_their_writer_mount(target: Target) -> None:
    """A name that was created and not yet closed is visible at once in its own mount, in every way."""
    with open(target / "open", "wb", buffering=0) as stream:
        stream.write(b"x" * 1000)
        assert os.listdir(target.path) == ["open"]
        assert (target / "open").stat().st_size == 1000
        expect_errno([errno.ENOTEMPTY, errno.EEXIST], os.rmdir, target.path)


def test_file_types_in_a_listing(target: Target) -> None:
    (target / "d").mkdir()
    (target / "f").touch()
    os.symlink("f", target / "s")
    with os.scandir(target.path) as entries:
        kinds = {e.name: (e.is_dir(follow_symlinks=False), e.is_symlink(), e.inode()) for e in entries}
    for name, (is_dir, is_link, ino) in kinds.items():
        assert (is_dir, is_link) == (name == "d", name == "s")
        assert ino == os.lstat(target / name).st_ino


def test_removed_directory_that_is_open(target: Target) -> None:
    (target / "d").mkdir()
    descriptor = os.open(target / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(target / "d")
    assert os.listdir(descriptor) == []
    expect_errno(errno.ENOENT, os.open, "x", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
    os.close(descriptor)


def test_current_directory_in_the_tree(target: Target) -> None:
    (target / "d").mkdir()
    before = os.getcwd()
    os.chdir(target / "d")
    try:
        with open("relative", "wb") as stream:
            stream.write(b"r")
        assert os.getcwd() == str(target / "d")
    finally:
        os.chdir(before)
    assert (target / "d" / "relative").read_bytes() == b"r"


@pytest.mark.slow
def test_flat_directory_of_20000_names(target: Target) -> None:
    """The million is measured by tests/bench/scale.py; this shows that nothing is quadratic."""
    for number in range(20_000):
        os.close(os.open(target / f"{number:064x}.bin", os.O_WRONLY | os.O_CREAT))
    assert len(os.listdir(target.path)) == 20_000
    assert not os.access(target / "absent", os.F_OK)

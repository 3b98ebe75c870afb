"""Listings on a mount over the fake DPU half: large, resumed, changing while they are read."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from tests.kvfs.fuse.conftest import ServedMount, write_new

pytestmark = pytest.mark.mount


def test_dots_pending_and_committed_names_once_each(mount: ServedMount) -> None:
    for number in range(700):
        os.mkdir(mount.path / f"d{number}")
    pending = [os.open(mount.path / f"p{number}", os.O_WRONLY | os.O_CREAT) for number in range(50)]
    want = sorted([f"d{number}" for number in range(700)] + [f"p{number}" for number in range(50)])
    assert sorted(os.listdir(mount.path)) == want
    shown = os.popen(f"ls -fU {mount.path}").read().split()
    assert sorted(shown) == sorted([*want, ".", ".."])
    with os.scandir(mount.path) as entries:
        seen = [next(entries).name for _ in range(20)]
        for descriptor in pending:
            os.close(descriptor)  # they are committed in the middle of the listing
        seen += [entry.name for entry in entries]
    assert sorted(seen) == want


def test_names_that_go_while_the_directory_is_listed_do_not_come_back(mount: ServedMount) -> None:
    for number in range(1500):
        write_new(mount.path / f"f{number:04}", b"")
    with os.scandir(mount.path) as entries:
        first = [next(entries).name for _ in range(3)]
        for number in range(1500):
            os.unlink(mount.path / f"f{number:04}")
        rest = [entry.name for entry in entries]
    assert first
    for name in rest:
        assert not (mount.path / name).exists()
    assert os.listdir(mount.path) == []


def test_a_listing_never_brings_back_an_old_size(mount: ServedMount) -> None:
    for number in range(600):
        write_new(mount.path / f"f{number:04}", b"short")
    with os.scandir(mount.path) as entries:
        next(entries)
        for number in range(600):
            (mount.path / f"f{number:04}").write_bytes(b"a longer content")
        list(entries)
    for number in range(600):
        assert os.stat(mount.path / f"f{number:04}").st_size == 16
        assert (mount.path / f"f{number:04}").read_bytes() == b"a longer content"


def test_any_offset_resumes(mount: ServedMount) -> None:
    """telldir/seekdir through a C library: glibc hands our cookies back to us."""
    import ctypes

    class Dirent(ctypes.Structure):
        _fields_ = (("d_ino", ctypes.c_uint64), ("d_off", ctypes.c_int64), ("d_reclen", ctypes.c_uint16),
                    ("d_type", ctypes.c_uint8), ("d_name", ctypes.c_char * 256))  # fmt: skip

    libc = ctypes.CDLL(None)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(Dirent)
    libc.readdir.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = (ctypes.c_void_p,)
    libc.telldir.restype = ctypes.c_long
    libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
    for number in range(60):
        os.mkdir(mount.path / f"d{number}")
    pending = [os.open(mount.path / f"p{number}", os.O_WRONLY | os.O_CREAT) for number in range(5)]
    stream = libc.opendir(os.fsencode(mount.path))
    order: list[bytes] = []
    offsets: list[int] = []
    while True:
        offsets.append(libc.telldir(stream))
        entry = libc.readdir(stream)
        if not entry:
            break
        order.append(entry.contents.d_name)
    assert len(order) == 67
    for position in (66, 3, 0, 40, 8, 1, 65, 7):
        if position:
            libc.seekdir(stream, offsets[position])
            assert libc.readdir(stream).contents.d_name == order[position]
    libc.closedir(stream)
    for descriptor in pending:
        os.close(descriptor)


@pytest.mark.slow
def test_a_directory_of_many_names_is_listed_in_bounded_memory(mount: ServedMount) -> None:
    os.mkdir(mount.path / "big")
    mount.order(many=["big", 100_000])
    before = _rss_kib(mount.child.pid)
    assert sum(1 for _ in os.scandir(mount.path / "big")) == 100_000
    assert _rss_kib(mount.child.pid) - before < 20_000  # the fake sorts all names for each batch
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])

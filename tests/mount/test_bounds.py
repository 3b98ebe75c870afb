"""Memory and handles of the serving process stay bounded, whatever an engine does to it (fault matrix, row 11)."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import mountlib
from tests.bench.systems import memory_bytes
from tests.conformance.clients import MIB, outcome, pattern
from tests.mount.conftest import MakePool

pytestmark = [pytest.mark.mount, pytest.mark.slow]
Mounted = Callable[[mountlib.Mount], Path]

LIMIT_BYTES = 512 * MIB


def footprint_bytes(pid: int) -> int:
    """Resident memory, and what its memory files hold besides (shared pages may be counted twice)."""
    files = 0
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if os.readlink(entry.path).startswith("/memfd:"):
                    files += os.stat(entry.path).st_blocks * 512
    return memory_bytes(pid) + files


@pytest.fixture
def mount(make_pool: MakePool, mounted: Mounted) -> mountlib.Mount:
    made = make_pool("--size", "4G").mount("engine")
    mounted(made)
    return made


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_large_file(mount: mountlib.Mount) -> None:
    """400 MiB through one handle, half of it still open: staging is bounded, not proportional."""
    data = pattern("large", MIB)
    with open(mount.mountpoint / "large", "wb", buffering=0) as stream:
        for number in range(400):
            stream.write(data)
            if number % 50 == 0:
                assert footprint_bytes(mount.pid) < LIMIT_BYTES
    with open(mount.mountpoint / "large", "rb", buffering=0) as stream:
        while stream.read(4 * MIB):
            pass
    assert footprint_bytes(mount.pid) < LIMIT_BYTES


def test_many_writers_with_large_dirty_files(mount: mountlib.Mount) -> None:
    """40 files of 12 MiB open and dirty at once: 480 MiB that nobody has closed."""
    descriptors = [os.open(mount.mountpoint / f"{n}", os.O_WRONLY | os.O_CREAT) for n in range(40)]
    data = pattern("dirty", MIB)

    def fill(descriptor: int) -> None:
        for _ in range(12):
            assert os.write(descriptor, data) == MIB

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(fill, descriptors))
    assert footprint_bytes(mount.pid) < LIMIT_BYTES
    for descriptor in descriptors:
        os.close(descriptor)
    for number in (0, 17, 39):
        assert (mount.mountpoint / f"{number}").read_bytes() == data * 12


@pytest.mark.usefixtures("many_descriptors")
def test_many_small_dirty_files(mount: mountlib.Mount) -> None:
    """3,000 open files with some bytes each, spread over two blocks: buffers must not be whole blocks each."""
    descriptors = []
    for number in range(3000):
        descriptor = os.open(mount.mountpoint / f"{number}", os.O_WRONLY | os.O_CREAT)
        descriptors.append(descriptor)
        assert os.pwrite(descriptor, b"a" * 100, 0) == 100
        assert os.pwrite(descriptor, b"b" * 100, MIB) == 100
    assert footprint_bytes(mount.pid) < LIMIT_BYTES
    for descriptor in descriptors:
        os.close(descriptor)
    assert (mount.mountpoint / "2999").read_bytes() == b"a" * 100 + bytes(MIB - 100) + b"b" * 100


def test_huge_sparse_file(mount: mountlib.Mount) -> None:
    path = mount.mountpoint / "sparse"
    with open(path, "w+b", buffering=0) as stream:
        stream.truncate(1 << 45)
        assert os.pwrite(stream.fileno(), b"end", (1 << 45) - 3) == 3
        assert os.pread(stream.fileno(), 5, (1 << 45) - 5) == b"\0\0end"
    os.truncate(path, (1 << 44) + 1)
    assert path.stat().st_size == (1 << 44) + 1
    assert footprint_bytes(mount.pid) < LIMIT_BYTES


def test_many_readers_of_files_verified_at_open(mount: mountlib.Mount) -> None:
    """64 files of 8 MiB, all open for reading and none read: verified content is cached, but not without bound."""
    data = pattern("verified", 8 * MIB)
    for number in range(24):
        (mount.mountpoint / f"{number}").write_bytes(data)
    mount.stop()
    mount.start()
    descriptors = [os.open(mount.mountpoint / f"{number % 24}", os.O_RDONLY) for number in range(64)]
    assert footprint_bytes(mount.pid) < LIMIT_BYTES
    for descriptor in descriptors[-3:]:
        assert os.pread(descriptor, 8 * MIB, 0) == data
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.usefixtures("many_descriptors")
def test_ten_thousand_open_files_or_emfile(mount: mountlib.Mount) -> None:
    path = mount.mountpoint / "f"
    path.write_bytes(b"x" * 1000)
    descriptors: list[int] = []
    for _ in range(10_000):
        code, opened = outcome(os.open, path, os.O_RDONLY)
        if code != 0:
            assert code in (errno.EMFILE, errno.ENFILE)
            break
        assert isinstance(opened, int)
        descriptors.append(opened)
    assert len(descriptors) > 1000
    assert footprint_bytes(mount.pid) < LIMIT_BYTES
    for descriptor in descriptors:
        os.close(descriptor)
    assert path.read_bytes() == b"x" * 1000

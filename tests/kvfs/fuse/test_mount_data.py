"""Data on a mount over the fake DPU half: sizes, append, mappings, coherence, verify at open, caching."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import pytest

from kvfs.limits import FILE_MAX_BYTES, MIB
from tests.kvfs.fuse.conftest import ServedMount, code_of, write_new

pytestmark = pytest.mark.mount


def test_truncate_by_path_is_committed_at_once(mount: ServedMount) -> None:
    path = mount.path / "f"
    write_new(path, b"x" * 2 * MIB)
    os.truncate(path, MIB + 3)
    assert mount.content("f") == b"x" * (MIB + 3)
    os.truncate(path, 2 * MIB)
    assert path.read_bytes() == b"x" * (MIB + 3) + bytes(MIB - 3)
    mount.settled(inodes=0, blocks=0, staged=0)


def test_sparse_and_huge(mount: ServedMount) -> None:
    path = mount.path / "f"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, FILE_MAX_BYTES)
    os.pwrite(descriptor, b"end", FILE_MAX_BYTES - 3)
    assert os.pread(descriptor, 9, FILE_MAX_BYTES - 6) == bytes(3) + b"end"
    assert code_of(os.ftruncate, descriptor, FILE_MAX_BYTES + 1) == "EFBIG"
    assert code_of(os.ftruncate, descriptor, (1 << 63) - 1) == "EFBIG"
    assert code_of(os.pwrite, descriptor, b"ab", FILE_MAX_BYTES - 1) == "EFBIG"
    os.close(descriptor)
    assert os.stat(path).st_size == FILE_MAX_BYTES
    assert os.stat(path).st_blocks <= 2 * MIB // 512
    assert os.truncate(path, 10) is None
    assert path.read_bytes() == bytes(10)


def test_append(mount: ServedMount) -> None:
    path = mount.path / "log"
    first = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    second = os.open(path, os.O_RDWR | os.O_APPEND)
    for number in range(20):
        os.write((first, second)[number % 2], b"%04d" % number)
    assert os.pread(second, 100, 0) == b"".join(b"%04d" % number for number in range(20))
    os.close(first)
    os.close(second)
    with open(path, "ab") as stream:
        stream.write(b"tail")
    assert mount.content("log")[-4:] == b"tail"


def test_direct_reads_past_unaligned_ends(mount: ServedMount) -> None:
    write_new(mount.path / "f", b"q" * (MIB + 777))
    descriptor = os.open(mount.path / "f", os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, 2 * MIB)
    assert os.preadv(descriptor, [memory], 0) == MIB + 777
    assert memory[: MIB + 777] == b"q" * (MIB + 777)
    assert os.preadv(descriptor, [memory], 4 * MIB) == 0
    os.close(descriptor)


def test_a_reader_that_has_the_file_open_sees_direct_writes(mount: ServedMount) -> None:
    path = mount.path / "f"
    write_new(path, b"a" * 2 * MIB)
    reader = os.open(path, os.O_RDONLY)
    assert os.pread(reader, 10, MIB) == b"a" * 10
    writer = os.open(path, os.O_WRONLY)
    os.pwrite(writer, b"b" * 100, MIB)
    assert os.pread(reader, 10, MIB) == b"b" * 10
    os.ftruncate(writer, MIB + 5)
    assert os.pread(reader, 10, MIB) == b"b" * 5
    os.close(writer)
    assert os.pread(reader, 10, MIB) == b"b" * 5
    os.close(reader)


def test_shared_mapping_follows_and_carries_writes(mount: ServedMount) -> None:
    path = mount.path / "f"
    write_new(path, b"a" * 3 * MIB)
    with open(path, "r+b") as stream:
        memory = mmap.mmap(stream.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        os.pwrite(stream.fileno(), b"written", 5)
        assert memory[5:12] == b"written"
        memory[2 * MIB : 2 * MIB + 6] = b"mapped"
        memory.flush()
        memory.close()
    assert mount.content("f")[2 * MIB : 2 * MIB + 6] == b"mapped"
    assert mount.content("f")[5:12] == b"written"


@pytest.mark.parametrize("error", ["NotFoundError", "BadRecordError", "MediumUnavailableError"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_bad_block_is_a_miss_at_open(mount: ServedMount, error: str, nth: int) -> None:
    write_new(mount.path / "f", os.urandom(2 * MIB))
    mount.fail("ReadBlock", error, nth)
    assert code_of(os.open, mount.path / "f", os.O_RDONLY) == "ENOENT"
    with open(mount.path / "f", "rb") as stream:  # it was a passing fault
        assert len(stream.read()) == 2 * MIB


def test_a_quarantined_object_is_a_miss_at_open(mount: ServedMount) -> None:
    write_new(mount.path / "f", b"x")
    mount.fail("OpenObject", "NotFoundError")
    assert code_of(os.open, mount.path / "f", os.O_RDONLY) == "ENOENT"


def test_all_is_fetched_before_open_returns_and_not_again_once_the_kernel_has_it(mount: ServedMount) -> None:
    data = os.urandom(3 * MIB)
    write_new(mount.path / "f", data)
    mount.order(calls=True)
    descriptor = os.open(mount.path / "f", os.O_RDONLY)
    assert mount.order(calls=True)["ReadBlock"] == 3
    assert os.pread(descriptor, 3 * MIB, 0) == data
    os.close(descriptor)
    assert (mount.path / "f").read_bytes() == data
    assert mount.order(calls=True).get("ReadBlock", 0) == 0
    mount.fail("ReadBlock", "MediumUnavailableError", times=100)
    assert (mount.path / "f").read_bytes() == data  # wholly from the kernel's page cache


def test_large_files_are_not_verified_at_open_but_read_ahead(make_mount: Callable[..., ServedMount]) -> None:
    mount = make_mount(verify_at_open_max_bytes=MIB)
    data = os.urandom(12 * MIB)
    write_new(mount.path / "f", data)
    mount.order(calls=True)
    descriptor = os.open(mount.path / "f", os.O_RDONLY | os.O_DIRECT)
    assert mount.order(calls=True).get("ReadBlock", 0) == 0
    memory = mmap.mmap(-1, MIB)
    os.preadv(descriptor, [memory], 0)
    os.preadv(descriptor, [memory], MIB)
    assert mount.order(calls=True)["ReadBlock"] > 3
    for number in range(12):
        os.preadv(descriptor, [memory], number * MIB)
        assert memory[:] == data[number * MIB : (number + 1) * MIB]
    assert mount.order(calls=True).get("ReadBlock", 0) <= 12
    mount.fail("ReadBlock", "BadRecordError", times=100)
    os.close(descriptor)
    with open(mount.path / "f", "rb", buffering=0) as stream:
        stream.seek(11 * MIB + 5)
        mount.order(lost=True)
        mount.settled(cache_bytes=0)
        assert code_of(stream.read, 10) == "EIO"


def test_fsync_commits_and_syncs(mount: ServedMount) -> None:
    descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"abc")
    os.fsync(descriptor)
    assert mount.content("f") == b"abc"
    assert mount.order(calls=True)["Sync"] == 1
    os.close(descriptor)
    assert mount.order(calls=True).get("Commit", 0) == 0
    directory = os.open(mount.path, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert mount.order(calls=True)["Sync"] == 1


def test_close_of_a_reader_does_not_publish_what_a_writer_is_writing(mount: ServedMount) -> None:
    write_new(mount.path / "f", b"old")
    writer = os.open(mount.path / "f", os.O_WRONLY | os.O_TRUNC)
    os.write(writer, b"half")
    with open(mount.path / "f", "rb") as reader:
        assert reader.read() == b"half"
    assert mount.content("f") == b"old"
    os.close(writer)
    assert mount.content("f") == b"half"


def test_many_open_files_are_bounded_in_memory(mount: ServedMount) -> None:
    descriptors = [os.open(mount.path / f"f{number}", os.O_WRONLY | os.O_CREAT) for number in range(200)]
    for number, descriptor in enumerate(descriptors):
        os.write(descriptor, b"%d" % number)
    assert mount.state()["blocks"] <= 64
    for descriptor in descriptors:
        os.close(descriptor)
    for number in range(200):
        assert (mount.path / f"f{number}").read_bytes() == b"%d" % number

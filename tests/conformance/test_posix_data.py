"""File contents: truncate, sparse files, append, offset reads and writes, fsync, several handles."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance.clients import MIB, expect_errno, pattern, read_whole
from tests.conformance.conftest import Target

SIZES = [0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, 3 * MIB + 5]


@pytest.mark.parametrize("new", SIZES)
@pytest.mark.parametrize("old", [0, 5000, 2 * MIB + 100])
@pytest.mark.parametrize("by_path", [True, False], ids=["truncate", "ftruncate"])
def test_truncate_of_a_closed_file(target: Target, old: int, new: int, by_path: bool) -> None:
    path = target / "f"
    data = pattern(old, old)
    path.write_bytes(data)
    if by_path:
        os.truncate(path, new)
    else:
        with open(path, "r+b") as stream:
            stream.truncate(new)
    expected = data[:new].ljust(new, b"\0")
    assert os.stat(path).st_size == new
    assert path.read_bytes() == expected


def test_truncate_of_an_open_dirty_file(target: Target) -> None:
    path = target / "f"
    data = pattern("dirty", 3 * MIB)
    with open(path, "w+b", buffering=0) as stream:
        stream.write(data)
        stream.truncate(MIB + 500)
        assert os.fstat(stream.fileno()).st_size == MIB + 500
        stream.truncate(2 * MIB)
        stream.seek(0)
        assert stream.read(3 * MIB) == data[: MIB + 500] + bytes(MIB - 500)
    assert path.read_bytes() == data[: MIB + 500] + bytes(MIB - 500)


def test_bytes_cut_off_do_not_come_back(target: Target) -> None:
    """Down, remount, up: the tail is zeros and not what was there before."""
    path = target / "f"
    path.write_bytes(b"x" * (2 * MIB + 77))
    os.truncate(path, 1000)
    target.crash()
    os.truncate(path, 2 * MIB + 77)
    assert path.read_bytes() == b"x" * 1000 + bytes(2 * MIB + 77 - 1000)
    target.crash()
    assert path.read_bytes() == b"x" * 1000 + bytes(2 * MIB + 77 - 1000)


def test_truncate_while_another_handle_reads(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"y" * 100_000)
    with open(path, "rb", buffering=0) as reader:
        assert reader.read(10) == b"y" * 10
        os.truncate(path, 50)
        assert reader.read(1000) == b"y" * 40
        assert reader.read(1000) == b""


def test_sparse_file(target: Target) -> None:
    path = target / "f"
    with open(path, "wb", buffering=0) as stream:
        stream.seek(5 * MIB + 3)
        stream.write(b"island")
        stream.seek(40 * MIB)
        stream.write(b"end")
    for _ in range(2):
        with open(path, "rb", buffering=0) as stream:
            assert os.fstat(stream.fileno()).st_size == 40 * MIB + 3
            assert os.pread(stream.fileno(), 100, 4 * MIB) == bytes(100)
            assert os.pread(stream.fileno(), 20, 5 * MIB - 4) == bytes(7) + b"island" + bytes(7)
            assert os.pread(stream.fileno(), 20, 40 * MIB - 4) == bytes(4) + b"end"
        target.crash()


def test_hole_costs_no_storage(target: Target) -> None:
    path = target / "f"
    with open(path, "wb") as stream:
        stream.truncate(1 << 40)
    assert path.stat().st_size == 1 << 40
    assert path.stat().st_blocks * 512 <= 2 * MIB
    with open(path, "rb") as stream:
        stream.seek((1 << 40) - 10)
        assert stream.read(20) == bytes(10)


def test_seek_hole_and_data_never_hide_data(target: Target) -> None:
    """Without support SEEK_DATA is the offset itself and SEEK_HOLE the end: legal, and never wrong."""
    path = target / "f"
    with open(path, "w+b", buffering=0) as stream:
        stream.seek(2 * MIB)
        stream.write(b"d" * 4096)
        stream.truncate(4 * MIB)
        assert os.lseek(stream.fileno(), 0, os.SEEK_DATA) <= 2 * MIB
        assert os.lseek(stream.fileno(), 2 * MIB, os.SEEK_DATA) == 2 * MIB
        assert 2 * MIB + 4096 <= os.lseek(stream.fileno(), 2 * MIB, os.SEEK_HOLE) <= 4 * MIB
        expect_errno(errno.ENXIO, os.lseek, stream.fileno(), 4 * MIB, os.SEEK_DATA)


@pytest.mark.parametrize("first", [0, 100, 4096, MIB - 3, MIB])
def test_append_after_reopening(target: Target, first: int) -> None:
    path = target / "f"
    path.write_bytes(b"a" * first)
    for number in range(5):
        with open(path, "ab", buffering=0) as stream:
            assert stream.write(bytes([98 + number]) * 1000) == 1000
    expected = b"a" * first + b"".join(bytes([98 + number]) * 1000 for number in range(5))
    assert path.read_bytes() == expected
    target.crash()
    assert path.read_bytes() == expected


def test_two_append_handles_never_overwrite_each_other(target: Target) -> None:
    path = target / "f"
    with open(path, "ab", buffering=0) as one, open(path, "ab", buffering=0) as two:
        for number in range(200):
            one.write(b"1" * 100)
            two.write(b"2" * (number + 1))
    content = path.read_bytes()
    assert content.count(b"1") == 200 * 100
    assert content.count(b"2") == 200 * 201 // 2
    assert content == b"".join(b"1" * 100 + b"2" * (number + 1) for number in range(200))


def test_append_ignores_the_offset(target: Target) -> None:
    descriptor = os.open(target / "f", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"0123456789")
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, b"tail")
    assert os.pread(descriptor, 100, 0) == b"0123456789tail"
    os.close(descriptor)


def test_parallel_appends_of_threads(target: Target) -> None:
    path = target / "f"

    def append(number: int) -> None:
        with open(path, "ab", buffering=0) as stream:
            for _ in range(20):
                assert stream.write(bytes([65 + number]) * 64) == 64

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(append, range(8)))
    content = path.read_bytes()
    assert len(content) == 8 * 20 * 64
    records = [content[start : start + 64] for start in range(0, len(content), 64)]
    assert all(record == record[:1] * 64 for record in records), "two appends were mixed"


@pytest.mark.parametrize("step", [4096, 10_007, MIB, MIB + 4096])
def test_parallel_pwrite_and_pread(target: Target, step: int) -> None:
    path = target / "f"
    count = 12
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    with ThreadPoolExecutor(6) as threads:
        written = threads.map(lambda n: os.pwrite(descriptor, pattern(n, step), n * step), reversed(range(count)))
        assert list(written) == [step] * count
        parts = list(threads.map(lambda n: os.pread(descriptor, step, n * step), range(count)))
    assert parts == [pattern(n, step) for n in range(count)]
    os.close(descriptor)
    assert path.read_bytes() == b"".join(parts)


def test_written_bytes_are_read_at_once_through_another_handle(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"old" * 1000)
    writer = os.open(path, os.O_WRONLY)
    reader = os.open(path, os.O_RDONLY)
    assert os.pread(reader, 3000, 0) == b"old" * 1000
    assert os.pwrite(writer, b"new", 1500) == 3
    assert os.pread(reader, 3, 1500) == b"new"
    assert os.pwrite(writer, b"grown", 5000) == 5
    assert os.fstat(reader).st_size == 5005
    assert os.pread(reader, 100, 4990) == bytes(10) + b"grown"
    os.close(writer)
    os.close(reader)


def test_overwrite_in_the_middle_keeps_the_rest(target: Target) -> None:
    path = target / "f"
    model = bytearray(pattern("base", 3 * MIB + 999))
    path.write_bytes(model)
    target.crash()
    for offset, size in ((0, 1), (MIB - 2, 5), (2 * MIB, 4096), (3 * MIB + 990, 9), (3 * MIB + 990, 100)):
        with open(path, "r+b", buffering=0) as stream:
            stream.seek(offset)
            data = pattern(offset, size)
            assert stream.write(data) == size
        model[offset : offset + size] = data
        assert path.read_bytes() == bytes(model)
    target.crash()
    assert path.read_bytes() == bytes(model)


def test_write_and_read_through_one_handle(target: Target) -> None:
    with open(target / "f", "w+b", buffering=0) as stream:
        for number in range(50):
            stream.write(pattern(number, 30_000))
        for number in (0, 49, 17, 35):
            stream.seek(number * 30_000)
            assert stream.read(30_000) == pattern(number, 30_000)


def test_open_for_writing_with_truncation_empties_at_once(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x" * 10_000)
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    assert os.stat(path).st_size == 0
    os.close(descriptor)
    assert path.read_bytes() == b""
    target.crash()
    assert path.read_bytes() == b""


def test_open_for_reading_with_truncation(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x" * 10)
    os.close(os.open(path, os.O_RDWR | os.O_TRUNC))
    assert path.stat().st_size == 0


def test_empty_file(target: Target) -> None:
    path = target / "f"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    target.crash()
    assert path.stat().st_size == 0
    assert path.read_bytes() == b""


def test_handles_refuse_what_they_were_not_opened_for(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x")
    reader = os.open(path, os.O_RDONLY)
    expect_errno(errno.EBADF, os.write, reader, b"y")
    expect_errno([errno.EINVAL, errno.EBADF], os.ftruncate, reader, 0)
    os.close(reader)
    writer = os.open(path, os.O_WRONLY)
    expect_errno(errno.EBADF, os.read, writer, 1)
    os.close(writer)
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("call", [os.fsync, os.fdatasync])
def test_sync_of_an_open_file_publishes_it(target: Target, call: object) -> None:
    path = target / "f"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"synced" * 1000)
    call(descriptor)  # type: ignore[operator]
    if target.kvfs:
        target.backend.mount.kill()  # type: ignore[union-attr]
        expect_errno([errno.ENOTCONN, errno.ECONNABORTED], os.close, descriptor)
        target.backend.mount.start()  # type: ignore[union-attr]
    else:
        os.close(descriptor)
    assert path.read_bytes() == b"synced" * 1000


def test_sync_of_a_directory(target: Target) -> None:
    (target / "f").write_bytes(b"x")
    descriptor = os.open(target.path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_vectored_io(target: Target) -> None:
    path = target / "f"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    assert os.writev(descriptor, [b"a" * 10, b"", b"b" * MIB, b"c"]) == MIB + 11
    first, second = bytearray(5), bytearray(MIB + 6)
    assert os.preadv(descriptor, [first, second], 0) == MIB + 11
    os.close(descriptor)
    assert bytes(first + second) == b"a" * 10 + b"b" * MIB + b"c"


def test_many_files_open_at_once(target: Target) -> None:
    descriptors = [os.open(target / f"{n}", os.O_RDWR | os.O_CREAT) for n in range(400)]
    for number, descriptor in enumerate(descriptors):
        assert os.write(descriptor, pattern(number, 5000)) == 5000
    for descriptor in descriptors:
        os.close(descriptor)
    for number in range(400):
        assert read_whole(target / f"{number}", 5000) == pattern(number, 5000)


def test_large_stream_is_bounded_in_memory_and_exact(target: Target) -> None:
    """100 MiB through one handle: more than the staging budget of a mount."""
    path = target / "big"
    with open(path, "wb", buffering=0) as stream:
        for number in range(100):
            assert stream.write(pattern(number, MIB)) == MIB
    with open(path, "rb", buffering=0) as stream:
        for number in range(100):
            assert stream.read(MIB) == pattern(number, MIB), f"block {number}"

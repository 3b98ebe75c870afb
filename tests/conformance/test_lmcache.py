"""LMCache: `fs://` (28-byte header + chunk, tmp + rename, or one O_DIRECT write) and `local_disk` (final name)."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.clients import MIB, expect_errno, page_buffer, pattern, read_whole, write_whole
from tests.conformance.conftest import Target

CHUNK = 4 * MIB
HEADER = bytes(range(28))


def chunk_path(root: Path, number: int) -> Path:
    return root / f"org-model@1@0@{number:016x}@bfloat16.data"


def store_buffered(path: Path, body: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    assert os.write(descriptor, HEADER) == len(HEADER)
    assert os.write(descriptor, body) == len(body)
    os.close(descriptor)
    os.replace(temporary, path)


def load_buffered(path: Path, size: int) -> bytes:
    """4,096 bytes, then the rest at an offset that is no multiple of anything."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        head = os.read(descriptor, 4096)
        rest = os.read(descriptor, size - len(head))
        assert len(head) + len(rest) == size, "short read"
        assert os.read(descriptor, 1) == b""
    finally:
        os.close(descriptor)
    return head + rest


def test_fs_buffered_chunk(target: Target) -> None:
    path = chunk_path(target.path, 1)
    store_buffered(path, pattern(1, CHUNK))
    assert path.stat().st_size == CHUNK + 28
    assert load_buffered(path, CHUNK + 28) == HEADER + pattern(1, CHUNK)
    target.crash()
    assert load_buffered(path, CHUNK + 28) == HEADER + pattern(1, CHUNK)


def test_fs_direct_chunk_without_truncation(target: Target) -> None:
    """O_CREAT | O_DIRECT without O_TRUNC on a temporary name, one write, rename; loaded with one O_DIRECT read."""
    assert os.statvfs(target.path).f_bsize == 4096
    path = chunk_path(target.path, 2)
    for seed in ("first", "again"):
        temporary = path.with_suffix(".tmp")
        write_whole(temporary, os.O_CREAT | os.O_DIRECT, pattern(seed, CHUNK))
        os.replace(temporary, path)
        assert read_whole(path, CHUNK, os.O_DIRECT) == pattern(seed, CHUNK)
    target.crash()
    assert read_whole(path, CHUNK, os.O_DIRECT) == pattern("again", CHUNK)


def test_left_over_temporary_is_overwritten_in_place(target: Target) -> None:
    """Without O_TRUNC a longer leftover keeps its tail: that is what POSIX says and the engine sees."""
    temporary = target / "x.tmp"
    write_whole(temporary, os.O_CREAT, b"o" * (CHUNK + 4096))
    write_whole(temporary, os.O_CREAT | os.O_DIRECT, b"n" * CHUNK)
    assert temporary.read_bytes() == b"n" * CHUNK + b"o" * 4096


@pytest.mark.parametrize("direct", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_local_disk_writes_the_final_name(target: Target, direct: int) -> None:
    path = chunk_path(target.path, 3)
    flags = os.O_CREAT | (os.O_TRUNC if not direct else os.O_DIRECT)
    for seed in ("one", "two"):
        write_whole(path, flags, pattern(seed, CHUNK))
        assert read_whole(path, CHUNK, direct) == pattern(seed, CHUNK)
    target.crash()
    assert read_whole(path, CHUNK, direct) == pattern("two", CHUNK)


def test_direct_overwrite_in_place_of_a_part(target: Target) -> None:
    path = chunk_path(target.path, 4)
    write_whole(path, os.O_CREAT, pattern("base", CHUNK))
    write_whole(path, os.O_DIRECT, pattern("part", MIB + 4096))
    expected = pattern("part", MIB + 4096) + pattern("base", CHUNK)[MIB + 4096 :]
    assert read_whole(path, CHUNK) == expected
    target.remount()
    assert read_whole(path, CHUNK, os.O_DIRECT) == expected


def test_direct_read_of_a_file_with_an_unaligned_tail(target: Target) -> None:
    path = target / "tail.data"
    body = pattern("tail", MIB + 777)
    write_whole(path, os.O_CREAT, body)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with page_buffer(bytes(2 * MIB)) as buffer:
        assert os.preadv(descriptor, [buffer], 0) == len(body)
        assert buffer[: len(body)] == body
        assert os.preadv(descriptor, [buffer], MIB) == 777
        assert os.preadv(descriptor, [buffer], 2 * MIB) == 0
    os.close(descriptor)


def test_four_readers_of_one_flat_directory(target: Target) -> None:
    for number in range(8):
        write_whole(chunk_path(target.path, number), os.O_CREAT | os.O_TRUNC, pattern(number, CHUNK))
    with ThreadPoolExecutor(4) as threads:
        chunks = list(threads.map(lambda n: read_whole(chunk_path(target.path, n % 8), CHUNK), range(16)))
    assert [number for number, chunk in enumerate(chunks) if chunk != pattern(number % 8, CHUNK)] == []


def test_eviction_by_unlink_is_a_miss(target: Target) -> None:
    path = chunk_path(target.path, 5)
    write_whole(path, os.O_CREAT | os.O_TRUNC, b"x" * CHUNK)
    os.unlink(path)
    expect_errno(errno.ENOENT, os.stat, path)
    expect_errno(errno.ENOENT, os.open, path, os.O_RDONLY)
    expect_errno(errno.ENOENT, os.unlink, path)

"""Mappings: private and shared reads, of files that stay and of files that are rewritten."""

from __future__ import annotations

import mmap
import os

import pytest

from tests.conformance.clients import MIB, pattern, store_by_rename
from tests.conformance.conftest import Target


def map_file(path: os.PathLike[str], flags: int, prot: int = mmap.PROT_READ) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return mmap.mmap(descriptor, os.fstat(descriptor).st_size, flags=flags, prot=prot)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
@pytest.mark.parametrize("size", [1, 4096, 70_001, MIB, 8 * MIB, 20 * MIB + 1])
def test_mapping_shows_the_file(target: Target, flags: int, size: int) -> None:
    path = target / "f"
    store_by_rename(path, pattern(size, size))
    target.remount()
    with map_file(path, flags) as mapping:
        assert mapping[:] == pattern(size, size)


def test_mapping_outlives_handle_and_name(target: Target) -> None:
    path = target / "f"
    path.write_bytes(pattern("gone", 3 * MIB))
    target.remount()
    with map_file(path, mmap.MAP_SHARED) as mapping:
        os.unlink(path)
        assert mapping[:] == pattern("gone", 3 * MIB)


def test_mapping_of_a_replaced_file_keeps_the_old_content(target: Target) -> None:
    path = target / "f"
    store_by_rename(path, b"o" * 2 * MIB)
    with map_file(path, mmap.MAP_SHARED) as mapping:
        store_by_rename(path, b"n" * 2 * MIB)
        assert mapping[:] == b"o" * 2 * MIB
    with map_file(path, mmap.MAP_SHARED) as mapping:
        assert mapping[:] == b"n" * 2 * MIB


def test_shared_mapping_of_a_file_being_rewritten(target: Target) -> None:
    """After the writer's close a mapping shows the new bytes; in between each byte is the old or the new one."""
    path = target / "f"
    path.write_bytes(b"o" * MIB)
    with map_file(path, mmap.MAP_SHARED) as mapping:
        assert mapping[:] == b"o" * MIB
        with open(path, "r+b", buffering=0) as writer:
            writer.write(b"n" * (MIB // 2))
            assert set(mapping[:]) <= {ord("o"), ord("n")}
        assert mapping[:] == b"n" * (MIB // 2) + b"o" * (MIB // 2)


def test_new_mapping_after_a_rewrite_is_new(target: Target) -> None:
    path = target / "f"
    for number in range(5):
        with open(path, "wb", buffering=0) as writer:
            writer.write(pattern(number, 100_000))
        with map_file(path, mmap.MAP_SHARED) as mapping:
            assert mapping[:] == pattern(number, 100_000)


def test_mapping_beyond_the_last_byte_is_zeros(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x" * 10)
    descriptor = os.open(path, os.O_RDONLY)
    mapping = mmap.mmap(descriptor, 10, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    os.close(descriptor)
    assert mapping[:] == b"x" * 10
    mapping.close()


def test_private_writable_mapping_never_writes_through(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x" * 10_000)
    with map_file(path, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        mapping[:100] = b"y" * 100
    assert path.read_bytes() == b"x" * 10_000


def test_mapping_of_a_file_open_for_writing(target: Target) -> None:
    path = target / "f"
    with open(path, "w+b", buffering=0) as stream:
        stream.write(b"z" * 50_000)
        with map_file(path, mmap.MAP_PRIVATE) as mapping:
            assert mapping[:] == b"z" * 50_000


def test_shared_writable_mapping_works_or_is_refused(target: Target) -> None:
    """No engine writes through a mapping; it may be refused, but never lose bytes silently."""
    path = target / "f"
    path.write_bytes(b"a" * 8192)
    with open(path, "r+b", buffering=0) as stream:
        try:
            mapping = mmap.mmap(stream.fileno(), 8192, flags=mmap.MAP_SHARED)
        except OSError:
            return
        mapping[:4] = b"bbbb"
        mapping.flush()
        mapping.close()
    assert path.read_bytes() == b"bbbb" + b"a" * 8188
    target.remount()
    assert path.read_bytes() == b"bbbb" + b"a" * 8188

"""SGLang HiCacheFile: one flat directory of pages, dup + lseek before the write, stat per page or scandir of all."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.clients import MIB, pattern, read_whole
from tests.conformance.conftest import Target


def page_path(root: Path, number: int, size: int) -> Path:
    return root / f"{number:064x}_org-model_0_{size}.bin"


def store(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    duplicate = os.dup(descriptor)
    assert os.lseek(duplicate, 0, os.SEEK_CUR) == 0
    assert os.write(duplicate, data) == len(data)
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == len(data), "dup shares the offset"
    os.close(duplicate)
    os.close(descriptor)
    os.rename(temporary, path)


@pytest.mark.parametrize("size", [50_000, 65_536, 400_001, MIB])
def test_page(target: Target, size: int) -> None:
    path = page_path(target.path, 1, size)
    store(path, pattern(size, size))
    assert read_whole(path, size) == pattern(size, size)
    target.crash()
    assert read_whole(path, size) == pattern(size, size)


def test_close_of_a_duplicate_does_not_end_the_file(target: Target) -> None:
    """The first close of two flushes; what is written through the other descriptor must be there as well."""
    path = target / "dup.bin"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    assert os.write(descriptor, b"a" * 5000) == 5000
    os.close(os.dup(descriptor))
    assert os.write(descriptor, b"b" * 5000) == 5000
    os.close(descriptor)
    target.crash()
    assert path.read_bytes() == b"a" * 5000 + b"b" * 5000


def test_scandir_of_all_pages(target: Target) -> None:
    count = 1500
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: store(page_path(target.path, n, 100), pattern(n, 100)), range(count)))
    with os.scandir(target.path) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    assert sizes == {page_path(target.path, n, 100).name: 100 for n in range(count)}
    target.remount()
    assert len(os.listdir(target.path)) == count
    assert read_whole(page_path(target.path, 777, 100), 100) == pattern(777, 100)


def test_unbuffered_read_ends_at_the_end_of_the_file(target: Target) -> None:
    path = page_path(target.path, 3, 70_000)
    store(path, pattern(3, 70_000))
    with open(path, "rb", buffering=0) as stream:
        buffer = bytearray(80_000)
        assert stream.readinto(buffer) == 70_000
        assert buffer[:70_000] == pattern(3, 70_000)
        assert stream.readinto(buffer) == 0

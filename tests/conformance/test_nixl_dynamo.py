"""NIXL POSIX and Dynamo KVBM: few large preallocated files, 1 MiB writes at offsets in flight at once."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.clients import MIB, outcome, page_buffer, pattern
from tests.conformance.conftest import Target

MODES = pytest.mark.parametrize("direct", [0, os.O_DIRECT], ids=["buffered", "direct"])
BLOCKS = 24


def preallocate_by_truncate(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(descriptor, BLOCKS * MIB)
    os.close(descriptor)


def preallocate_by_zeros(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(BLOCKS):
        assert os.write(descriptor, bytes(MIB)) == MIB
    os.close(descriptor)


PREALLOCATIONS = pytest.mark.parametrize("preallocate", [preallocate_by_truncate, preallocate_by_zeros])


@MODES
@PREALLOCATIONS
def test_parallel_writes_and_reads_at_offsets(target: Target, direct: int, preallocate: object) -> None:
    path = target / "kv.pool"
    preallocate(path)  # type: ignore[operator]
    descriptor = os.open(path, os.O_RDWR | direct)
    order = list(range(BLOCKS))
    random.Random(1).shuffle(order)

    def put(block: int) -> None:
        with page_buffer(pattern(block, MIB)) as buffer:
            assert os.pwritev(descriptor, [buffer], block * MIB) == MIB

    def get(block: int) -> bytes:
        with page_buffer(bytes(MIB)) as buffer:
            assert os.preadv(descriptor, [buffer], block * MIB) == MIB
            return buffer[:]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, order[: BLOCKS // 2]))
        read_back = list(threads.map(get, order[: BLOCKS // 2]))
    for block, content in zip(order[: BLOCKS // 2], read_back, strict=True):
        assert content == pattern(block, MIB), f"block {block} while open"
    os.close(descriptor)
    target.crash()
    content = path.read_bytes()
    assert len(content) == BLOCKS * MIB
    for block in range(BLOCKS):
        expected = pattern(block, MIB) if block in order[: BLOCKS // 2] else bytes(MIB)
        assert content[block * MIB : (block + 1) * MIB] == expected, f"block {block} after remount"


@MODES
def test_overwrites_of_a_published_file(target: Target, direct: int) -> None:
    """The same file is opened again and again, some blocks rewritten each time."""
    path = target / "kv.pool"
    preallocate_by_zeros(path)
    model = [bytes(MIB)] * BLOCKS
    for turn in range(4):
        descriptor = os.open(path, os.O_RDWR | direct)
        for block in random.Random(turn).sample(range(BLOCKS), 5):
            model[block] = pattern(f"{turn} {block}", MIB)
            with page_buffer(model[block]) as buffer:
                assert os.pwritev(descriptor, [buffer], block * MIB) == MIB
        os.close(descriptor)
    assert path.read_bytes() == b"".join(model)
    target.remount()
    assert path.read_bytes() == b"".join(model)


def test_writes_across_block_borders(target: Target) -> None:
    path = target / "kv.pool"
    preallocate_by_truncate(path)
    model = bytearray(BLOCKS * MIB)
    descriptor = os.open(path, os.O_RDWR)
    for turn, offset in enumerate(range(4096, (BLOCKS - 2) * MIB, 2 * MIB + 12_288)):
        data = pattern(turn, MIB + 8192)
        assert os.pwrite(descriptor, data, offset) == len(data)
        model[offset : offset + len(data)] = data
    os.close(descriptor)
    assert path.read_bytes() == bytes(model)


def test_posix_fallocate_is_emulated_or_refused_honestly(target: Target) -> None:
    """The C library falls back to writing zeros where the filesystem says EOPNOTSUPP; either way the size is right."""
    path = target / "kv.pool"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    code, _ = outcome(os.posix_fallocate, descriptor, 0, 2 * MIB)
    os.close(descriptor)
    assert code in (0, errno.EOPNOTSUPP, errno.EINVAL)
    size = 2 * MIB if code == 0 else 0
    assert path.stat().st_size == size
    assert path.read_bytes() == bytes(size)


@pytest.mark.parametrize("mode", [0, 1, 3], ids=["allocate", "keep size", "punch hole"])
def test_fallocate_works_or_says_not_supported(target: Target, mode: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    descriptor = os.open(target / "f", os.O_RDWR | os.O_CREAT, 0o644)
    status = libc.fallocate(descriptor, mode, 0, MIB)
    code = ctypes.get_errno()
    os.close(descriptor)
    assert status == 0 or code == errno.EOPNOTSUPP, errno.errorcode.get(code)

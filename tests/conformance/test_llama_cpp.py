"""llama.cpp state files: a stdio stream onto the final name, thousands of small writes, no rename."""

from __future__ import annotations

import os
import struct

import pytest

from tests.conformance.clients import MIB, pattern
from tests.conformance.conftest import Target


def store(path: str | os.PathLike[str], data: bytes, buffer_bytes: int) -> None:
    """Header fields one by one, then the body in pieces as the transposed V cache makes them."""
    with open(path, "wb", buffering=buffer_bytes) as stream:
        stream.write(struct.pack("<III", 0x6767736E, 9, 1041))
        for start in range(0, len(data), 1500):
            stream.write(data[start : start + 1500])


def load(path: str | os.PathLike[str], size: int, buffer_bytes: int) -> bytes:
    with open(path, "rb", buffering=buffer_bytes) as stream:
        assert struct.unpack("<III", stream.read(12)) == (0x6767736E, 9, 1041)
        parts = [stream.read(1500) for _ in range(0, size, 1500)]
        assert stream.read(1) == b""
    return b"".join(parts)


@pytest.mark.parametrize("size", [3000, 5 * MIB + 123, 17 * MIB])
def test_stream_of_4k_writes_onto_the_final_name(target: Target, size: int) -> None:
    path = target / "slot0.bin"
    store(path, pattern(size, size), 4096)
    assert load(path, size, 4096) == pattern(size, size)
    target.crash()
    assert load(path, size, 4096) == pattern(size, size)


def test_state_saved_again_shorter(target: Target) -> None:
    path = target / "slot0.bin"
    store(path, pattern("long", 4 * MIB), 4096)
    store(path, pattern("short", MIB + 1), 4096)
    assert load(path, MIB + 1, 4096) == pattern("short", MIB + 1)
    target.remount()
    assert os.stat(path).st_size == 12 + MIB + 1
    assert load(path, MIB + 1, 4096) == pattern("short", MIB + 1)


def test_buffer_of_st_blksize(target: Target) -> None:
    """A stdio stream sizes its buffers by st_blksize, so that has to be a power of two from 4 KiB to 1 MiB."""
    path = target / "slot0.bin"
    path.touch()
    block = os.stat(path).st_blksize
    assert 4096 <= block <= MIB
    assert block & (block - 1) == 0
    store(path, pattern("b", 3 * MIB), block)
    assert load(path, 3 * MIB, block) == pattern("b", 3 * MIB)


def test_seeks_while_reading(target: Target) -> None:
    path = target / "slot0.bin"
    data = pattern("seek", 2 * MIB)
    store(path, data, 4096)
    with open(path, "rb", buffering=4096) as stream:
        for offset in (MIB + 5, 12, 2 * MIB - 100, 4096):
            stream.seek(offset)
            assert stream.read(2000) == data[offset - 12 : offset - 12 + 2000]


def test_header_rewritten_at_the_end(target: Target) -> None:
    path = target / "slot0.bin"
    with open(path, "wb", buffering=4096) as stream:
        stream.write(bytes(16))
        stream.write(pattern("body", 300_000))
        stream.seek(0)
        stream.write(b"header--header--")
    assert path.read_bytes() == b"header--header--" + pattern("body", 300_000)

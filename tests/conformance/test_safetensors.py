"""Files of safetensors: vLLM's ExampleConnector and transformers (rename before close, mmap, 1 MiB body writes)."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.conformance.clients import MIB, pattern
from tests.conformance.conftest import Target


def store(path: Path, header: bytes, body: bytes, step: int, *, rename_first: bool = True) -> None:
    temporary = path.with_name(f".tmp{path.name[:4]}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(descriptor, len(header) + len(body))
    assert os.write(descriptor, header) == len(header)
    view = memoryview(body)
    for start in range(0, len(body), step):
        part = view[start : start + step]
        assert os.write(descriptor, part) == len(part)
    if rename_first:
        os.rename(temporary, path)
    os.close(descriptor)
    if not rename_first:
        os.rename(temporary, path)


def load_by_mapping(path: Path) -> bytes:
    """Map whole and private, advise, read; then the second, writable private mapping that a framework makes."""
    descriptor = os.open(path, os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    first = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    header = first[:8]
    second = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(descriptor)
    content = second[:]
    assert content[:8] == header
    second[:8] = b"scribble"
    assert first[:8] == header, "a private mapping wrote through"
    second.close()
    first.close()
    return content


HEADER = b"\x40\0\0\0\0\0\0\0" + b'{"k":{}}'.ljust(64)


@pytest.mark.parametrize("size", [100, 300_000, 2 * MIB, 8 * MIB, 20 * MIB + 17])
@pytest.mark.parametrize("step", [MIB, 1 << 40], ids=["body in 1 MiB writes", "body in one write"])
def test_store_and_map(target: Target, size: int, step: int) -> None:
    path = target / "layer.safetensors"
    body = pattern(size, size)
    store(path, HEADER, body, step)
    assert load_by_mapping(path) == HEADER + body
    assert os.listdir(target.path) == [path.name]


def test_file_renamed_before_close_survives_a_crash_after_close(target: Target) -> None:
    path = target / "layer.safetensors"
    body = pattern("crash", 3 * MIB + 5)
    store(path, HEADER, body, MIB)
    target.crash()
    assert load_by_mapping(path) == HEADER + body


def test_renamed_before_close_is_whole_under_its_final_name_while_open(target: Target) -> None:
    path = target / "open.safetensors"
    temporary = target / ".tmpopen"
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(descriptor, MIB + 8)
    assert os.write(descriptor, b"h" * 8) == 8
    assert os.write(descriptor, b"b" * MIB) == MIB
    os.rename(temporary, path)
    assert os.stat(path).st_size == MIB + 8
    assert path.read_bytes() == b"h" * 8 + b"b" * MIB
    os.close(descriptor)
    assert path.read_bytes() == b"h" * 8 + b"b" * MIB


def test_tail_that_was_only_truncated_reads_as_zeros(target: Target) -> None:
    path = target / "short.safetensors"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(descriptor, 3 * MIB)
    assert os.write(descriptor, b"x" * 100) == 100
    os.close(descriptor)
    content = load_by_mapping(path)
    assert content == b"x" * 100 + bytes(3 * MIB - 100)


def test_directory_stat_is_the_lookup(target: Target) -> None:
    prompt = target / "0123456789abcdef0123456789abcdef"
    assert not prompt.exists()
    prompt.mkdir()
    for layer in range(4):
        name = f"model.layers.{layer}.self_attn.safetensors"
        store(prompt / name, HEADER, pattern(layer, 70_000), MIB, rename_first=layer % 2 == 0)
    assert prompt.is_dir()
    target.remount()
    for layer in range(4):
        name = f"model.layers.{layer}.self_attn.safetensors"
        assert load_by_mapping(prompt / name) == HEADER + pattern(layer, 70_000)

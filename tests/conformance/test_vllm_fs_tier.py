"""vLLM's `fs` tier: probe, batch of lookups, whole-block single reads and writes, rename as commit."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.clients import (
    MIB,
    expect_errno,
    page_buffer,
    pattern,
    read_whole,
    store_by_rename,
    write_whole,
)
from tests.conformance.conftest import Target

BLOCK = 2 * MIB
MODES = pytest.mark.parametrize("direct", [0, os.O_DIRECT], ids=["buffered", "direct"])


def block_path(root: Path, number: int) -> Path:
    digest = f"{number * 0x9E3779B97F4A7C15 & (1 << 128) - 1:032x}"
    return root / "org--model_0123456789ab_r0" / digest[:3] / f"{digest[3:5]}_g0" / f"{digest}.bin"


def store(root: Path, number: int, direct: int) -> None:
    path = block_path(root, number)
    if not os.access(path, os.F_OK):
        for _ in range(3):
            if os.path.isdir(path.parent):
                break
            os.makedirs(path.parent, exist_ok=True)
        store_by_rename(path, pattern(number, BLOCK), direct)


@pytest.mark.parametrize("align", [512, 4096])
def test_o_direct_probe_succeeds_and_leaves_nothing(target: Target, align: int) -> None:
    probe = target / f".probe_{os.getpid()}"
    descriptor = os.open(probe, os.O_CREAT | os.O_RDWR | os.O_DIRECT | os.O_TRUNC, 0o600)
    try:
        with page_buffer(b"\5" * 4096) as buffer:
            assert os.write(descriptor, buffer) == 4096
        with page_buffer(bytes(4096)) as buffer:
            assert os.preadv(descriptor, [memoryview(buffer)[:4096]], 0) == 4096
            assert buffer[:4096] == b"\5" * 4096
    finally:
        os.close(descriptor)
    assert os.stat(probe).st_size % align == 0
    os.unlink(probe)
    assert os.listdir(target.path) == []


@MODES
def test_block_is_stored_with_one_write_and_loaded_with_one_read(target: Target, direct: int) -> None:
    store(target.path, 1, direct)
    path = block_path(target.path, 1)
    assert os.stat(path).st_size == BLOCK
    assert read_whole(path, BLOCK, direct) == pattern(1, BLOCK)
    assert os.listdir(path.parent) == [path.name], "a temporary name was left"


@MODES
def test_blocks_survive_a_clean_remount_and_a_crash(target: Target, direct: int) -> None:
    for number in range(4):
        store(target.path, number, direct)
    target.crash()
    for number in range(4):
        assert read_whole(block_path(target.path, number), BLOCK, direct) == pattern(number, BLOCK)
    target.remount()
    for number in range(4):
        assert read_whole(block_path(target.path, number), BLOCK, direct) == pattern(number, BLOCK)


@MODES
def test_16_writers_and_16_readers(target: Target, direct: int) -> None:
    count = 48
    with ThreadPoolExecutor(16) as writers:
        list(writers.map(lambda number: store(target.path, number, direct), range(count)))
    with ThreadPoolExecutor(16) as readers:
        blocks = list(readers.map(lambda n: read_whole(block_path(target.path, n), BLOCK, direct), range(count)))
    wrong = [number for number, block in enumerate(blocks) if block != pattern(number, BLOCK)]
    assert not wrong


def test_readers_beside_writers_see_whole_blocks_or_misses(target: Target) -> None:
    """16 + 16 threads at once: a lookup that says "there" means that the whole block can be read."""
    count = 32

    def load(number: int) -> bool:
        path = block_path(target.path, number)
        for _ in range(200):
            if os.access(path, os.F_OK):
                assert read_whole(path, BLOCK) == pattern(number, BLOCK)
                return True
        return False

    with ThreadPoolExecutor(16) as writers, ThreadPoolExecutor(16) as readers:
        loads = [readers.submit(load, number) for number in range(count)]
        list(writers.map(lambda number: store(target.path, number, 0), range(count)))
        for done in loads:
            done.result()
    assert all(load(number) for number in range(count))


def test_batch_of_lookups_tells_hits_from_misses(target: Target) -> None:
    for number in range(0, 20, 2):
        store(target.path, number, 0)
    found = [os.access(block_path(target.path, number), os.F_OK) for number in range(20)]
    assert found == [number % 2 == 0 for number in range(20)]


def test_a_miss_becomes_a_hit_at_once(target: Target) -> None:
    """No negative entry may outlive the store, not even one asked for a moment before."""
    for number in range(50):
        path = target / f"{number}.bin"
        assert not os.access(path, os.F_OK)
        expect_errno(errno.ENOENT, os.stat, path)
        store_by_rename(path, b"x" * 4096)
        assert os.access(path, os.F_OK)


def test_store_of_a_block_that_is_there_replaces_it_whole(target: Target) -> None:
    path = target / "block.bin"
    store_by_rename(path, b"a" * BLOCK)
    store_by_rename(path, b"b" * BLOCK)
    assert read_whole(path, BLOCK) == b"b" * BLOCK


def test_failed_load_unlinks_and_the_block_counts_as_missing(target: Target) -> None:
    store(target.path, 7, 0)
    path = block_path(target.path, 7)
    os.unlink(path)
    assert not os.access(path, os.F_OK)
    expect_errno(errno.ENOENT, os.open, path, os.O_RDONLY)
    store(target.path, 7, 0)
    assert read_whole(path, BLOCK) == pattern(7, BLOCK)


def test_exclusive_create_of_a_taken_name_is_refused(target: Target) -> None:
    path = target / "x.tmp"
    write_whole(path, os.O_CREAT | os.O_EXCL, b"1")
    expect_errno(errno.EEXIST, os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def test_config_beside_the_blocks(target: Target) -> None:
    config = {"model": "org/model", "block_size": 128}
    (target / "config.json").write_text(json.dumps(config))
    target.crash()
    assert json.loads((target / "config.json").read_text()) == config


@pytest.mark.parametrize("size", [1, 511, 4096, MIB - 1, MIB, MIB + 1, 3 * MIB + 4097, 9 * MIB])
def test_single_write_and_read_of_any_size(target: Target, size: int) -> None:
    path = target / "b.bin"
    store_by_rename(path, pattern(size, size))
    assert read_whole(path, size) == pattern(size, size)


def test_write_from_memory_that_is_not_page_aligned(target: Target) -> None:
    path = target / "b.bin"
    data = pattern("unaligned", BLOCK + 48)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    assert os.write(descriptor, memoryview(data)[48:]) == BLOCK
    os.close(descriptor)
    assert read_whole(path, BLOCK) == data[48:]


def test_mkdir_storm_of_all_writers(target: Target) -> None:
    """All threads make the same three levels at once: each mkdir succeeds or says EEXIST."""
    leaf = target.path / "model_r0" / "abc" / "de_g0"
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: os.makedirs(leaf, exist_ok=True), range(64)))
    assert os.path.isdir(leaf)

"""vLLM's file protocol, on a plain directory."""

import mmap
import os
import re
from pathlib import Path

import pytest

from kvfs_tools.quickstart.protocol import FileTier

SIZE = 8192
DIGEST = bytes(range(32))


@pytest.fixture
def tier(tmp_path: Path) -> FileTier:
    made = FileTier(tmp_path, "org/model", SIZE)
    made.start()
    return made


@pytest.fixture
def buffer() -> memoryview:
    return memoryview(mmap.mmap(-1, SIZE))


def test_names(tier: FileTier, tmp_path: Path) -> None:
    path = os.path.relpath(tier.path(DIGEST), tmp_path)
    assert re.fullmatch(rf"org_model_[0-9a-f]{{12}}_r0/000/10_g0/{DIGEST.hex()}\.bin", path)


def test_start_leaves_the_configuration_and_no_probe(tier: FileTier, tmp_path: Path) -> None:
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.json"]


def test_store_then_load(tier: FileTier, buffer: memoryview) -> None:
    content = os.urandom(SIZE)
    buffer[:] = content
    assert tier.lookup([DIGEST, DIGEST[::-1]]) == [False, False]
    tier.store(DIGEST, buffer)
    assert tier.lookup([DIGEST, DIGEST[::-1]]) == [True, False]
    buffer[:] = bytes(SIZE)
    tier.load(DIGEST, buffer)
    assert bytes(buffer) == content


def test_no_temporary_name_is_left(tier: FileTier, buffer: memoryview, tmp_path: Path) -> None:
    tier.store(DIGEST, buffer)
    assert not list(tmp_path.rglob("*.tmp"))


def test_existing_block_is_not_written_again(tier: FileTier, buffer: memoryview) -> None:
    tier.store(DIGEST, buffer)
    before = os.stat(tier.path(DIGEST)).st_ino
    tier.store(DIGEST, buffer)
    assert os.stat(tier.path(DIGEST)).st_ino == before


def test_short_write_fails_and_leaves_nothing(
    tier: FileTier, buffer: memoryview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: SIZE // 2]))
    with pytest.raises(OSError, match="short write"):
        tier.store(DIGEST, buffer)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.json"]


def test_short_read_fails(tier: FileTier, buffer: memoryview) -> None:
    tier.store(DIGEST, buffer)
    os.truncate(tier.path(DIGEST), SIZE // 2)
    with pytest.raises(OSError, match="short read"):
        tier.load(DIGEST, buffer)


def test_load_of_a_miss(tier: FileTier, buffer: memoryview) -> None:
    with pytest.raises(FileNotFoundError):
        tier.load(DIGEST, buffer)


def test_probe_falls_back_to_buffered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    tier = FileTier(tmp_path, "m", SIZE)
    tier.start()
    assert tier.direct_io == 0

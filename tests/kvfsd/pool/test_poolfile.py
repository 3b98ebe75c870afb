"""The pool file: round trips, damage of either copy, values that make no sense."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec
import pytest

from kvfs.errors import FormatError, NotFoundError
from kvfsd.pool import poolfile
from kvfsd.pool.poolfile import KekEntry, MediumEntry, PoolFile

FILE = PoolFile(
    uuid=str(uuid.UUID(int=1)),
    replicas=1,
    key_directory="/keys",
    kek=KekEntry("file", "/keys/kek"),
    media=(MediumEntry(0, str(uuid.UUID(int=2)), "medium-0"),),
)


def test_the_pool_file_round_trips():
    assert poolfile.decode(poolfile.encode(FILE), "here") == FILE


def read_or_none(content: bytes) -> PoolFile | None:
    try:
        return poolfile.decode(content, "here")
    except FormatError:
        return None


def test_every_flipped_bit_of_the_pool_file_is_found():
    content = poolfile.encode(FILE)
    for bit in range(len(content) * 8):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        assert read_or_none(bytes(changed)) in (None, FILE)  # FILE: white space around the object


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "format 2 is not known"),
        ({"replicas": 9}, "out of range"),
        ({"media": ()}, "out of range"),
        ({"media": FILE.media * 2}, "one index or UUID"),
        ({"media": (MediumEntry(256, str(uuid.UUID(int=2)), "m"),)}, "out of range"),
        ({"uuid": "nonsense"}, "UUID"),
        ({"key_directory": "a\0b"}, "zero byte"),
    ],
)
def test_a_pool_file_that_makes_no_sense_is_refused(change, text):
    with pytest.raises(FormatError, match=text):
        poolfile.decode(poolfile.encode(msgspec.structs.replace(FILE, **change)), "here")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", [b"", b"{", b"[]" * 1000, b"x" * (poolfile.FILE_MAX_BYTES + 1), None])
def test_one_damaged_copy_is_told_and_the_other_used(tmp_path, which, damage):
    poolfile.write(tmp_path, FILE)
    path = tmp_path / poolfile.NAMES[which]
    path.unlink() if damage is None else path.write_bytes(damage)
    found, faults = poolfile.read(tmp_path)
    assert found == FILE
    assert [fault.startswith(str(path)) for fault in faults] == [True]


def test_the_newer_copy_wins(tmp_path):
    poolfile.write(tmp_path, FILE)
    newer = msgspec.structs.replace(FILE, sequence=2, replicas=2)
    (tmp_path / poolfile.NAMES[1]).write_bytes(poolfile.encode(newer))
    found, faults = poolfile.read(tmp_path)
    assert found == newer
    assert "differ" in faults[0]


def test_no_copy_and_no_whole_copy_are_two_things(tmp_path):
    with pytest.raises(NotFoundError, match="holds no pool"):
        poolfile.read(tmp_path)
    (tmp_path / poolfile.NAMES[0]).write_bytes(b"x")
    with pytest.raises(FormatError, match="neither copy"):
        poolfile.read(tmp_path)


def test_absolute_paths_keep_links(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert poolfile.absolute(tmp_path / "link" / "x" / "..") == tmp_path / "link"
    assert poolfile.absolute(Path("pool")).is_absolute()

"""The search finds what it promises to find, at any alignment, and nothing else."""

import base64
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs_tools.quickstart import controls
from kvfs_tools.quickstart.blocks import BlockSource
from kvfs_tools.quickstart.plaintext import READ_BYTES, PlaintextIndex, SearchReport, search

SOURCE = BlockSource(b"seed", 16 << 10)
NAME = b"0123456789abcdef-model-name"


def noise(length: int) -> bytearray:
    return bytearray(random.Random(length).randbytes(length))


@pytest.fixture(scope="module")
def index() -> PlaintextIndex:
    made = PlaintextIndex()
    for unit in SOURCE.units:
        made.add("unit", unit)
    made.add_name(NAME)
    return made


def searched(index: PlaintextIndex, directory: Path, data: bytes, name: str = "x") -> SearchReport:
    (directory / name).write_bytes(data)
    return search(index, [directory])


def test_noise_is_not_plaintext(index: PlaintextIndex, tmp_path: Path) -> None:
    report = searched(index, tmp_path, bytes(noise(300_000)))
    assert report.findings == []
    assert (report.files, report.searched_bytes) == (1, 300_000)


@given(start=st.integers(0, (16 << 10) - 32), offset=st.integers(0, 4000), block=st.integers(0, 9))
def test_any_32_bytes_of_any_block_at_any_offset(index: PlaintextIndex, start: int, offset: int, block: int) -> None:
    data = noise(4096)
    data[offset : offset + 32] = SOURCE.content(block)[start : start + 32]
    matches = list(index.matches(data))
    assert matches
    assert max(index.longest_match(bytes(data), match)[1] for match in matches) >= 15


@given(start=st.integers(0, 12), offset=st.integers(0, 100))
def test_any_15_bytes_of_a_run(start: int, offset: int) -> None:
    index = PlaintextIndex()
    index.add("name", NAME)
    data = noise(128)
    data[offset : offset + 15] = NAME[start : start + 15]
    matches = list(index.matches(data))
    assert max(index.longest_match(bytes(data), match)[1] for match in matches) >= 15


@pytest.mark.parametrize("place", [READ_BYTES - 17, READ_BYTES - 3, READ_BYTES, 3 * READ_BYTES - 32])
def test_across_the_edges_of_reads(index: PlaintextIndex, tmp_path: Path, place: int) -> None:
    data = bytearray(3 * READ_BYTES)
    data[place : place + 32] = SOURCE.content(1)[77 : 77 + 32]
    assert searched(index, tmp_path, bytes(data)).findings


@pytest.mark.parametrize(
    "leak",
    [
        NAME,
        NAME.hex().encode(),
        NAME.hex().upper().encode(),
        base64.b64encode(NAME),
        base64.b64encode(b"a" + NAME),
        base64.b64encode(b"ab" + NAME + b"c"),
        base64.urlsafe_b64encode(b"\xff" + NAME),
    ],
)
def test_names_in_every_encoding(index: PlaintextIndex, tmp_path: Path, leak: bytes) -> None:
    data = noise(1000)
    data[333 : 333 + len(leak)] = leak
    report = searched(index, tmp_path, bytes(data))
    assert {finding.label.split(" (")[0] for finding in report.findings} == {f"name {NAME.decode()!r}"}


def test_names_of_files_and_directories(index: PlaintextIndex, tmp_path: Path) -> None:
    (tmp_path / f"_{NAME.decode()}").mkdir()
    findings = searched(index, tmp_path, b"", f"{NAME.hex()}.bin").findings
    assert [finding.offset for finding in findings if finding.offset >= 0] == []
    assert {finding.path.name for finding in findings} == {f"_{NAME.decode()}", f"{NAME.hex()}.bin"}


def test_links_are_not_followed(index: PlaintextIndex, tmp_path: Path) -> None:
    (tmp_path / "searched").mkdir()
    (tmp_path / "outside").write_bytes(NAME)
    (tmp_path / "searched" / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "searched" / "fifo")
    assert search(index, [tmp_path / "searched"]).files == 0


def test_short_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        PlaintextIndex().add("short", b"fourteen bytes")


def test_zeros_are_not_evidence(tmp_path: Path) -> None:
    index = PlaintextIndex()
    index.add("half empty", bytes(64) + NAME)
    data = noise(100)
    data[50:] = bytes(50)
    assert searched(index, tmp_path, bytes(data)).findings == []


def test_control_is_found_and_taken_out(index: PlaintextIndex, tmp_path: Path) -> None:
    for _ in range(20):
        control = controls.plant(tmp_path, SOURCE.content(3), NAME)
        report = search(index, [tmp_path])
        assert controls.all_found(report, control)
        cleaned = controls.remove_from(report, control)
        assert cleaned.findings == []
        assert not control.path.exists()


@pytest.mark.parametrize("blind", ["run", "name"])
def test_control_shows_a_blind_search(tmp_path: Path, blind: str) -> None:
    index = PlaintextIndex()
    if blind == "run":
        index.add_name(NAME)
    else:
        for unit in SOURCE.units:
            index.add("unit", unit)
    control = controls.plant(tmp_path, SOURCE.content(3), NAME)
    assert not controls.all_found(search(index, [tmp_path]), control)


def test_real_leak_stays_when_the_control_is_taken_out(index: PlaintextIndex, tmp_path: Path) -> None:
    control = controls.plant(tmp_path, SOURCE.content(3), NAME)
    (tmp_path / "leak").write_bytes(b"x" + SOURCE.content(4)[:4096])
    report = controls.remove_from(search(index, [tmp_path]), control)
    assert report.findings
    assert report.found_bytes >= 32

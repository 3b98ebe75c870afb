"""The benchmarks' own arithmetic, and that the protocol they run is the right one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import mountlib
from tests.bench import kvblocks, scale, trace_replay
from tests.bench.lookups import miss_lookups_per_s
from tests.bench.systems import RawDirectory, all_systems


def results(kvfs_speed: float, null_speed: float = 9e8, null_lookups: float = 2e4) -> kvblocks.Results:
    made = kvblocks.Results()
    for phase in kvblocks.BARS:
        for mode in ("buffered", "direct"):
            for name, speed in (("raw", 1e9), ("null", null_speed), ("kvfs", kvfs_speed)):
                made.speeds[phase, mode, 1, name] += [speed, speed * 2, 1.0]
                made.cpu[phase, mode, 1, name] += [0.5]
    for clients in kvblocks.LOOKUP_CLIENTS:
        for name, rate in (("raw", 3e5), ("null", null_lookups), ("kvfs", 16_000 if clients == 1 else 14_000)):
            for processors in kvblocks.PROCESSORS:
                made.lookups[clients, processors, name] += [rate]
    return made


@pytest.mark.parametrize(("speed", "verdicts"), [(4.5e8, "PPBB"), (5.5e8, "PPPB"), (7.1e8, "PPPP"), (1e8, "BBBB")])
def test_bars_decide_the_verdict(speed: float, verdicts: str) -> None:
    rows = kvblocks.table(results(speed), [1])
    assert "".join(str(row["verdict"])[0] for row in rows if row["mode"] == "direct") == verdicts
    assert rows[0]["kvfs_MB_s"] == round(speed / 1e6), "the median, not the mean or the best"


def test_lookup_bar() -> None:
    assert [row["verdict"] for row in kvblocks.lookup_table(results(1e9))] == ["PASS", "BELOW"] * 2


def test_bar_that_no_mount_reaches_is_noted_and_still_missed() -> None:
    rows = kvblocks.table(results(3e8, null_speed=4.5e8), [1])
    below = "null below the bar too"
    assert [row["note"] for row in rows if row["mode"] == "direct"] == ["", "", below, below]
    assert {row["verdict"] for row in rows} == {"BELOW"}
    assert rows[0]["null_ratio"] == 0.45
    lookups = kvblocks.lookup_table(results(1e9, null_lookups=14_999))
    assert [(row["verdict"], row["note"]) for row in lookups] == [("PASS", below), ("BELOW", below)] * 2


def test_calibration_alone_has_no_verdicts() -> None:
    made = results(1e9)
    for measured in (made.speeds, made.cpu, made.lookups):
        for key in [key for key in measured if key[-1] == "kvfs"]:
            del measured[key]
    for row in (*kvblocks.table(made, [1]), *kvblocks.lookup_table(made)):
        assert "note" in row
        assert not any("kvfs" in column or column == "verdict" for column in row)


def test_text_table_is_aligned() -> None:
    lines = kvblocks.text_table([{"a": 1, "long": "x"}, {"a": 22, "long": "yy"}]).splitlines()
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("flags", [0, os.O_DIRECT])
def test_blocks_are_stored_and_loaded_whole(tmp_path: Path, flags: int) -> None:
    blocks = kvblocks.Blocks(2)
    for number in range(2):
        kvblocks.store(str(tmp_path), blocks, number, flags)
        kvblocks.load(str(tmp_path), blocks, number, flags)
        assert blocks.read_buffer()[:] == blocks.buffers[number][:]
    assert sorted(os.listdir(tmp_path)) == ["0.bin", "1.bin"]


def test_wrong_bytes_are_reported(tmp_path: Path) -> None:
    blocks, found = kvblocks.Blocks(1), kvblocks.Results()
    system = RawDirectory(tmp_path)
    kvblocks.store(str(system.directory), blocks, 0, 0)
    run = kvblocks.Run(system, blocks, found)
    run.compare("buffered")
    assert found.wrong == []
    with (system.directory / "0.bin").open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(b"damage")
    run.compare("buffered")
    assert found.wrong == ["raw buffered: block 0 differs"]


@pytest.mark.parametrize("clients", [1, 2])
def test_miss_lookups_count(tmp_path: Path, clients: int) -> None:
    assert miss_lookups_per_s(str(tmp_path), clients, seconds=0.01) > 100


@pytest.mark.mount
def test_null_filesystem_serves_the_protocol() -> None:
    reason = mountlib.can_mount()
    if reason is not None:
        pytest.skip(reason)
    with all_systems(None, ["null"]) as (system,):
        blocks = kvblocks.Blocks(1)
        for flags, name in ((0, "0.bin"), (os.O_DIRECT, "0.bin")):
            kvblocks.store(str(system.directory), blocks, 0, flags)
            kvblocks.load(str(system.directory), blocks, 0, flags)
            assert os.stat(system.directory / name).st_size == kvblocks.BLOCK_BYTES
            os.unlink(system.directory / name)


def test_names_of_the_scale_run_are_spread_and_distinct() -> None:
    names = [scale.object_path(number) for number in range(5000)]
    assert len(set(names)) == 5000
    assert 200 < len({name.rpartition("/")[0] for name in names}) <= scale.DIRECTORIES


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({}, True),
        ({"mount_s": 2.1}, False),
        ({"rss_bytes_max": 401e6}, False),
        ({"pinned_bytes_per_name": 101.0}, False),
        ({"pinned_bytes_per_name": 101.0, "names_listed": 1000.0}, True),
    ],
)
def test_scale_bars(change: dict[str, float], passes: bool) -> None:
    measured = {"mount_s": 1.9, "rss_bytes_max": 399e6, "pinned_bytes_per_name": 99.0, "names_listed": 1e6}
    assert (scale.failures(measured | change) == []) is passes


def test_a_replay_through_the_service_finds_what_an_lru_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert trace_replay.main(["--requests", "40", "--percent", "10", "--percent", "50"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["10 %", "50 %"]
    assert all(row[4] == row[5] and int(row[7]) > 0 for row in rows)


def test_the_lru_of_the_replay_is_one() -> None:
    assert trace_replay.lru_hits(iter([1, 2, 1, 3, 2, 1, 3, 3]), 2) == 2
    assert trace_replay.lru_hits(iter([1, 2, 3, 1, 2, 3]), 2) == 0
    assert trace_replay.lru_hits(iter([1, 2, 3, 1, 2, 3]), 3) == 3

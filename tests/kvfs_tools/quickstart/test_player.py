"""The replaying process: what it acknowledges, verifies and reports, on a plain directory."""

import itertools
from pathlib import Path

import pytest

from kvfs.errors import DeadlineExceededError
from kvfs_tools.quickstart import player, trace
from kvfs_tools.quickstart.processes import StepFailedError, play
from kvfs_tools.quickstart.results import ReplayStatistics

CHAINS = [[1, 2, 3], [1, 2, 4], list(range(100, 120)), [5, 2], [1, 2, 3]]


def job(mode: player.Mode, root: Path, chains: list[list[int]]) -> player.Job:
    return player.Job(
        mode=mode, root=str(root), model="org/a-model", seed=b"seed", block_bytes=8192, threads=4, chains=chains
    )


def run(work: player.Job, log: Path, stop_after: int = 1 << 30) -> ReplayStatistics:
    statistics = ReplayStatistics()

    def take(event: player.Event) -> bool:
        statistics.take(event)
        return len(statistics.acknowledged) >= stop_after

    play(work, take, log, 60.0)
    return statistics


def test_replay_hits_what_the_simulation_says(tmp_path: Path) -> None:
    found = run(job(player.Mode.REPLAY, tmp_path / "kv", CHAINS), tmp_path / "log")
    expected = trace.expectation([trace.Request(tuple(chain)) for chain in CHAINS])
    assert found.finished
    assert found.wrong == []
    assert (found.requests, found.lookups, found.hits) == (len(CHAINS), expected.lookups, expected.hits)
    assert found.acknowledged == set(itertools.chain(*CHAINS))
    assert len(found.store.each_ms) == expected.distinct
    assert len(found.load.each_ms) == expected.hits


def test_killed_replay_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    found = run(job(player.Mode.REPLAY, tmp_path / "kv", CHAINS), tmp_path / "log", stop_after=10)
    assert not found.finished
    assert len(found.acknowledged) == 10
    again = run(job(player.Mode.LOAD, tmp_path / "kv", [sorted(found.acknowledged)]), tmp_path / "log")
    assert set(again.outcomes.values()) == {player.EXACT}
    assert set(again.outcomes) == found.acknowledged


def block_files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.bin"))


def test_absent_and_wrong_blocks_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "kv"
    run(job(player.Mode.REPLAY, root, [[1, 2, 3]]), tmp_path / "log")
    first, second, third = block_files(root)
    first.unlink()
    damaged = bytearray(second.read_bytes())
    damaged[5000] ^= 1
    second.write_bytes(damaged)
    third.write_bytes(third.read_bytes()[:-1])
    found = run(job(player.Mode.LOAD, root, [[1, 2, 3]]), tmp_path / "log")
    assert sorted(found.outcomes.values()) == [player.ABSENT]
    assert sorted(text.split(": ", 1)[1].split(" of ")[0] for text in found.wrong) == [
        "load failed: short read",
        "wrong bytes",
    ]


def test_player_that_cannot_start_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "kv").write_bytes(b"not a directory")
    with pytest.raises(StepFailedError, match="NotADirectoryError"):
        run(job(player.Mode.REPLAY, tmp_path / "kv", CHAINS), tmp_path / "log")


def test_player_past_its_deadline_is_killed(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceededError, match="not done in time"):
        play(job(player.Mode.REPLAY, tmp_path / "kv", CHAINS), lambda event: False, tmp_path / "log", 0.0)

"""The checker of the crash rounds must be able to fail: damage is planted on a plain directory."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.check import check_tree, expected_accounting
from tests.crash.journal import JournalWriter, Replay, replay
from tests.crash.model import State, apply, empty_state, is_sparse, materialise, size_of
from tests.crash.totals import Totals
from tests.crash.workload import SHARED

WORKERS = 3


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Replay]]:
    """A tree that a real workload made on a plain directory, and its journals."""
    base = tmp_path_factory.mktemp("crash")
    root, journals = base / "tree", base / "journals"
    journals.mkdir()
    for shared in SHARED:
        (root / shared).mkdir(parents=True)
    command = [sys.executable, "-m", "tests.crash.workload", str(root), str(journals), "--seed", "planted"]
    command += ["--workers", str(WORKERS), "--operations", "60"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, cwd=Path(__file__).parents[2])
    assert len(done.stdout) > 100
    return root, [replay(journals / f"{number}.journal") for number in range(WORKERS)]


@pytest.fixture
def tree(recorded: tuple[Path, list[Replay]], tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "tree"
    shutil.copytree(recorded[0], copy, symlinks=True)
    relink(copy, recorded[1])
    return copy


def relink(root: Path, replays: list[Replay]) -> None:
    """Make hard links again, which copytree turns into copies."""
    for replayed in replays:
        first: dict[str, str] = {}
        for name, what in replayed.state["names"].items():
            if what in first and what.isdigit():
                (root / name).unlink()
                os.link(root / first[what], root / name)
            first.setdefault(what, name)


def violations(root: Path, recorded: tuple[Path, list[Replay]]) -> list[str]:
    return check_tree(root, recorded[1])[2]


def big_file(recorded: tuple[Path, list[Replay]]) -> str:
    for replayed in recorded[1]:
        for name, what in replayed.state["names"].items():
            if what.isdigit() and size_of(replayed.state["objects"][what]["recipe"]) > 100_000:
                return str(name)
    raise AssertionError("the workload made no large file")


def test_undamaged_tree_passes(tree: Path, recorded: tuple[Path, list[Replay]]) -> None:
    assert violations(tree, recorded) == []


def flip(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(50_000)
        byte = stream.read(1)
        stream.seek(50_000)
        stream.write(bytes([byte[0] ^ 1]))


def zero(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(8192)
        stream.write(bytes(4096))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit flip": (flip, "other content"),
    "hole": (zero, "a hole"),
    "truncated": (lambda path: os.truncate(path, 60_000), "size 60000"),
    "extended": (lambda path: os.truncate(path, path.stat().st_size + 1), "size"),
    "emptied": (lambda path: os.truncate(path, 0), "size 0"),
    "lost": (os.unlink, "lost"),
    "replaced by a directory": (lambda path: (path.unlink(), path.mkdir()), "not a file"),
    "mode": (lambda path: path.chmod(0o111), "mode 111"),
    "attribute": (lambda path: os.setxattr(path, "user.extra", b"x"), "extended attributes"),
    "renamed": (lambda path: path.rename(path.with_name(path.name + ".old")), "lost"),
    "resurrected": (lambda path: path.with_name("w0_9999.bin").write_bytes(b"x"), "should not be"),
    "stranger": (lambda path: path.with_name("noise").write_bytes(b"x"), "nobody made"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_planted_damage_is_found(tree: Path, recorded: tuple[Path, list[Replay]], damage: str) -> None:
    harm, message = DAMAGES[damage]
    harm(tree / big_file(recorded))
    found = violations(tree, recorded)
    assert any(message in line for line in found), found


def test_swap_of_two_files_is_found(tree: Path, recorded: tuple[Path, list[Replay]]) -> None:
    names = [n for n, what in recorded[1][0].state["names"].items() if what.isdigit()][:2]
    os.rename(tree / names[0], tree / "swap")
    os.rename(tree / names[1], tree / names[0])
    os.rename(tree / "swap", tree / names[1])
    assert violations(tree, recorded)


def test_broken_hard_link_is_found(tmp_path: Path) -> None:
    state = empty_state()
    for operation in (
        {"kind": "put", "name": "s0/w0_1.bin", "seed": 1, "size": 10},
        {"kind": "link", "name": "s0/w0_1.bin", "to": "s0/w0_l1"},
    ):
        state = apply(state, operation)
    (tmp_path / "s0").mkdir()
    for name in ("w0_1.bin", "w0_l1"):
        (tmp_path / "s0" / name).write_bytes(materialise([["put", 0, 1, 10]]))
        (tmp_path / "s0" / name).chmod(0o644)
    assert any("hard link" in line for line in check_tree(tmp_path, [Replay(state)])[2])


OLD: State = apply(empty_state(), {"kind": "put", "name": "s0/w0_1.bin", "seed": 1, "size": 30_000})
IN_FLIGHT = {"kind": "put", "name": "s0/w0_1.bin", "seed": 2, "size": 30_000}


@pytest.mark.parametrize(
    ("content", "passes"),
    [
        (materialise([["put", 0, 1, 30_000]]), True),
        (materialise([["put", 0, 2, 30_000]]), True),
        (materialise([["put", 0, 1, 30_000], ["put", 0, 2, 15_000]]), False),
        (bytearray(), False),
        (bytearray(30_000), False),
        (None, False),
    ],
    ids=["old", "new", "mixed", "empty", "zeros", "absent"],
)
def test_operation_in_flight_is_all_or_nothing(tmp_path: Path, content: bytearray | None, passes: bool) -> None:
    (tmp_path / "s0").mkdir()
    if content is not None:
        (tmp_path / "s0" / "w0_1.bin").write_bytes(content)
        (tmp_path / "s0" / "w0_1.bin").chmod(0o644)
    found = check_tree(tmp_path, [Replay(OLD, IN_FLIGHT)])[2]
    assert (found == []) is passes, found


def test_violation_that_the_worker_saw_is_reported(tmp_path: Path) -> None:
    journal, root = tmp_path / "0.journal", tmp_path / "tree"
    root.mkdir()
    JournalWriter(journal).complain("EIO somewhere")
    assert replay(journal).violations == ["EIO somewhere"]
    assert check_tree(root, [replay(journal)])[2] == ["EIO somewhere"]


def test_worker_reports_an_unexpected_error(tmp_path: Path) -> None:
    """Without its shared directories every store fails with ENOENT, which is not "the mount is gone"."""
    (tmp_path / "j").mkdir()
    (tmp_path / "none").mkdir()
    command = [sys.executable, "-m", "tests.crash.workload", str(tmp_path / "none"), str(tmp_path / "j")]
    command += ["--seed", "x", "--workers", "1", "--operations", "50"]
    subprocess.run(command, check=True, timeout=60, capture_output=True, cwd=Path(__file__).parents[2])
    assert "FileNotFoundError" in replay(tmp_path / "j" / "0.journal").violations[0]


def test_accounting_of_a_tree(tmp_path: Path) -> None:
    state = OLD
    for operation in (
        {"kind": "link", "name": "s0/w0_1.bin", "to": "s0/w0_l1"},
        {"kind": "put", "name": "s0/w0_2.bin", "seed": 5, "size": 100},
        {"kind": "edit", "name": "s0/w0_2.bin", "steps": [["truncate", 5000]]},
    ):
        state = apply(state, operation)
    (tmp_path / "s0").mkdir()
    (tmp_path / "s0" / "w0_1.bin").touch()
    tree = check_tree(tmp_path, [Replay(state)])[0]
    expected = expected_accounting(tree, [state])
    assert (expected.objects, expected.bytes_low, expected.bytes_high) == (3, 30_000, 35_000)


@pytest.mark.parametrize("seed", range(30))
def test_size_and_sparseness_agree_with_the_bytes(seed: int) -> None:
    rng = random.Random(seed)
    recipe: list[list[object]] = []
    for _ in range(rng.randrange(1, 6)):
        if rng.random() < 0.6:
            recipe.append(["put", rng.randrange(2000), rng.randrange(100), rng.randrange(1, 2000)])
        else:
            recipe.append(["truncate", rng.randrange(3000)])
    made = materialise(recipe)
    assert size_of(recipe) == len(made)
    if bytes(64) in made:
        assert is_sparse(recipe)


def test_states_survive_json() -> None:
    assert json.loads(json.dumps(OLD)) == OLD


def test_totals_count_by_kind_and_say_what_was_in_flight(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path / "0.journal")
    put = {"kind": "put", "name": "w0_a", "seed": 1, "size": 2}
    for _ in range(2):
        journal.begin(put)
        journal.acknowledge()
    journal.begin({"kind": "unlink", "name": "w0_a"})
    replayed, totals = replay(tmp_path / "0.journal"), Totals(seed=5)
    totals.count([replayed], [replayed.candidates()[1]])
    totals.count([replayed], [replayed.candidates()[0]])
    summary = json.loads(json.dumps(totals.summary()))
    assert (summary["seed"], summary["rounds"], summary["acknowledged"]) == (5, 2, {"put": 4})
    assert (summary["in_flight"], summary["in_flight_done"]) == ({"unlink": 2}, {"unlink": 1})
    assert "95 % upper bound" in totals.table()
    totals.violations.append("w0_a: lost")
    assert "95 % upper bound" not in totals.table(), "nothing is claimed of a run with violations"

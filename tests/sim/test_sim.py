"""Simulated crashes, power losses, damage and failures: a fast selection of what `python -m tests.sim.run` does."""

from __future__ import annotations

import pytest
import trio

from tests.sim import crashes
from tests.sim.cases import Crasher
from tests.sim.run import Wanted, main, run
from tests.sim.scenarios import SCENARIOS, recorded
from tests.sim.trace import MediaWrite
from tests.sim.world import EndlessError, simulate

SEED = 4711
CASES_PER_SCENARIO = 80


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_promise_is_broken(name: str) -> None:
    report = run(Wanted(SEED, CASES_PER_SCENARIO, (name,)))
    assert report.violations == []
    assert report.total >= CASES_PER_SCENARIO
    assert min(report.cases[kind] for kind in ("kill", "power", "damage", "fail")) >= 8


def test_a_kill_between_any_two_operations_of_a_run_keeps_what_was_acknowledged() -> None:
    with recorded("store", SEED) as record:
        crasher = Crasher(record, SEED, rebuild_every=50)
        for number in range(len(crasher.points)):
            simulate(number, lambda number=number: crasher.kill(number))
        assert len(crasher.points) > 100


def test_power_losses_do_take_what_was_not_synced() -> None:
    report = run(Wanted(SEED, 60, ("rewrite",), ("power",)))
    assert report.violations == []
    assert report.absent > 0


def test_the_same_seed_is_the_same_run() -> None:
    seen = []
    for _ in range(2):
        with recorded("together", SEED) as record:
            writes = [event.happening for event in record.trace.events if isinstance(event.happening, MediaWrite)]
            seen.append((writes, len(crashes.points(record.trace)), [client.history for client in record.clients]))
    assert seen[0] == seen[1]


def test_the_command_repeats_one_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--scenario", "names", "--only", "power:7"]) == 0
    assert "1 cases in 1 runs" in capsys.readouterr().out


def test_the_parts_together_are_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    with recorded("names", SEED) as record:
        there = 2 * len(Crasher(record, SEED).points)
    assert there > 100
    ran = 0
    for part in ("1/50", "50/50"):
        assert main(["--seed", str(SEED), "--scenario", "names", "--kind", "kill", "--every", "--part", part]) == 0
        ran += int(capsys.readouterr().out.split()[0])
    assert ran == len(range(0, there, 50)) + len(range(49, there, 50))
    with pytest.raises(SystemExit):
        main(["--every", "--part", "5/4"])


def test_simulation_that_never_ends_is_a_violation() -> None:
    async def spin() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(EndlessError, match=r"no end after .*spin:"):
        simulate(1, spin)

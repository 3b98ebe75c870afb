"""Simulated crashes, power losses, damage and failures of the whole DPU half, from a seed.

    python -m tests.sim.run --seed 1 --cases 2000
    python -m tests.sim.run --seed 1 --scenario collect --only power:117        one case again
    python -m tests.sim.run --seed 1 --kind fail --every --part 1/4             all there are, in four parts
    python -m tests.sim.run --seed 1 --cases 6000 --damage catalog_row          one kind of damage

Prints counts by kind, and for each violation what it was and the command that repeats it. Ends with 1 on a violation.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.sim.cases import Crasher
from tests.sim.checker import BrokenPromiseError, Verdict
from tests.sim.damage import Damager
from tests.sim.failures import KINDS, Failer
from tests.sim.scenarios import SCENARIOS, recorded
from tests.sim.world import simulate

SHARES: Final = {"kill": 35, "power": 35, "damage": 20, "fail": 10}
"""Of a hundred cases."""
DAMAGES_PER_RUN: Final = 1300
SHOWN_MAX: Final = 20

Case = Callable[[int], Awaitable[Verdict]]


@dataclass(slots=True)
class Report:
    """What a number of cases came to."""

    cases: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    absent: int = 0
    rebuilt: int = 0
    runs: int = 0
    violations: list[str] = field(default_factory=list)
    """What was broken, and how to see it again."""

    @property
    def total(self) -> int:
        """Cases in all."""
        return sum(self.cases.values())

    def add(self, kind: str, verdict: Verdict) -> None:
        """A case that kept all promises."""
        self.cases[kind] += 1
        self.absent += verdict.absent
        self.rebuilt += verdict.rebuilt
        if verdict.outcome:
            self.outcomes[verdict.outcome] += 1


@dataclass(slots=True)
class Wanted:
    """Which cases to run. `kinds`: of these only; `only`: one, as (kind, number).

    `every`: each case of this seed whose number the slice takes, however many they are.
    """

    seed: int
    cases: int
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    kinds: tuple[str, ...] = tuple(SHARES)
    damages: tuple[str, ...] = ()
    """Damage of these kinds only; none: of all."""
    only: tuple[str, int] | None = None
    every: slice | None = None
    stop_at_first: bool = False


def run(wanted: Wanted) -> Report:
    """Run cases, scenario by scenario and seed by seed, until there are enough."""
    report, seed = Report(), wanted.seed
    while report.total + len(report.violations) < wanted.cases:
        for index, name in enumerate(wanted.scenarios):
            left = wanted.cases - report.total - len(report.violations)
            _try_scenario(report, wanted, name, seed, -(-left // (len(wanted.scenarios) - index)))
            if wanted.stop_at_first and report.violations:
                return report
        if wanted.only or wanted.every:
            break
        seed += 1
    return report


def _try_scenario(report: Report, wanted: Wanted, name: str, seed: int, budget: int) -> None:
    try:
        _run_scenario(report, wanted, name, seed, budget)
    except Exception as error:  # the run without any fault: nothing may go wrong in it
        command = f"python -m tests.sim.run --seed {seed} --scenario {name} --cases 1"
        report.violations.append(f"recording: {type(error).__name__}: {error}\n    {command}")


def _run_scenario(report: Report, wanted: Wanted, name: str, seed: int, budget: int) -> None:
    if budget <= 0:
        return
    with recorded(name, seed) as record:
        crasher, damager, failer = Crasher(record, seed), Damager(record, seed, wanted.damages), Failer(name, seed)
        report.runs += 1
        cases: dict[str, tuple[Case, int]] = {
            "kill": (crasher.kill, 2 * len(crasher.points)),
            "power": (crasher.power, 3 * len(crasher.points)),
            "damage": (damager.damage, DAMAGES_PER_RUN),
        }
        if "fail" in wanted.kinds:
            cases["fail"] = (failer.fail, len(KINDS) * simulate(seed, failer.operations))
        again = "".join(f" --damage {damage}" for damage in wanted.damages)
        for kind, number in _chosen(wanted, cases, random.Random(f"{seed} {name}"), budget):
            command = f"--seed {seed} --scenario {name}{again} --only {kind}:{number}"
            _run_case(report, command, kind, cases[kind][0], number)
            if wanted.stop_at_first and report.violations:
                return


def _run_case(report: Report, command: str, kind: str, case: Case, number: int) -> None:
    try:
        report.add(kind, simulate(number, lambda: case(number)))
    except BrokenPromiseError as broken:
        report.violations.append(f"{broken}\n    python -m tests.sim.run {command}")
    except Exception as error:
        # Not a promise of the model: an error where none may come is a violation all the same.
        report.violations.append(f"{type(error).__name__}: {error}\n    python -m tests.sim.run {command}")


def _chosen(
    wanted: Wanted, cases: dict[str, tuple[Case, int]], choice: random.Random, budget: int
) -> Iterator[tuple[str, int]]:
    """Which cases of a run: all if they fit the budget, else some of each kind from everywhere."""
    if wanted.only:
        yield wanted.only
        return
    kinds = [kind for kind in wanted.kinds if kind in cases]
    if wanted.every:
        yield from ((kind, number) for kind in kinds for number in range(cases[kind][1])[wanted.every])
        return
    shares = sum(SHARES[kind] for kind in kinds)
    for kind in kinds:
        there = cases[kind][1]
        count = min(there, max(1, round(budget * SHARES[kind] / shares)))
        step = there / count
        for index in range(count):
            yield kind, min(there - 1, int((index + choice.random()) * step))


def show(report: Report, seconds: float) -> None:
    """Print the counts and the violations."""
    by_kind = ", ".join(f"{kind} {count}" for kind, count in sorted(report.cases.items()))
    print(f"{report.total + len(report.violations)} cases in {report.runs} runs, {seconds:.0f} s: {by_kind or 'none'}")
    print(f"rebuilt from media: {report.rebuilt} of them; files that a power loss or damage took: {report.absent}")
    for outcome, count in sorted(report.outcomes.items()):
        print(f"  damage: {outcome}: {count}")
    for violation in report.violations[:SHOWN_MAX]:
        print(f"VIOLATION {violation}")
    print(f"violations: {len(report.violations)}")


def _part(text: str) -> slice:
    """`2/4`: the second of four parts."""
    part, parts = (int(word) for word in text.split("/"))
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"no part {text}")
    return slice(part - 1, None, parts)


def main(arguments: list[str] | None = None) -> int:
    """The command -> its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=(__doc__ or "").split(".")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), action="append")
    parser.add_argument("--kind", choices=sorted(SHARES), action="append")
    parser.add_argument("--damage", metavar="NAME", action="append", help="of this kind of damage only")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case; needs --seed and --scenario")
    parser.add_argument("--every", action="store_true", help="each case of the seed, whatever --cases says")
    parser.add_argument("--part", type=_part, default=slice(0, None, 1), metavar="I/N", help="of --every: part I of N")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # what the pool says about its damage is not what is looked at here
    wanted = Wanted(options.seed, options.cases, tuple(options.scenario or SCENARIOS), tuple(options.kind or SHARES))
    if options.damage:
        wanted.damages, wanted.kinds = tuple(options.damage), ("damage",)
    if options.only:
        kind, number = options.only.split(":")
        wanted.only, wanted.cases = (kind, int(number)), len(wanted.scenarios)
    if options.every:
        wanted.every, wanted.cases = options.part, sys.maxsize
    started = time.monotonic()
    report = run(wanted)
    show(report, time.monotonic() - started)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())

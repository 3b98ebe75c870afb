"""The n-th operation fails, for every n: media operations, commits and syncs, with an I/O error or for want of room."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from kvfs.errors import KvfsError
from tests.sim.checker import Allowed, BrokenPromiseError, Verdict, examine
from tests.sim.crashes import CrashState
from tests.sim.scenarios import SCENARIOS, Run
from tests.sim.trace import Trace
from tests.sim.world import FaultPlan, Ground, ground, kill


@dataclass(frozen=True, slots=True)
class Kind:
    """How operations fail: so many in a row, for want of room or with an I/O error."""

    length: int
    full: bool


KINDS: Final = (Kind(1, full=False), Kind(1, full=True), Kind(25, full=False))


class Failer:
    """Runs of a scenario, each from its beginning, with failing operations.

    Case `number`: kind `number % 3`, n = `number // 3 + 1`.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.seed = seed
        self._scenario = SCENARIOS[name]

    async def operations(self) -> int:
        """How many operations there are to fail."""
        plan = FaultPlan()
        await self._run(plan)
        return plan.count

    async def fail(self, number: int) -> Verdict:
        """One run with one failure; afterwards what was acknowledged is there, and nothing else."""
        kind = KINDS[number % len(KINDS)]
        first = number // len(KINDS) + 1
        return await self._run(FaultPlan(range(first, first + kind.length), full=kind.full))

    async def _run(self, plan: FaultPlan) -> Verdict:
        scenario, trace = self._scenario, Trace()
        with ground(scenario.shape, self.seed, trace, plan, delayed=scenario.in_background) as place:
            await place.make()
            pool = await place.open()
            run = Run(scenario, pool, trace, self.seed)
            try:
                with contextlib.suppress(KvfsError):  # the last drain may fail, too: the next start recovers
                    await run.play(plan)
            finally:
                kill(pool)
            _check_run(run, plan)
            plan.armed = False
            return await examine(
                place,
                _as_it_is(place),
                scenario.tenants,
                [Allowed([client.state], client.history) for client in run.clients],
            )


def _check_run(run: Run, plan: FaultPlan) -> None:
    """Nothing wrong was read, and once the fault is gone things work, unless the pool had to refuse writes."""
    for client in run.clients:
        if client.wrong:
            raise BrokenPromiseError(client.wrong[0])
    if run.refused_at_end and not ("commit" in plan.failed or "sync" in plan.failed):
        raise BrokenPromiseError(f"after {plan.failed} failed, still: {run.refused_at_end[0]!r}")


def _as_it_is(place: Ground) -> CrashState:
    """The pool's files and media as the run left them."""
    log = place.catalog_path.with_name(place.catalog_path.name + "-wal")
    return CrashState(
        place.catalog_path.read_bytes(), log.read_bytes() if log.exists() else b"", dict(place.driver.contents)
    )

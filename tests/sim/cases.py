"""Cases: one fault at one place of one recorded run. A case has a name that finds it again: `kill:17`, `power:3` ...

kill    a killed process, between any two operations or in the middle of a write to a medium
power   a power loss there: writes that were not flushed are kept, lost or torn, commits that were not synced end early
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.sim import crashes
from tests.sim.checker import Allowed, Verdict, examine, versions
from tests.sim.crashes import CrashState, MediaHistory, Point
from tests.sim.model import State
from tests.sim.scenarios import Recorded
from tests.sim.trace import Began, Ended, Synced, Trace

REBUILD_EVERY: Final = 5
"""One crash case in so many is also rebuilt from its media."""


class Crasher:
    """Kills and power losses of one recorded run."""

    def __init__(self, recorded: Recorded, seed: int, rebuild_every: int = REBUILD_EVERY) -> None:
        self.recorded = recorded
        self.seed = seed
        self.rebuild_every = rebuild_every
        self.points = crashes.points(self.recorded.trace)
        self._media = MediaHistory(self.recorded.trace, self.recorded.start)

    async def kill(self, number: int) -> Verdict:
        """Kill at point `number`; in odd repetitions (`number` beyond the points) the next write is cut short."""
        repeat, index = divmod(number, len(self.points))
        point = self.points[index]
        epoch = self.recorded.trace.epochs[point.epoch]
        state = CrashState(epoch.database, epoch.log[: point.wal_bytes], await self._media.at(point.events))
        torn = crashes.torn_write(self.recorded.trace, point.events)
        if repeat and torn is not None:
            await crashes.write_prefix(state.media, torn, random.Random(self.seed + number))
        allowed = allowed_after_kill(self.recorded.trace, point)
        return await self._examine(state, allowed, number)

    async def power(self, number: int) -> Verdict:
        """Lose power at point `number`; numbers beyond the points are the same points with other losses."""
        point = self.points[number % len(self.points)]
        choice = random.Random(self.seed * 7919 + number)
        media, lost = await self._media.after_power_loss(point.events, choice)
        log = crashes.log_after_power_loss(self.recorded.trace, point, choice)
        state = CrashState(self.recorded.trace.epochs[point.epoch].database, log, media, lost)
        return await self._examine(state, allowed_after_power_loss(self.recorded.trace, point), number)

    async def _examine(self, state: CrashState, allowed: Sequence[Allowed], number: int) -> Verdict:
        with_rebuild = number % self.rebuild_every == 0
        return await examine(self.recorded.place, state, self.recorded.tenants, allowed, with_rebuild=with_rebuild)


@dataclass(slots=True)
class _Told:
    """What a client had been told at a moment."""

    acked: int = 0
    synced: int = 0
    underway: list[State] = field(default_factory=list)
    """What it would be after the change that it had asked for, if any."""


def _told(trace: Trace, point: Point) -> list[_Told]:
    found = [_Told() for _ in trace.histories]
    for event in trace.events[: point.events]:
        happening = event.happening
        if isinstance(happening, Began):
            found[happening.client].underway = [happening.after]
        elif isinstance(happening, Ended):
            found[happening.client].acked = happening.acked
            found[happening.client].underway = []
        elif isinstance(happening, Synced):
            for told, acked in zip(found, happening.acked, strict=False):
                told.synced = max(told.synced, acked)
    return found


def _started(trace: Trace, point: Point) -> int:
    """How many clients surely had their directory: a first sync follows when all have."""
    synced = any(isinstance(event.happening, Synced) for event in trace.events[: point.events])
    return len(trace.histories) if synced else 0


def _of_clients(trace: Trace, point: Point) -> Iterator[tuple[_Told, list[State], bool]]:
    """What each client had been told, the states up to then, and whether it surely had its directory."""
    started = _started(trace, point)
    for number, told in enumerate(_told(trace, point)):
        yield told, trace.histories[number][: told.acked + 1], number < started


def allowed_after_kill(trace: Trace, point: Point) -> list[Allowed]:
    """Exactly what was acknowledged, or that and what was under way."""
    return [
        Allowed([history[-1], *told.underway], history, None, started)
        for told, history, started in _of_clients(trace, point)
    ]


def allowed_after_power_loss(trace: Trace, point: Point) -> list[Allowed]:
    """Any state from the last sync on; what was synced and has not changed since then is readable."""
    return [
        Allowed([*history[told.synced :][::-1], *told.underway], history, versions(history[told.synced]), started)
        for told, history, started in _of_clients(trace, point)
    ]

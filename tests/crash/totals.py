"""What a number of crash rounds did, as a table for people and as JSON for programs."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.crash.journal import Replay
from tests.crash.model import State


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """How the space of a pool came back after everything in it was removed."""

    rounds: int
    """That the pool had gone through."""
    segments_left: int
    seconds: float


@dataclass
class Totals:
    """What all rounds together did; operations are counted by kind."""

    seed: int = 0
    rounds: int = 0
    acknowledged: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    """Begun and not acknowledged when the mount was killed."""
    in_flight_done: Counter[str] = field(default_factory=Counter)
    """Of these, the ones that the tree shows as done."""
    recovery_kills: int = 0
    remount_s: list[float] = field(default_factory=list)
    reclaimed: list[Reclaimed] = field(default_factory=list)
    failed_rounds: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def count(self, replays: list[Replay], states: list[State]) -> None:
        """One more round: its journals, and the states that the tree shows."""
        self.rounds += 1
        for replayed, state in zip(replays, states, strict=True):
            self.acknowledged += replayed.acknowledged
            if replayed.in_flight is not None:
                kind = replayed.in_flight["kind"]
                self.in_flight[kind] += 1
                self.in_flight_done[kind] += state != replayed.state

    def table(self) -> str:
        """Counts and the 95 % upper bound that they allow to claim."""
        times = sorted(self.remount_s) or [0.0]
        lines = [
            f"rounds                    {self.rounds}",
            f"acknowledged operations   {self.acknowledged.total()}",
            *(f"  {kind:<24}{count}" for kind, count in sorted(self.acknowledged.items())),
            f"operations in flight      {self.in_flight.total()}, of these done {self.in_flight_done.total()}",
            f"kills during recovery     {self.recovery_kills}",
            f"remount median/max s      {statistics.median(times):.2f} / {times[-1]:.2f}",
            *(f"space after removal       {r.segments_left} segments, {r.seconds:.0f} s" for r in self.reclaimed),
            f"violations                {len(self.violations)} in {len(self.failed_rounds)} rounds",
        ]
        if self.rounds and not self.violations:
            lines.append(f"95 % upper bound          {100 * 3 / self.rounds:.2f} % of kills lose or damage something")
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        times = sorted(self.remount_s) or [0.0]
        return {
            "seed": self.seed,
            "rounds": self.rounds,
            "acknowledged": dict(self.acknowledged),
            "in_flight": dict(self.in_flight),
            "in_flight_done": dict(self.in_flight_done),
            "recovery_kills": self.recovery_kills,
            "remount_median_s": round(statistics.median(times), 3),
            "remount_max_s": round(times[-1], 3),
            "segments_left": [reclaimed.segments_left for reclaimed in self.reclaimed],
            "failed_rounds": self.failed_rounds,
            "violations": self.violations,
        }

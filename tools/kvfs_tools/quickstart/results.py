"""What one replay amounted to, collected from the player's events."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvfs_tools.quickstart import player


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below or at which `fraction` of `values` lie (nearest rank); NaN if there are none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def ratio(part: float, whole: float) -> float:
    """Quotient of two numbers; NaN when there is no whole."""
    return part / whole if whole else math.nan


def process_cpu_seconds(pid: int) -> float:
    """User and system time of process `pid` so far, in clock ticks of 10 ms; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Direction:
    """Stores or loads: how long each took, and the wall time during which some were under way."""

    each_ms: list[float] = field(default_factory=list)
    wall_ms: float = 0.0

    def gigabytes(self, block_bytes: int) -> float:
        """Gigabytes (10^9 bytes) moved."""
        return len(self.each_ms) * block_bytes / 1e9

    def gigabytes_per_second(self, block_bytes: int) -> float:
        """Throughput over the wall time."""
        return ratio(self.gigabytes(block_bytes), self.wall_ms / 1e3)


@dataclass(slots=True)
class ReplayStatistics:
    """Everything that a table or a check needs to know of one target's replays."""

    requests: int = 0
    lookups: int = 0
    hits: int = 0
    lookup_ms: float = 0.0
    store: Direction = field(default_factory=Direction)
    load: Direction = field(default_factory=Direction)
    """Loads of a mount that has just served the same blocks."""
    cold: Direction = field(default_factory=Direction)
    """Loads after `begin_cold`: from a fresh mount, with the page cache dropped."""
    is_cold: bool = False
    acknowledged: set[int] = field(default_factory=set)
    outcomes: dict[int, str] = field(default_factory=dict)
    """Per block of a LOAD job: player.EXACT or player.ABSENT."""
    wrong: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0
    """Of the process that serves the mount; 0 where there is none."""
    direct_io: bool = False
    finished: bool = False

    def take(self, event: player.Event) -> None:
        """Count one event."""
        match event:
            case player.Acknowledged(block):
                self.acknowledged.add(block)
            case player.Batch():
                direction = self.store if event.kind == "store" else self.cold if self.is_cold else self.load
                direction.each_ms += event.each_ms
                direction.wall_ms += event.wall_ms
            case player.Lookups():
                self.requests += 1
                self.lookups += event.count
                self.hits += event.hits
                self.lookup_ms += event.wall_ms
            case player.Loaded():
                self.outcomes[event.block] = event.outcome
            case player.Wrong():
                self.wrong.append(f"block {event.block}: {event.what}")
            case player.End():
                self.direct_io = event.direct_io
                self.finished = True

    def cpu_seconds_per_gigabyte(self, block_bytes: int) -> float:
        """CPU of the serving process per gigabyte stored or loaded."""
        moved = sum(direction.gigabytes(block_bytes) for direction in (self.store, self.load, self.cold))
        return ratio(self.cpu_seconds, moved)

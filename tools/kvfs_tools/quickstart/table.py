"""The quickstart's short table."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from kvfs_tools.quickstart.results import ReplayStatistics, percentile, ratio
from kvfs_tools.quickstart.scenario import Outcome

Measure = Callable[[ReplayStatistics], float]


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _rows(block_bytes: int) -> list[tuple[str, int, Measure, bool]]:
    """Label, digits, how it is computed, and whether a ratio to the plain directory means something."""
    return [
        ("blocks stored", 0, lambda s: len(s.acknowledged), False),
        ("blocks verified", 0, lambda s: len(s.cold.each_ms), False),
        ("lookups", 0, lambda s: s.lookups, False),
        ("hits", 0, lambda s: s.hits, False),
        ("misses", 0, lambda s: s.lookups - s.hits, False),
        ("lookups per second", 0, lambda s: ratio(s.lookups, s.lookup_ms / 1e3), True),
        ("store GB/s", 2, lambda s: s.store.gigabytes_per_second(block_bytes), True),
        ("load GB/s, cold", 2, lambda s: s.cold.gigabytes_per_second(block_bytes), True),
        ("store p50 ms", 1, lambda s: percentile(s.store.each_ms, 0.50), True),
        ("store p99 ms", 1, lambda s: percentile(s.store.each_ms, 0.99), True),
        ("load p50 ms, cold", 1, lambda s: percentile(s.cold.each_ms, 0.50), True),
        ("load p99 ms, cold", 1, lambda s: percentile(s.cold.each_ms, 0.99), True),
        ("CPU s/GB of the mount", 2, lambda s: s.cpu_seconds_per_gigabyte(block_bytes), False),
    ]


def replay_table(outcome: Outcome) -> Table:
    """kvfs beside its calibration."""
    settings = outcome.settings
    mib = settings.block_bytes / (1 << 20)
    table = Table(title=f"{mib:g} MiB blocks, {settings.threads} threads, GB = 10^9 bytes", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("kvfs", "plain directory", "null pyfuse3", "kvfs / plain"):
        table.add_column(name, justify="right")
    for label, digits, measure, comparable in _rows(settings.block_bytes):
        values = [measure(target) for target in (outcome.kvfs, outcome.raw, outcome.null)]
        if label.startswith("CPU"):
            values[1] = math.nan
        quotient = ratio(values[0], values[1]) if comparable else math.nan
        table.add_row(label, *(_number(value, digits) for value in values), _number(quotient, 2))
    return table


def print_outcome(outcome: Outcome, console: Console) -> None:
    """The table and the lines that say what survived and what leaked."""
    console.print(replay_table(outcome))
    direct = "O_DIRECT" if outcome.kvfs.direct_io else "buffered, because the probe for O_DIRECT failed"
    exact = sum(1 for state in outcome.kvfs.outcomes.values() if state == "exact")
    searched = outcome.search
    lines = (
        f"I/O as vLLM's probe chose it: {direct}",
        f"acknowledged at kill -9: {outcome.acknowledged_at_kill} blocks; byte-exact at the end: {exact}"
        f" of {outcome.expected.distinct}",
        f"searched for plaintext: {searched.files} files, {searched.searched_bytes / 1e6:.0f} MB; planted control"
        f" {'found' if outcome.control_found else 'NOT FOUND'}",
        f"sealed bytes found in plaintext: {searched.found_bytes}",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)

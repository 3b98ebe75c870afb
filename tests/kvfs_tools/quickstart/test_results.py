"""Counting events, and the arithmetic of the table."""

import math
import os

import pytest
from rich.console import Console

from kvfs_tools.quickstart import player, table, trace
from kvfs_tools.quickstart.plaintext import SearchReport
from kvfs_tools.quickstart.results import Direction, ReplayStatistics, percentile, process_cpu_seconds, ratio
from kvfs_tools.quickstart.scenario import Outcome, Settings


@pytest.mark.parametrize(("fraction", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1), (0.001, 1)])
def test_percentile_is_the_nearest_rank(fraction: float, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), fraction) == value


def test_nothing_measured_is_not_a_number() -> None:
    assert math.isnan(percentile([], 0.5))
    assert math.isnan(ratio(1, 0))


def test_throughput() -> None:
    direction = Direction([1.0, 1.0, 2.0], wall_ms=2.0)
    assert direction.gigabytes(1_000_000) == pytest.approx(0.003)
    assert direction.gigabytes_per_second(1_000_000) == pytest.approx(1.5)


def test_cpu_of_a_process() -> None:
    assert process_cpu_seconds(os.getpid()) > 0
    assert process_cpu_seconds(2**22 + 1) == 0


def statistics(blocks: int = 4) -> ReplayStatistics:
    made = ReplayStatistics(cpu_seconds=1.0)
    made.take(player.Lookups(6, 2, 1.0))
    made.take(player.Batch("store", 10.0, [1.0] * blocks))
    made.take(player.Batch("load", 10.0, [1.0] * 2))
    made.is_cold = True
    made.take(player.Batch("load", 10.0, [1.0] * blocks))
    for block in range(blocks):
        made.take(player.Loaded(block, player.EXACT))
    made.take(player.End(direct_io=True))
    return made


def outcome() -> Outcome:
    kvfs, raw, null = statistics(), statistics(), statistics()
    expected = trace.Expectation(lookups=6, hits=2, distinct=4)
    return Outcome(Settings(4, 1 << 20), expected, kvfs, raw, null, 2, SearchReport(3, 1000), control_found=True)


def test_cpu_per_gigabyte_counts_all_that_was_moved() -> None:
    assert statistics().cpu_seconds_per_gigabyte(100_000_000) == pytest.approx(1.0)


def test_success_has_no_failures() -> None:
    assert outcome().failures() == []


def test_every_failure_is_named() -> None:
    bad = outcome()
    bad.kvfs.wrong.append("block 1: wrong bytes")
    bad.kvfs.outcomes[2] = player.ABSENT
    bad.kvfs.outcomes.pop(3)
    bad.raw.hits = 1
    bad.null.hits = 3
    bad.control_found = False
    text = "\n".join(bad.failures())
    for part in ("wrong bytes", "1 acknowledged blocks are absent", "3 blocks verified, 4", "raw directory: 1 hits"):
        assert part in text
    assert "null filesystem: 3 hits" in text
    assert "planted control was not found" in text


def test_table_shows_ratio_and_counts() -> None:
    console = Console(record=True, width=120)
    table.print_outcome(outcome(), console)
    text = console.export_text()
    assert "sealed bytes found in plaintext: 0" in text
    assert "planted control found" in text
    assert "1.00" in next(line for line in text.splitlines() if "store GB/s" in line)
    assert "acknowledged at kill -9: 2 blocks; byte-exact at the end: 4 of 4" in text

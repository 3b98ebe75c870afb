"""Counters and histograms: bucket edges, export, and that importing them does not pull in prometheus-client."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kvfs.errors import Status
from kvfsd.metrics import BUCKETS, READ_STAGES, WRITE_STAGES, Histogram, Metrics, prometheus_text


@pytest.mark.parametrize(
    ("elapsed_ns", "bucket"),
    [(0, 0), (1023, 0), (1024, 1), (2047, 1), (2048, 2), ((1 << 35) - 1, 25), (1 << 35, BUCKETS), (1 << 60, BUCKETS)],
)
def test_an_observation_lands_in_the_bucket_below_its_bound(elapsed_ns: int, bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(elapsed_ns)
    counts = [number for _, number in histogram.cumulative()]
    assert counts == [0] * bucket + [1] * (BUCKETS + 1 - bucket)


@given(st.lists(st.integers(0, 1 << 40), max_size=50))
def test_buckets_are_cumulative_and_true_to_their_bounds(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    for bound, number in histogram.cumulative():
        limit_ns = float(bound) * 1e9
        assert number == sum(1 for value in values if value < limit_ns)
    assert histogram.count == len(values)
    assert histogram.total_ns == sum(values)


def test_quantiles_are_bucket_bounds() -> None:
    histogram = Histogram()
    assert histogram.quantile_ns(0.99) == 0
    for _ in range(99):
        histogram.observe(3000)
    histogram.observe(5_000_000)
    assert histogram.quantile_ns(0.5) == 4096
    assert histogram.quantile_ns(1.0) == 1 << 23


def test_the_text_export_parses_and_carries_every_stage_counter_command_and_gauge() -> None:
    metrics = Metrics(gauges={"pool_free_bytes": lambda: 42.0})
    metrics.write["seal"].histogram.observe(100_000)
    metrics.read["open"].errors += 1
    metrics.counters.bad_records = 3
    metrics.command_counts("Lookup")[Status.NOT_FOUND] += 7
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(prometheus_text(metrics).decode())
        for sample in family.samples
    }
    assert samples["kvfs_stage_seconds_count", (("path", "write"), ("stage", "seal"))] == 1
    assert samples["kvfs_stage_seconds_sum", (("path", "write"), ("stage", "seal"))] == pytest.approx(0.0001)
    assert samples["kvfs_stage_errors_total", (("path", "read"), ("stage", "open"))] == 1
    assert samples["kvfs_bad_records_total", ()] == 3
    assert samples["kvfs_commands_total", (("command", "Lookup"), ("status", "NOT_FOUND"))] == 7
    assert samples["kvfs_pool_free_bytes", ()] == 42
    for path, stages in (("write", WRITE_STAGES), ("read", READ_STAGES)):
        for stage in stages:
            assert ("kvfs_stage_seconds_count", (("path", path), ("stage", stage))) in samples


def test_a_snapshot_is_plain_values() -> None:
    metrics = Metrics()
    metrics.command_counts("Commit")[Status.OK] += 2
    metrics.write["commit"].histogram.observe(2000)
    snapshot = metrics.snapshot()
    assert snapshot["commands"] == {"Commit": {"OK": 2}}
    assert snapshot["stages"]["write"]["commit"] == {
        "calls": 1,
        "errors": 0,
        "total_ns": 2000,
        "p50_ns": 2048,
        "p99_ns": 2048,
    }


def test_counting_does_not_import_prometheus_client() -> None:
    code = "import sys, kvfsd.metrics; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0

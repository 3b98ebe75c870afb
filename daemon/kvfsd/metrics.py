"""Counters and latency histograms of the DPU half: a few integers each, turned into Prometheus families on demand.

An observation is one `bit_length` and three additions on preallocated lists; nothing is locked, because everything that
counts runs on the event loop. `prometheus-client` is imported only by :func:`prometheus_families`, when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kvfs.errors import Status

if TYPE_CHECKING:
    from prometheus_client.core import Metric

BUCKET_FIRST_EXPONENT: Final = 10
"""The first bucket holds what took less than 2^10 ns = 1.024 us; each next one twice as much."""
BUCKETS: Final = 26
"""The last bounded bucket ends at 2^35 ns = 34 s, past limits.COMMAND_DEADLINE_MS; the one after it is unbounded."""

WRITE_STAGES: Final = ("admit", "schedule", "digest", "seal", "place", "write", "commit")
READ_STAGES: Final = ("admit", "schedule", "locate", "read", "open", "verify")


class Histogram:
    """How often something took how long: counts in buckets of powers of two nanoseconds."""

    __slots__ = ("_buckets", "count", "total_ns")

    def __init__(self) -> None:
        self._buckets = [0] * (BUCKETS + 1)
        self.count = 0
        self.total_ns = 0

    def observe(self, elapsed_ns: int) -> None:
        """Count one event of `elapsed_ns`, 0 or more."""
        index = elapsed_ns.bit_length() - BUCKET_FIRST_EXPONENT
        self._buckets[0 if index < 0 else index if index < BUCKETS else BUCKETS] += 1
        self.count += 1
        self.total_ns += elapsed_ns

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """(upper bound in seconds as text, events at or below it), the last bound being +Inf."""
        running = 0
        for index in range(BUCKETS):
            running += self._buckets[index]
            yield repr((1 << (BUCKET_FIRST_EXPONENT + index)) / 1e9), running
        yield "+Inf", running + self._buckets[BUCKETS]

    def quantile_ns(self, quantile: float) -> int:
        """Upper bound in ns of the bucket that the quantile (0 .. 1) falls into; 0 without observations."""
        wanted = quantile * self.count
        running = 0
        for index, number in enumerate(self._buckets):
            running += number
            if number and running >= wanted:
                return 1 << (BUCKET_FIRST_EXPONENT + index)
        return 0


class StageMetrics:
    """One stage of a path: how often it was entered, how often it raised, and how long it took."""

    __slots__ = ("errors", "histogram")

    def __init__(self) -> None:
        self.errors = 0
        self.histogram = Histogram()

    @property
    def calls(self) -> int:
        """Times the stage was run, errors included."""
        return self.histogram.count


@dataclass(slots=True)
class Counters:
    """Plain totals since start; the field's name and `_total` is the metric's name."""

    internal_errors: int = 0
    """Bugs of ours: exceptions that are no KvfsError."""
    bad_records: int = 0
    """Replicas that failed one of their checks."""
    quarantined_objects: int = 0
    quarantined_unlinks: int = 0
    restored_objects: int = 0
    purged_objects: int = 0
    medium_retries: int = 0
    """Reads or writes that were tried again after a medium did not answer."""
    placed_elsewhere: int = 0
    """Records that went to other media than those of their first choice, because one was full or did not answer."""
    metadata_log_waits: int = 0
    """Commands that waited because the metadata log was too far behind."""
    checkpoint_waits: int = 0
    """Commands that waited because the catalog's write-ahead log was over its bound."""
    evicted_objects: int = 0
    """Objects that went to make room, and what was charged for them."""
    evicted_bytes: int = 0
    expired_objects: int = 0
    """Objects whose time (`user.kvfs.ttl`) was over."""
    fenced_objects: int = 0
    """Blocks removed because the config.json beside them is that of another layout now, and how often that was."""
    layout_changes: int = 0
    pins_refused: int = 0
    """New objects that a directory's default would have pinned, and the share for pins had no room."""
    quota_refusals: int = 0
    """Times that something did not fit a quota at once; with eviction most of these end well."""
    pool_full_refusals: int = 0
    replayed_completions: int = 0
    """Mutating commands that came again and got their stored completion."""
    attachments_refused: int = 0
    """Mounts that had no right to the tenant they named."""
    events_overflowed: int = 0
    damaged_names: int = 0
    """Names left out of a listing because they did not open."""
    damaged_rows: int = 0
    """Rows of the catalog that failed their checks, each once."""
    payload_bytes_written: int = 0
    payload_bytes_read: int = 0


@dataclass(slots=True)
class Metrics:
    """All numbers of one Service. `gauges` are read when somebody asks."""

    write: dict[str, StageMetrics] = field(default_factory=lambda: {name: StageMetrics() for name in WRITE_STAGES})
    read: dict[str, StageMetrics] = field(default_factory=lambda: {name: StageMetrics() for name in READ_STAGES})
    commands: dict[str, list[int]] = field(default_factory=dict)
    """Command name -> completions by status number."""
    counters: Counters = field(default_factory=Counters)
    gauges: dict[str, Callable[[], float]] = field(default_factory=dict)

    def command_counts(self, command: str) -> list[int]:
        """The list, indexed by status, that completions of `command` are counted in."""
        return self.commands.setdefault(command, [0] * (max(Status) + 1))

    def snapshot(self) -> dict[str, object]:
        """All numbers as plain values, for `status` and tests; times in nanoseconds."""
        return {
            "stages": {
                path: {name: _stage_snapshot(stage) for name, stage in stages.items()}
                for path, stages in (("write", self.write), ("read", self.read))
            },
            "commands": {
                command: {Status(status).name: number for status, number in enumerate(counts) if number}
                for command, counts in self.commands.items()
            },
            "counters": {name: getattr(self.counters, name) for name in Counters.__slots__},
            "gauges": {name: read() for name, read in self.gauges.items()},
        }


def _stage_snapshot(stage: StageMetrics) -> dict[str, int]:
    histogram = stage.histogram
    return {
        "calls": stage.calls,
        "errors": stage.errors,
        "total_ns": histogram.total_ns,
        "p50_ns": histogram.quantile_ns(0.5),
        "p99_ns": histogram.quantile_ns(0.99),
    }


def prometheus_families(metrics: Metrics) -> Iterator[Metric]:
    """The metrics as families of prometheus-client, all names starting with `kvfs_`, times in seconds."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    labels = ("path", "stage")
    seconds = HistogramMetricFamily("kvfs_stage_seconds", "Time spent in a stage of the data path", labels=labels)
    errors = CounterMetricFamily("kvfs_stage_errors", "Times a stage raised", labels=labels)
    for path, stages in (("write", metrics.write), ("read", metrics.read)):
        for name, stage in stages.items():
            buckets = list(stage.histogram.cumulative())
            seconds.add_metric((path, name), buckets=buckets, sum_value=stage.histogram.total_ns / 1e9)
            errors.add_metric((path, name), stage.errors)
    yield seconds
    yield errors
    commands = CounterMetricFamily("kvfs_commands", "Completions by command and status", labels=("command", "status"))
    for command, counts in metrics.commands.items():
        for status, number in enumerate(counts):
            if number:
                commands.add_metric((command, Status(status).name), number)
    yield commands
    for name in Counters.__slots__:
        yield CounterMetricFamily(f"kvfs_{name}", f"Total of {name}", value=getattr(metrics.counters, name))
    for name, read in metrics.gauges.items():
        yield GaugeMetricFamily(f"kvfs_{name}", f"Current {name}", value=read())


def prometheus_text(metrics: Metrics) -> bytes:
    """The metrics in Prometheus' text exposition format."""
    from prometheus_client import CollectorRegistry, generate_latest

    class _Collector:
        def collect(self) -> Iterator[Metric]:
            return prometheus_families(metrics)

    registry = CollectorRegistry()
    registry.register(_Collector())  # duck-typed: only collect() is called
    return generate_latest(registry)

"""`kvfs status`: the mounts of this user (and the system's), asked over their admin sockets."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kvfs.errors import ConfigError, KvfsError
from kvfsd.admin import admin_client, mounts
from kvfsd.cli.output import print_table
from kvfsd.units import format_bytes

ASK_DEADLINE_MS: Final = 5_000
"""A mount that does not answer by then is shown as silent; the others are shown all the same."""


def collect(mountpoint: str | None) -> list[dict[str, Any]]:
    """What is known of each mount: its record, `state`, and for a live one the answer of `status`.

    state: "serving" and others as the mount says; "silent" (process alive, no answer, `error` says why);
    "dead" (process gone, mount or record left behind).

    Raises:
        ConfigError: `mountpoint` is given and is not among them.
    """
    wanted = None if mountpoint is None else mounts.resolve_mountpoint(mountpoint)
    mounted = set(mounts.kvfs_mountpoints())
    found = []
    for _, record in mounts.all_records():
        mounted.discard(record.mountpoint)
        if wanted in (None, record.mountpoint):
            found.append(_ask(record))
    unknown = [{"mountpoint": path, "state": "unknown"} for path in sorted(mounted) if wanted in (None, path)]
    if wanted is not None and not found and not unknown:
        raise ConfigError(f"{wanted} is no kvfs mountpoint; kvfs status lists the mounts")
    return found + unknown


def _ask(record: mounts.MountRecord) -> dict[str, Any]:
    known: dict[str, Any] = msgspec.to_builtins(record)
    if not record.alive:
        return known | {"state": "dead"}
    try:
        return {**known, **admin_client.call(record.admin_socket, "status", deadline_ms=ASK_DEADLINE_MS)}
    except KvfsError as error:
        return known | {"state": "silent", "error": str(error)}


def print_mounts(found: list[dict[str, Any]], *, stages: bool) -> None:
    """The table of mounts, and with `stages` one of the pipeline's stages for each."""
    if not found:
        print("no kvfs mounts")
        return
    numbers = ("USED#", "QUOTA#", "FILES#", "HITS#", "MISSES#", "LOG LAG ms#", "PID#")
    columns = ("MOUNTPOINT", "TENANT", "STATE", *numbers, "POOL")
    print_table(columns, [_row(mount) for mount in found])
    for mount in found:
        if mount.get("state") in ("silent", "dead"):
            print(f"{mount['mountpoint']}: {_advice(mount)}")
        if stages and "metrics" in mount:
            _print_stages(mount)


def _advice(mount: dict[str, Any]) -> str:
    if mount["state"] == "dead":
        return f"process {mount['pid']} is gone; run: kvfs umount {mount['mountpoint']}"
    return f"process {mount['pid']} runs but does not answer: {mount['error']}"


def _row(mount: dict[str, Any]) -> list[object]:
    usage = mount.get("usage")
    used = quota = files = "-"
    if usage is not None:
        used, files = format_bytes(usage["used_bytes"]), str(usage["used_objects"])
        quota = format_bytes(usage["quota_bytes"]) if usage["quota_bytes"] else "none"
    metrics = mount.get("metrics", {})
    hits, misses = hits_and_misses(metrics)
    lag_s = metrics.get("gauges", {}).get("metadata_log_lag_seconds")
    lag = "-" if lag_s is None else f"{lag_s * 1000:.0f}"
    who = [mount["mountpoint"], mount.get("tenant", "-"), mount["state"]]
    return [*who, used, quota, files, hits, misses, lag, mount.get("pid", "-"), mount.get("pool", "-")]


def hits_and_misses(metrics: dict[str, Any]) -> tuple[int, int]:
    """Lookups that found their name, and those that did not, of a metrics snapshot."""
    lookups = metrics.get("commands", {}).get("Lookup", {})
    return lookups.get("OK", 0), lookups.get("NOT_FOUND", 0)


def _print_stages(mount: dict[str, Any]) -> None:
    rows = [
        [path, name, stage["calls"], stage["errors"], *_latencies(stage)]
        for path, stages in mount["metrics"]["stages"].items()
        for name, stage in stages.items()
    ]
    columns = ("PATH", "STAGE", "CALLS#", "ERRORS#", "MEAN us#", "P50 us <=#", "P99 us <=#")
    print_table(columns, rows, title=f"stages of {mount['mountpoint']}")


def _latencies(stage: dict[str, int]) -> list[str]:
    mean_ns = stage["total_ns"] / stage["calls"] if stage["calls"] else 0
    return [f"{time_ns / 1000:.1f}" for time_ns in (mean_ns, stage["p50_ns"], stage["p99_ns"])]

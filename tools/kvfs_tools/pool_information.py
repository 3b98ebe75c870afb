"""What there is to say about a pool: read from its state directory, catalog and superblocks."""

from __future__ import annotations

import datetime
from typing import Any

from kvfs_tools.readonly import ReadOnlyPool, open_read_only
from kvfsd.admin.admin_methods import tenant_value
from kvfsd.catalog import schema
from kvfsd.catalog.rows import SegmentRow
from kvfsd.catalog.schema import MediumState
from kvfsd.cli.options import KekOptions
from kvfsd.cli.output import print_table
from kvfsd.ondisk import superblock as superblock_format
from kvfsd.pool.poolmedia import PoolMedium
from kvfsd.units import format_bytes


async def collect(directory: str, options: KekOptions) -> dict[str, Any]:
    """Everything `kvfsctl pool info` shows, as JSON values; sizes in bytes."""
    async with open_read_only(directory, options) as opened:
        pool = opened.pool
        rows = pool.catalog.segments.all()
        return {
            "uuid": pool.file.uuid,
            "directory": str(pool.directory),
            "open_elsewhere": pool.live,
            "pool_file_version": pool.file.version,
            "superblock_version": superblock_format.VERSION,
            "catalog_version": schema.VERSION,
            "replicas": pool.replicas,
            "key_directory": pool.file.key_directory,
            "kek": {"kind": pool.file.kek.kind, "name": pool.file.kek.name},
            "media": [_medium(opened, index, medium, rows) for index, medium in sorted(opened.media.items())],
            "tenants": [tenant_value(tenant) for tenant in pool.tenants.list()],
            "warnings": list(pool.warnings),
        }


def _medium(opened: ReadOnlyPool, index: int, medium: PoolMedium, rows: list[SegmentRow]) -> dict[str, Any]:
    superblock = medium.superblock
    used = [row for row in rows if row.medium == index]
    states = {row.medium: row.state for row in opened.pool.catalog.media.all()}
    free = superblock.segment_count - len(used)
    return {
        "index": index,
        "path": medium.medium.name,
        "uuid": superblock.medium.hex(),
        "state": MediumState(states[index]).name.lower() if index in states else "unknown",
        "size_bytes": superblock.size_bytes,
        "segment_bytes": superblock.segment_bytes,
        "segments": superblock.segment_count,
        "free_segments": free,
        "free_bytes": free * superblock.segment_bytes,
        "live_bytes": sum(row.live_bytes for row in used),
        "weight": superblock.weight,
        "failure_domain": superblock.failure_domain,
    }


def print_pool(found: dict[str, Any]) -> None:
    """The same for people."""
    state = "open in another process" if found["open_elsewhere"] else "closed"
    versions = f"format {found['superblock_version']}, catalog {found['catalog_version']}"
    print(f"pool {found['uuid']} in {found['directory']}: {state}, {versions}, {found['replicas']} replica(s)")
    print(f"key: {found['kek']['kind']} {found['kek']['name']}, key file in {found['key_directory']}")
    columns = ("MEDIUM#", "STATE", "SIZE#", "SEGMENTS#", "FREE#", "FREE BYTES#", "LIVE#", "WEIGHT#", "DOMAIN", "PATH")
    print_table(columns, [_medium_cells(medium) for medium in found["media"]])
    print_tenants(found["tenants"])


def _medium_cells(medium: dict[str, Any]) -> list[object]:
    sizes = [format_bytes(medium[key]) for key in ("size_bytes", "free_bytes", "live_bytes")]
    counts = [medium["segments"], medium["free_segments"]]
    rest = [medium["weight"], medium["failure_domain"] or "-", medium["path"]]
    return [medium["index"], medium["state"], sizes[0], *counts, *sizes[1:], *rest]


def print_tenants(tenants: list[dict[str, Any]]) -> None:
    """A table of tenants."""
    columns = ("TENANT", "NUMBER#", "USED#", "QUOTA#", "OBJECTS#", "OBJECT QUOTA#", "CREATED")
    print_table(columns, [_tenant_cells(tenant) for tenant in tenants])


def _tenant_cells(tenant: dict[str, Any]) -> list[object]:
    quota = format_bytes(tenant["quota_bytes"]) if tenant["quota_bytes"] else "none"
    use = [format_bytes(tenant["used_bytes"]), quota, tenant["used_objects"], tenant["quota_objects"] or "none"]
    return [tenant["name"], tenant["number"], *use, shown_time(tenant["created_ns"])]


def shown_time(time_ns: int) -> str:
    """Nanoseconds since the epoch as local time, to the second; the number itself if it is out of range."""
    try:
        moment = datetime.datetime.fromtimestamp(time_ns // 10**9, tz=datetime.UTC).astimezone()
    except (OverflowError, OSError, ValueError):
        return f"{time_ns} ns"
    return moment.strftime("%Y-%m-%d %H:%M:%S")

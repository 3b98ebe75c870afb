"""What `kvfsctl ls` and `kvfsctl stat` print."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from kvfs_tools.inspection import Node, TenantView
from kvfs_tools.pool_information import shown_time
from kvfs_tools.readonly import open_read_only
from kvfsd.cli.options import KekOptions
from kvfsd.cli.output import print_table, printable
from kvfsd.units import format_bytes

BLOCKS_SHOWN_MAX: Final = 100_000
"""Blocks that `stat` lists: a report of a larger file says how many there are in all."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What `ls` is asked for."""

    tenant: str
    path: str
    recursive: bool
    json: bool


async def list_objects(directory: str, options: KekOptions, asked: Listing) -> None:
    """Print a listing as it is read, so that a million names need no memory."""
    async with open_read_only(directory, options) as opened:
        view = TenantView(opened.pool, opened.pool.tenants.show(asked.tenant))
        for node in _listed(view, view.find(os.fsencode(asked.path)), recursive=asked.recursive):
            print(json.dumps(node_value(node)) if asked.json else _line(node, whole=asked.recursive))


def _listed(view: TenantView, start: Node, *, recursive: bool) -> Iterator[Node]:
    if not stat.S_ISDIR(start.inode.mode):
        yield start
    elif recursive:
        yield from (node for node in view.walk(start) if node.inode.ino != start.inode.ino)
    else:
        yield from view.children(start)


def node_value(node: Node) -> dict[str, Any]:
    """An object as JSON: sizes in bytes, times in nanoseconds; a path that is no UTF-8 has lone surrogates."""
    row = node.inode
    return {
        "path": os.fsdecode(node.path),
        "kind": node.kind,
        "ino": row.ino,
        "mode": row.mode,
        "nlink": row.nlink,
        "uid": row.uid,
        "gid": row.gid,
        "size": row.size,
        "stored_bytes": row.stored_bytes,
        "atime_ns": row.atime_ns,
        "mtime_ns": row.mtime_ns,
        "ctime_ns": row.ctime_ns,
        "generation": row.generation,
        **({"name_bad": True} if node.name_bad else {}),
    }


def _line(node: Node, *, whole: bool) -> str:
    row = node.inode
    name = node.path if whole else node.path.rpartition(b"/")[2]
    owner = f"{row.uid:>6} {row.gid:>6}"
    when = shown_time(row.mtime_ns)
    return f"{stat.filemode(row.mode)} {row.nlink:>3} {owner} {row.size:>14} {when} {printable(name)}"


async def describe_object(directory: str, options: KekOptions, tenant: str, path: str) -> dict[str, Any]:
    """Everything about one object as JSON values."""
    async with open_read_only(directory, options) as opened:
        view = TenantView(opened.pool, opened.pool.tenants.show(tenant))
        node = view.find(os.fsencode(path))
        target = view.link_target(node.inode)
        blocks: list[dict[str, Any]] = []
        count = 0
        for row in view.blocks(node.inode):
            count += 1
            if count <= BLOCKS_SHOWN_MAX:
                blocks.append(
                    {
                        "block": row.block,
                        "length": row.length,
                        "epoch": row.epoch,
                        "generation": row.generation,
                        "replicas": [location._asdict() for location in row.locations],
                    }
                )
        return {
            **node_value(node),
            "tenant": tenant,
            "target": None if target is None else os.fsdecode(target),
            "xattrs": [os.fsdecode(name) for name in view.xattr_names(node.inode.ino)],
            "block_count": count,
            "blocks": blocks,
        }


def print_object(found: dict[str, Any]) -> None:
    """The same for people."""
    print(f"{found['tenant']}:{printable(found['path'])}: {found['kind']}, object {found['ino']}")
    owner = f"owner {found['uid']}:{found['gid']}, {found['nlink']} name(s)"
    print(f"  {stat.filemode(found['mode'])}, {owner}, generation {found['generation']}")
    stored = f"{found['stored_bytes']} bytes stored in {found['block_count']} block(s)"
    print(f"  {found['size']} bytes ({format_bytes(found['size'])}), {stored}")
    for key in ("mtime_ns", "ctime_ns", "atime_ns"):
        print(f"  {key.removesuffix('_ns')} {shown_time(found[key])}")
    if found["target"] is not None:
        print(f"  link to {printable(found['target'])}")
    if found["xattrs"]:
        print(f"  extended attributes: {', '.join(printable(name) for name in found['xattrs'])}")
    if found["blocks"]:
        columns = ("BLOCK#", "BYTES#", "EPOCH#", "GENERATION#", "REPLICAS medium:segment:offset/4KiB")
        print_table(columns, [_block_cells(block) for block in found["blocks"]])


def _block_cells(block: dict[str, Any]) -> list[object]:
    places = [f"{place['medium']}:{place['segment']}:{place['offset']}" for place in block["replicas"]]
    return [block["block"], block["length"], block["epoch"], block["generation"], " ".join(places)]

"""Replay a request trace through the service, in process, and compare its hit rate with an independent LRU's.

    python -m tests.bench.trace_replay [TRACE.jsonl] [--requests N] [--percent 5 --percent 10 --percent 50]

A trace is JSON lines with `hash_ids`, the blocks of a prompt in chain order; without one, the slice of the quickstart.
Each block of each prompt is looked up: a hit is opened and closed as a reader does it, a miss is stored. The tenant's
quota is a share of all different blocks of the trace, its watermarks are off, so that only the quota makes anything go.
Blocks are small, for the order of eviction is the same with any size. Ends with status 1 if a hit rate is over 1 % (of
all lookups) away from the LRU's.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

from kvfs import limits
from kvfs.commands import ROOT_INO, CloseObject, Lookup, OpenObject
from kvfs.errors import NotFoundError
from kvfs_tools.quickstart.trace import Request, parse_trace, shipped_trace
from kvfsd.catalog.check import check
from kvfsd.pool.tenants import TenantChange
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.kvfsd.serving import TENANT, Host, Layout, make_pool

BLOCK_BYTES = 512
TOLERANCE = 0.01
MEDIUM_BYTES = 512 * limits.MIB


class Replayed(NamedTuple):
    """One replay: lookups, what the service and the LRU found of them, and how long the service took."""

    percent: float
    capacity_blocks: int
    lookups: int
    hits: int
    lru_hits: int
    evicted: int
    seconds: float

    @property
    def difference(self) -> float:
        """Between the hit rates, as a share of all lookups."""
        return abs(self.hits - self.lru_hits) / self.lookups


def blocks_of(requests: Sequence[Request]) -> Iterator[int]:
    """Every block that is asked for, in order."""
    return (block for request in requests for block in request.chain)


def lru_hits(blocks: Iterator[int], capacity: int) -> int:
    """What a plain LRU of `capacity` blocks finds: the last one used goes to the end, the first one out."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for block in blocks:
        if block in held:
            hits += 1
            held.move_to_end(block)
            continue
        held[block] = None
        if len(held) > capacity:
            held.popitem(last=False)
    return hits


async def service_hits(host: Host, blocks: Iterator[int]) -> int:
    """What the service finds."""
    data = bytes(BLOCK_BYTES)
    hits = 0
    for serial, block in enumerate(blocks, start=1):
        name = b"%016x.bin" % block
        try:
            found = (await host.submit(Lookup(ROOT_INO, name))).result.attributes
        except NotFoundError:
            await host.store(name, data)
            await trio.lowlevel.checkpoint()
            continue
        hits += 1
        await host.submit(OpenObject(found.ino, serial=serial))
        await host.submit(CloseObject(found.ino, serial))
    return hits


async def replay(requests: Sequence[Request], percent: float) -> Replayed:
    """One replay on a fresh pool."""
    blocks = list(blocks_of(requests))
    capacity = max(1, round(len(set(blocks)) * percent / 100))
    with tempfile.TemporaryDirectory(prefix="kvfs-replay-") as directory:
        pool = await make_pool(Path(directory), Layout(medium_bytes=MEDIUM_BYTES))
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(pool.aclose)
            pool.tenants.change(TENANT, TenantChange(quota_bytes=capacity * BLOCK_BYTES))
            service = await undo.enter_async_context(Service.open(pool))
            host = Host(InProcessQueuePair(service.attach(TENANT)))
            host.now_ns = pool.ports.clock.wall_ns
            started = time.perf_counter()
            hits = await service_hits(host, iter(blocks))
            seconds = time.perf_counter() - started
            evicted = service.metrics.counters.evicted_objects
            used = pool.tenants.show(TENANT)
            assert used.used_bytes == used.used_objects * BLOCK_BYTES <= capacity * BLOCK_BYTES, used
            problems = check(service.catalog.database)
            assert not problems, problems
    return Replayed(percent, capacity, len(blocks), hits, lru_hits(iter(blocks), capacity), evicted, seconds)


def requests_of(trace: str, limit: int) -> list[Request]:
    """The requests of a trace file, or of the quickstart's slice; 0: all of them."""
    if not trace:
        requests = shipped_trace()
    else:
        with Path(trace).open("rb") as lines:
            requests = parse_trace(lines, trace)
    return requests[: limit or None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per capacity -> status."""
    parser = argparse.ArgumentParser(description="Hit rate of a trace beside an LRU's.")
    parser.add_argument("trace", nargs="?", default="")
    parser.add_argument("--requests", type=int, default=0, help="only so many of the trace")
    parser.add_argument("--percent", type=float, action="append", help="capacity, of all different blocks")
    asked = parser.parse_args(arguments)
    requests = requests_of(asked.trace, asked.requests)
    print("| capacity | blocks | lookups | hit rate | LRU | difference | evicted | us per lookup |")
    print("|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for percent in asked.percent or (5.0, 10.0, 50.0):
        one = trio.run(replay, requests, percent)
        worst = max(worst, one.difference)
        rates = f"{one.hits / one.lookups:.2%} | {one.lru_hits / one.lookups:.2%} | {one.difference:.3%}"
        cost = f"{one.seconds / one.lookups * 1e6:.0f}"
        print(
            f"| {percent:g} % | {one.capacity_blocks} | {one.lookups} | {rates} | {one.evicted} | {cost} |", flush=True
        )
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())

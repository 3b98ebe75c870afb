"""Fill a pool with many small objects through the service in one process, without a mount: faster than closes are.

    python -m tests.bench.fill_pool POOL KEK OBJECTS FLAT

Every object takes the same three commands as a file that an engine stores: AllocateIno, WriteBlock, Commit. The flat
names have no bytes, and so no WriteBlock. Prints creates per second of both kinds as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from kvfs.commands import ROOT_INO, AllocateIno, Commit, Found, Ino, MakeNode, Placement, WriteBlock
from kvfs.queuepair import QueuePair
from kvfsd.crypto.kek import RawKeyFile
from kvfsd.pool.pool import Pool
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.bench.scale import DIRECTORIES, OBJECT_BYTES, TENANT, object_path

WORKERS = 8


async def make_directory(queue_pair: QueuePair, name: bytes) -> int:
    """One directory below the root -> its ino."""
    made = (await queue_pair.submit(MakeNode(ROOT_INO, name, 0o40755, 0, 0, b""))).result
    assert isinstance(made, Found)
    return made.attributes.ino


async def make_file(queue_pair: QueuePair, parent: int, name: bytes, payload: bytes) -> None:
    """One closed file."""
    reserved = (await queue_pair.submit(AllocateIno())).result
    assert isinstance(reserved, Ino)
    if payload:
        await queue_pair.submit(WriteBlock(reserved.ino, 0), payload)
    now = time.time_ns()
    commit = Commit(
        ino=reserved.ino,
        entry=Placement(parent, name),
        size=len(payload),
        base_limit_bytes=0,
        mode=0o100644,
        uid=0,
        gid=0,
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
        xattrs=(),
        keep_open=False,
    )
    await queue_pair.submit(commit)


async def make_all(queue_pair: QueuePair, files: Iterator[tuple[int, bytes, bytes]]) -> None:
    """Several workers share the files to make."""

    async def work() -> None:
        for parent, name, payload in files:
            await make_file(queue_pair, parent, name, payload)
            await trio.lowlevel.checkpoint()  # the embedded queue pair answers without one: let the others have a turn

    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(work)


def objects_of(directories: list[int], count: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Parent, name and payload of each object."""
    for number in range(count):
        directory, _, name = object_path(number).partition("/")
        payload = number.to_bytes(8, "little") * (OBJECT_BYTES // 8)
        yield directories[int(directory, 16)], name.encode(), payload


def flat_names_of(directory: int, count: int) -> Iterator[tuple[int, bytes, bytes]]:
    """The names of the flat directory."""
    return ((directory, b"%064x.bin" % number, b"") for number in range(count))


async def fill(pool_directory: Path, kek: Path, objects: int, flat: int) -> dict[str, float]:
    """Make everything -> creates per second."""
    pool = await Pool.open(pool_directory, RawKeyFile(kek))
    try:
        async with Service.open(pool) as service:
            queue_pair = InProcessQueuePair(service.attach(TENANT))
            directories = [await make_directory(queue_pair, b"%03x" % n) for n in range(DIRECTORIES if objects else 0)]
            flat_directory = await make_directory(queue_pair, b"flat")
            started = time.perf_counter()
            await make_all(queue_pair, objects_of(directories, objects))
            between = time.perf_counter()
            await make_all(queue_pair, flat_names_of(flat_directory, flat))
            ended = time.perf_counter()
            await queue_pair.aclose()
    finally:
        await pool.aclose()
    return {"object_creates_per_s": objects / (between - started), "flat_creates_per_s": flat / (ended - between)}


if __name__ == "__main__":
    print(json.dumps(trio.run(fill, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))

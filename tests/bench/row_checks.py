"""What the checks of catalog rows cost (docs/adr/0004-rows.md): the candidates, and the paths with and without.

    python tests/bench/row_checks.py [--objects 20000]

CPU microseconds, best of batches. "Without" is the same code with checks that cost nothing; the schema is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import xxhash

from kvfs import limits
from kvfsd.catalog import rowmacs
from kvfsd.catalog.rowmacs import TenantMacs
from kvfsd.catalog.rows import Entry, InodeRow
from tests.kvfsd.catalog.world import World, sealed

BATCH = 1000
ROW = InodeRow(
    123456, 0o100644, 1, 1000, 1000, 0, 2 << 20, 2 << 20, 10**18, 10**18, 10**18, 99999, 0, 0, b"", -(1 << 60)
)


def cpu_us(calls: Iterator[object]) -> float:
    """CPU microseconds of one call made by running the iterator; the best batch."""
    best = float("inf")
    while True:
        started = time.process_time()
        done = sum(1 for _ in itertools.islice(calls, BATCH))
        if done < BATCH:
            return best * 1e6
        best = min(best, (time.process_time() - started) / done)


def candidates() -> None:
    """Ways to check one row of an object."""
    key, message = os.urandom(32), rowmacs._encode(ROW)
    macs = TenantMacs(key)
    ways: dict[str, Callable[[], object]] = {
        "msgpack of the row": lambda: rowmacs._encode(ROW),
        "xxh3_64, seeded": lambda: xxhash.xxh3_64_intdigest(message, 12345),
        "BLAKE2b, keyed each time": lambda: hashlib.blake2b(message, key=key, digest_size=8).digest(),
        "HMAC-SHA256": lambda: hmac.digest(key, message, "sha256"),
        "as built: msgpack, keyed BLAKE2b": lambda: macs.inode(ROW),
    }
    for name, way in ways.items():
        print(f"{name:34} {cpu_us(way() for _ in range(50 * BATCH)):8.2f}")


def paths(directory: Path, objects: int) -> dict[str, float]:
    """CPU microseconds of each path on a catalog of its own."""
    world = World(directory)
    namespace, transaction = world.catalog.namespace, world.catalog.transaction
    names = [sealed(f"{number}") for number in range(objects)]
    misses = [sealed(f"miss {number}") for number in range(objects)]
    found: dict[str, float] = {}

    def store(name: bytes) -> None:
        """Two blocks of 1 MiB under another name, committed, and renamed: what vLLM's fs tier does."""
        ino = world.catalog.database.next_ino()
        world.stage(ino, [world.block(0), world.block(1)])
        entry = Entry(1, world.root, name + b".tmp")
        world.publish(ino, None, 2 * limits.MIB, entry=entry)
        with transaction():
            world.catalog.renames.rename(entry, Entry(1, world.root, name), 0, world.now())

    found["store of 2 MiB, renamed"] = cpu_us(store(name) for name in names)
    lookup = namespace.lookup
    found["lookup, hit"] = cpu_us(lookup(1, world.root, name) for name in names)
    found["lookup, miss"] = cpu_us(lookup(1, world.root, name) for name in misses)
    rows = [row for name in names if (row := lookup(1, world.root, name)) is not None]
    found["open of 2 MiB, first"] = cpu_us(world.catalog.wholeness.opened(1, row) for row in rows)
    found["open of 2 MiB, again"] = cpu_us(world.catalog.wholeness.opened(1, row) for row in rows)

    def mkdir(name: bytes) -> None:
        with transaction():
            namespace.insert_node(Entry(1, world.root, name), world.node())

    def note(ino: int) -> None:
        world.catalog.inodes.note_access(1, ino, 1 << 50)

    found["mkdir"] = cpu_us(mkdir(name) for name in misses)
    with transaction():
        found["access time"] = cpu_us(note(row.ino) for row in rows)
    world.catalog.close()
    return found


def without_checks() -> None:
    """Every check is 0 from here on."""
    for name in ("inode", "entry", "block", "xattr", "tenant"):
        setattr(TenantMacs, name, lambda *_: 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--objects", type=int, default=20_000)
    options = parser.parse_args()
    candidates()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        checked = paths(Path(one), options.objects)
        without_checks()
        plain = paths(Path(other), options.objects)
    print(f"\n{'us':34} {'with':>8} {'without':>8} {'cost':>8}")
    for name, figure in checked.items():
        print(f"{name:34} {figure:8.2f} {plain[name]:8.2f} {figure - plain[name]:8.2f}")


if __name__ == "__main__":
    main()

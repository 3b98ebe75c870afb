"""A catalog of N objects of two blocks: size, time to open, memory, lookups, a commit, a listing.

    python tests/bench/catalog_scale.py [--objects 1000000] [--directory DIR] [--check]

Objects are put straight into the tables, in 4,096 directories and one flat directory with a quarter of them. What is
measured runs in a process of its own, so that its memory is the catalog's. Bars: open 0.5 s, memory 100 MB, lookup that
misses 4 us, that hits 6 us, commit of a new file of two blocks 120 us.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kvfsd.catalog import Catalog
from kvfsd.catalog.check import check
from kvfsd.catalog.inodes import INSERT_INODE
from kvfsd.catalog.publication import Publication
from kvfsd.catalog.rows import (
    BlockRow,
    Entry,
    InodeRow,
    KeySlotRow,
    Location,
    SegmentRow,
    TenantRow,
    cookie_of,
    pack_locations,
)
from kvfsd.catalog.rowsealing import seal_rows
from kvfsd.catalog.schema import SegmentState, TenantState

DIRECTORIES = 4096
BLOCK = 1 << 20
PER_SEGMENT = 60
ROOT, FLAT, FIRST = 2, 3, 10_000
"""Object numbers: the root, the flat directory, the first file; directories start at 100."""
BATCH = 20_000


def sealed(number: int) -> bytes:
    """A stand-in for the sealed form of a 64-byte name."""
    return hashlib.blake2b(b"%d" % number, digest_size=16).digest() * 5


def parent_of(number: int) -> int:
    """Every fourth object lies in the flat directory."""
    return FLAT if number % 4 == 0 else 100 + number % DIRECTORIES


def directory_row(ino: int, parent: int) -> InodeRow:
    """An empty directory."""
    return InodeRow(ino, 0o40755, 2, 0, 0, 0, 0, 0, 1, 1, 1, 1, parent=parent)


def build(path: Path, objects: int) -> None:
    """Make the catalog."""
    catalog = Catalog.create(path, bytes(16))
    catalog.unlock(row_key)
    database = catalog.database
    database.logging = False
    with catalog.transaction():
        tenant = TenantRow(
            1, b"tenant", 0, 0, 2 * BLOCK * objects, objects + DIRECTORIES + 1, ROOT, TenantState.ACTIVE, 1
        )
        catalog.tenants.create(tenant, [KeySlotRow(1, 1, b"key")], directory_row(ROOT, ROOT))
        segments = 2 * objects // PER_SEGMENT + 1
        live = PER_SEGMENT * (BLOCK + 4096)
        rest = (2 * objects - (segments - 1) * PER_SEGMENT) * (BLOCK + 4096)
        for segment in range(segments + 1):
            size = (live if segment < segments - 1 else rest) if segment < segments else 0
            row = SegmentRow(0, segment, SegmentState.OPEN, 1, 1, 1, 64 << 20, size)
            catalog.segments.allocate(row)
        directories = [FLAT, *range(100, 100 + DIRECTORIES)]
        insert_inodes(catalog, (directory_row(ino, ROOT) for ino in directories))
        insert_names(catalog, [(ROOT, sealed(-ino), ino) for ino in directories])
        database.run("UPDATE inode SET nlink=? WHERE ino=?", (2 + len(directories), ROOT))
    database.advance_counters(FIRST + objects, 3 * objects)
    for start in range(0, objects, BATCH):
        with catalog.transaction():
            fill(catalog, range(start, min(objects, start + BATCH)))
    names = sorted((parent_of(number), cookie_of(sealed(number)), number) for number in range(objects))
    for start in range(0, objects, BATCH):
        with catalog.transaction():
            insert_names(catalog, [(p, sealed(n), FIRST + n) for p, _, n in names[start : start + BATCH]])
    with catalog.transaction():
        seal_rows(database)
    catalog.close()


def row_key(tenant: int) -> bytes:
    """Any key will do."""
    return bytes([tenant]) * 32


def insert_inodes(catalog: Catalog, rows: Iterator[InodeRow]) -> None:
    """Rows of objects as they are."""
    catalog.database.run_many(INSERT_INODE, [(row.ino, 1, *row[1:], 0) for row in rows])


def insert_names(catalog: Catalog, names: list[tuple[int, bytes, int]]) -> None:
    """Names as they are."""
    rows = [(1, parent, cookie_of(name), name, ino, 0) for parent, name, ino in names]
    catalog.database.run_many("INSERT INTO dirent VALUES(?,?,?,?,?,?)", rows)


def fill(catalog: Catalog, numbers: range) -> None:
    """Files of two blocks."""
    size = 2 * BLOCK
    inodes = (InodeRow(FIRST + n, 0o100644, 1, 0, 0, 0, size, size, 1, 1, 1, 3 * n + 2) for n in numbers)
    insert_inodes(catalog, inodes)
    blocks = []
    for number in numbers:
        for block in (0, 1):
            segment, index = divmod(2 * number + block, PER_SEGMENT)
            place = pack_locations([Location(0, segment, 1 + 257 * index)])
            blocks.append((1, FIRST + number, block, 3 * number + block, BLOCK, 1, bytes(16), place))
    catalog.database.run_many("INSERT INTO block VALUES(?,?,?,?,?,?,?,?)", blocks)


def timed_us(calls: Iterator[object], batch: int) -> float:
    """CPU microseconds of one call, made by running the iterator; the best batch, as others use the machine too."""
    best = float("inf")
    while True:
        started = time.process_time()
        done = sum(1 for _ in itertools.islice(calls, batch))
        if done < batch:
            return best * 1e6
        best = min(best, (time.process_time() - started) / batch)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def commit_us(catalog: Catalog, count: int, objects: int) -> float:
    """A new file of two blocks that are staged already, with its completion."""
    segment = 2 * objects // PER_SEGMENT + 1
    inos = [catalog.database.next_ino() for _ in range(count)]
    for number, ino in enumerate(inos):
        with catalog.transaction():
            for block in (0, 1):
                generation = catalog.database.next_generation()
                place = (Location(0, segment, 1 + 257 * (number % 60)),)
                catalog.blocks.stage(1, 1, ino, BlockRow(block, generation, BLOCK, 1, bytes(16), place))

    def publish(ino: int) -> None:
        entry = Entry(1, FLAT, sealed(ino))
        with catalog.transaction():
            catalog.publisher.publish(
                Publication(
                    attachment=1, tenant=1, ino=ino, entry=entry, size=2 * BLOCK, base_limit_bytes=0, mode=0o100644,
                    uid=0, gid=0, atime_ns=1, mtime_ns=1, ctime_ns=1,
                )
            )  # fmt: skip
            catalog.attachments.store_completion(1, ino % 256, ino, bytes(60))

    return timed_us((publish(ino) for ino in inos), 500)


def print_eviction(catalog: Catalog, objects: int) -> None:
    """What eviction costs: finding the oldest, removing them, and writing down that others were used."""
    retention, batch = catalog.retention, 16
    look = timed_us((retention.oldest(1, 64) for _ in range(2000)), 500)

    def evict(_: int) -> None:
        with catalog.transaction():
            entries = [name for row in retention.oldest(1, batch) for name in retention.remove(1, row.ino, 5)]
            retention.touch(entries, 5)

    removed = timed_us((evict(number) for number in range(min(300, objects // batch // 4))), 50) / batch
    used = [FIRST + objects // 2 + number * 7919 % (objects // 2) for number in range(4096)]

    def note(start: int) -> None:
        with catalog.transaction():
            for ino in used[start : start + 128]:
                catalog.inodes.note_access(1, ino, 10)

    noted = timed_us((note(start) for start in range(0, len(used), 128)), 8) / 128
    print(f"oldest 64 objects    {look:10.2f} us")
    print(f"eviction of one      {removed:10.2f} us   ({batch} a transaction)")
    print(f"use of one, written  {noted:10.2f} us   (128 a transaction)")


def measure(path: Path, objects: int, with_check: bool) -> None:
    """Print the figures."""
    before = resident_bytes()
    started = time.perf_counter()
    catalog = Catalog.open(path)
    catalog.unlock(row_key)
    opened = time.perf_counter() - started
    count = min(objects, 100_000)
    lookup = catalog.namespace.lookup
    spread = [number * 7919 % objects for number in range(count)]
    for number in spread:  # warm the cache before its size is taken
        lookup(1, parent_of(number), sealed(number))
    memory = resident_bytes() - before
    hits = [(parent_of(number), sealed(number)) for number in spread]
    misses = [(FLAT, sealed(-number - 10_000_000)) for number in range(count)]
    null = timed_us((catalog.database.one("SELECT 1") for _ in range(count)), 5000)
    hit = timed_us((lookup(1, parent, name) for parent, name in hits), 5000)
    miss = timed_us((lookup(1, parent, name) for parent, name in misses), 5000)
    commit = commit_us(catalog, min(objects, 5000), objects)
    started = time.perf_counter()
    cookie, end, listed = 0, False, 0
    while not end:
        batch, end = catalog.namespace.list_directory(1, FLAT, cookie, 512)
        listed += len(batch)
        cookie = batch[-1].cookie if batch else cookie
    listing = time.perf_counter() - started
    print(
        f"database             {path.stat().st_size / 1e6:10.1f} MB, {path.stat().st_size / objects:.0f} bytes/object"
    )
    print(f"SELECT 1             {null:10.2f} us   (calibration)")
    print(f"open                 {opened:10.3f} s    (bar 0.5)")
    print(f"memory               {memory / 1e6:10.1f} MB   (bar 100)")
    print(f"lookup, hit          {hit:10.2f} us   (bar 6)")
    print(f"lookup, miss         {miss:10.2f} us   (bar 4)")
    print(f"commit, new file     {commit:10.2f} us   (bar 120)")
    print(f"listing of {listed:9} {listing:10.2f} s")
    print_eviction(catalog, objects)
    if with_check:
        started = time.perf_counter()
        problems = check(catalog.database)
        print(f"full check           {time.perf_counter() - started:10.2f} s, {len(problems)} problems {problems[:3]}")
    catalog.close()


def main() -> None:
    """Build in this process, measure in another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.objects, options.check)
        return
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        path = Path(scratch) / "catalog.db"
        started = time.perf_counter()
        build(path, options.objects)
        print(f"built {options.objects} objects in {time.perf_counter() - started:.1f} s")
        command = [sys.executable, __file__, "--objects", str(options.objects), "--measure", str(path)]
        subprocess.run([*command, "--check"] if options.check else command, check=True)


if __name__ == "__main__":
    main()

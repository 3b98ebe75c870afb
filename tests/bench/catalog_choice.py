"""SQLite or LMDB for the catalog: one commit of a new file, and lookups, on both (docs/adr/0001-catalog.md).

    python tests/bench/catalog_choice.py [--commits 5000] [--directory DIR]

LMDB is no dependency of kvfs: without `pip install lmdb` only SQLite is measured. Figures are microseconds, best of
three; "sync" is a commit that survives a power loss by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 3
ENTRY = b"x" * 300


def best_us(call: Callable[[int], object], count: int) -> float:
    """Microseconds of one `call(number)`, best of ROUNDS; numbers never repeat."""
    best = float("inf")
    for turn in range(ROUNDS):
        started = time.perf_counter()
        for number in range(turn * count, (turn + 1) * count):
            call(number)
        best = min(best, (time.perf_counter() - started) / count)
    return best * 1e6


def name(number: int) -> bytes:
    """A key as a sealed name is: evenly spread."""
    return hashlib.blake2b(b"%d" % number, digest_size=16).digest()


def sqlite_figures(directory: Path, commits: int, synchronous: str) -> dict[str, float]:
    """Commit of six rows, lookup that hits, lookup that misses."""
    database = sqlite3.connect(directory / f"{synchronous}.db", isolation_level=None, cached_statements=256)
    run = database.execute
    run("PRAGMA journal_mode=WAL")
    run(f"PRAGMA synchronous={synchronous}")
    run("PRAGMA cache_size=-65536")
    run("CREATE TABLE dirent(parent INT, name BLOB, ino INT, PRIMARY KEY(parent, name)) WITHOUT ROWID")
    run("CREATE TABLE inode(ino INTEGER PRIMARY KEY, mode INT, size INT, mtime INT, ctime INT)")
    run("CREATE TABLE block(ino INT, block INT, generation INT, tag BLOB, PRIMARY KEY(ino, block)) WITHOUT ROWID")
    run("CREATE TABLE outbox(sequence INTEGER PRIMARY KEY, blob BLOB)")
    run("CREATE TABLE tenant(tenant INTEGER PRIMARY KEY, used INT)")
    run("INSERT INTO tenant VALUES(1, 0)")

    def commit(number: int) -> None:
        run("BEGIN IMMEDIATE")
        run("INSERT INTO inode VALUES(?,?,?,?,?)", (number, 1, 2, 3, 4))
        run("INSERT INTO dirent VALUES(1,?,?)", (name(number), number))
        for block in (0, 1):
            run("INSERT INTO block VALUES(?,?,1,?)", (number, block, b"t" * 16))
        run("UPDATE tenant SET used=used+1 WHERE tenant=1")
        run("INSERT INTO outbox(blob) VALUES(?)", (ENTRY,))
        run("COMMIT")

    query = "SELECT i.* FROM dirent d JOIN inode i ON i.ino=d.ino WHERE d.parent=1 AND d.name=?"
    figures = {
        "commit": best_us(commit, commits),
        "hit": best_us(lambda number: run(query, (name(number % commits),)).fetchone(), commits),
        "miss": best_us(lambda number: run(query, (name(-number - 1),)).fetchone(), commits),
    }
    database.close()
    return figures


def lmdb_figures(lmdb: Any, directory: Path, commits: int, *, sync: bool) -> dict[str, float]:
    """The same rows as keys and values."""
    path = str(directory / f"lmdb-{sync}")
    environment = lmdb.open(path, map_size=1 << 32, max_dbs=5, sync=sync, metasync=sync)
    inode, dirent, block, tenant, outbox = (environment.open_db(one) for one in (b"i", b"d", b"b", b"t", b"o"))

    def commit(number: int) -> None:
        key = number.to_bytes(8, "big")
        with environment.begin(write=True) as transaction:
            transaction.put(key, b"x" * 40, db=inode)
            transaction.put(name(number), key, db=dirent)
            for piece in (b"\0", b"\1"):
                transaction.put(key + piece, b"x" * 28, db=block)
            transaction.put(b"1", key, db=tenant)
            transaction.put(key, ENTRY, db=outbox)

    def hit(number: int) -> object:
        with environment.begin() as transaction:
            return transaction.get(transaction.get(name(number % commits), db=dirent), db=inode)

    def miss(number: int) -> object:
        with environment.begin() as transaction:
            return transaction.get(name(-number - 1), db=dirent)

    figures = {"commit": best_us(commit, commits), "hit": best_us(hit, commits), "miss": best_us(miss, commits)}
    environment.close()
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--commits", type=int, default=5000)
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    synced = max(20, options.commits // 100)
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        directory = Path(scratch)
        rows = {
            "SQLite WAL NORMAL": sqlite_figures(directory, options.commits, "NORMAL"),
            "SQLite WAL FULL (sync)": sqlite_figures(directory, synced, "FULL"),
        }
        try:
            lmdb = importlib.import_module("lmdb")
        except ImportError:
            print("lmdb is not installed: only SQLite is measured")
        else:
            rows["LMDB no sync"] = lmdb_figures(lmdb, directory, options.commits, sync=False)
            rows["LMDB (sync)"] = lmdb_figures(lmdb, directory, synced, sync=True)
    print(f"{'us':24} {'commit':>10} {'hit':>8} {'miss':>8}")
    for store, figures in rows.items():
        print(f"{store:24} {figures['commit']:10.1f} {figures['hit']:8.2f} {figures['miss']:8.2f}")


if __name__ == "__main__":
    main()

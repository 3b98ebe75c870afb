"""Damage to the catalog's file: flipped bits, cut ends, and rows changed, moved, exchanged, lost or doubled by SQL.

What must hold: the pool is refused with a named error, or everything that can be seen is as it was, every byte and
attribute. Something may be gone: that is told when it is met, or else `kvfsctl check` finds it.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

from kvfs.errors import KvfsError
from kvfsd.catalog.check import check
from kvfsd.service.service import Service
from tests.sim.checker import BrokenPromiseError
from tests.sim.model import Path, State
from tests.sim.observer import Observed

KINDS = ("catalog_flip", "catalog_cut", "catalog_row")
_PAGE = 4096
_TABLES = {
    "inode": ("ino",),
    "dirent": ("tenant", "parent", "cookie", "sealed_name"),
    "block": ("tenant", "ino", "block"),
    "xattr": ("tenant", "ino", "sealed_name"),
    "tenant": ("tenant",),
    "key_slot": ("tenant", "epoch"),
    "segment": ("medium", "segment"),
    "log_record": ("tenant", "generation"),
    "meta": ("key",),
}
"""Tables and their keys; those that a reader of names and bytes depends on are struck more often."""
_WEIGHTS = (6, 6, 6, 2, 1, 1, 1, 1, 1)


def flipped(data: bytes, at: int, bit: int) -> bytes:
    """`data` with one bit changed."""
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def flip(database: bytes, choice: random.Random) -> tuple[bytes, str]:
    """One bit of the file is another."""
    at = choice.randrange(len(database))
    return flipped(database, at, choice.randrange(8)), f"a bit of the catalog at {at}"


def cut(database: bytes, choice: random.Random) -> tuple[bytes, str]:
    """The end of the file is gone."""
    kept = choice.randrange(len(database))
    return database[:kept] + (bytes(_PAGE) if choice.random() < 0.3 else b""), f"the catalog ends at {kept}"


def strike_row(database: bytes, choice: random.Random) -> tuple[bytes, str]:
    """One row is changed by somebody who writes SQL and has no key."""
    (table,) = choice.choices(list(_TABLES), _WEIGHTS)
    with tempfile.TemporaryDirectory(prefix="kvfs-sim-") as scratch:
        path = FilePath(scratch) / "catalog.db"
        path.write_bytes(database)
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=DELETE")
            rows = connection.execute(f"SELECT * FROM {table} ORDER BY {', '.join(_TABLES[table])}").fetchall()
            if not rows:
                return database, "nothing"
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            how = choice.choice((_change, _change, _take_from_another, _exchange, _lose, _double))
            text = how(_Struck(connection, table, columns, rows, choice))
        except sqlite3.IntegrityError as error:
            return database, f"nothing: {error}"
        finally:
            connection.close()
        return path.read_bytes(), text


class _Struck:
    def __init__(
        self, connection: sqlite3.Connection, table: str, columns: list[str], rows: list[Any], choice: random.Random
    ) -> None:
        self.connection = connection
        self.table = table
        self.columns = columns
        self.rows = rows
        self.choice = choice
        self.row = choice.choice(rows)
        self.other = choice.choice(rows)
        self.column = choice.choice(columns)
        self.at = columns.index(self.column)

    def where(self, row: Any) -> tuple[str, list[Any]]:
        key = _TABLES[self.table]
        return " AND ".join(f"{name} IS ?" for name in key), [row[self.columns.index(name)] for name in key]

    def set(self, row: Any, column: str, value: Any) -> None:
        where, key = self.where(row)
        self.connection.execute(f"UPDATE {self.table} SET {column}=? WHERE {where}", [value, *key])

    def text(self, what: str) -> str:
        return f"{self.table}: {what}: {self.row!r}, {self.column}"


def _change(struck: _Struck) -> str:
    value, choice = struck.row[struck.at], struck.choice
    if isinstance(value, int):
        bit = choice.choice((0, 0, 1, 3, 6, 9, 12, 16, 20, 32, 40, 61))
        value ^= 1 << bit
    elif isinstance(value, bytes) and value:
        value = flipped(value, choice.randrange(len(value)), choice.randrange(8))
    else:
        value = choice.choice((0, 1, b"x"))
    struck.set(struck.row, struck.column, value)
    return struck.text(f"to {value!r}")


def _take_from_another(struck: _Struck) -> str:
    struck.set(struck.row, struck.column, struck.other[struck.at])
    return struck.text(f"from another row: {struck.other[struck.at]!r}")


def _exchange(struck: _Struck) -> str:
    """All columns but the key change places; a check goes with its row."""
    key = _TABLES[struck.table]
    for name in struck.columns:
        if name not in key:
            at = struck.columns.index(name)
            struck.set(struck.row, name, struck.other[at])
            struck.set(struck.other, name, struck.row[at])
    return struck.text(f"exchanged with {struck.other!r}")


def _lose(struck: _Struck) -> str:
    where, key = struck.where(struck.row)
    struck.connection.execute(f"DELETE FROM {struck.table} WHERE {where}", key)
    return struck.text("lost")


def _double(struck: _Struck) -> str:
    """The row is there twice, once under another key."""
    copy = list(struck.row)
    name = struck.choice.choice(_TABLES[struck.table])
    at = struck.columns.index(name)
    copy[at] = copy[at] + 1 if isinstance(copy[at], int) else struck.other[at]
    marks = ",".join("?" * len(copy))
    struck.connection.execute(f"INSERT OR REPLACE INTO {struck.table} VALUES({marks})", copy)
    return struck.text(f"also under {name} {copy[at]!r}")


STRIKES: dict[str, Callable[[bytes, random.Random], tuple[bytes, str]]] = {
    "catalog_flip": flip,
    "catalog_cut": cut,
    "catalog_row": strike_row,
}


# --- looking -------------------------------------------------------------------------------------------


def check_seen(number: int, observed: Observed, state: State) -> int:
    """Everything that is seen is as it was -> how many paths are gone, unreadable or answered with an error."""
    want = state.tree()
    if observed.missing:
        return max(1, len(want))
    gone = len(want.keys() - observed.tree.keys()) + len(observed.errors)
    for path, seen in observed.tree.items():
        wanted = want.get(path)
        if wanted is None:
            raise BrokenPromiseError(f"client {number}: {path}: should not be there")
        if seen.metadata() != wanted.metadata():
            raise BrokenPromiseError(f"client {number}: {path}: want {wanted.metadata()}, have {seen.metadata()}")
        if seen.content is None:
            gone += 1
        elif seen.content != wanted.content:
            raise BrokenPromiseError(f"client {number}: {path}: wrong bytes, {_brief(path, seen.content)}")
    return gone


def _brief(path: Path, content: bytes) -> str:
    return f"{len(content)} of them, beginning with {content[:8]!r}"


def check_all(service: Service, seen: Sequence[Observed], histories: Sequence[Sequence[State]]) -> tuple[int, str]:
    """What is seen is as it was; what is gone was told when it was met, or the full check tells it -> how much, how."""
    counters = service.metrics.counters
    told = counters.damaged_rows or counters.bad_records or any(one.errors for one in seen)
    absent = sum(check_seen(number, one, histories[number][-1]) for number, one in enumerate(seen))
    if not absent:
        return 0, "harmless"
    if told:
        return absent, "cost something, told"
    if not _is_found(service):
        raise BrokenPromiseError(f"{absent} paths are gone, nobody is told, and the check finds nothing")
    return absent, "cost something, check tells"


def _is_found(service: Service) -> bool:
    try:
        return bool(check(service.catalog.database))
    except KvfsError:
        return True

"""The checks of all rows of a catalog that a rebuild has put in order: made once, at the end of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from kvfsd.catalog.database import Database, Row
from kvfsd.catalog.rowmacs import total
from kvfsd.catalog.schema import LISTING_COLUMNS

BATCH_ROWS: Final = 4096
_BLOCK: Final = "block, generation, length, epoch, tag"


def seal_rows(database: Database) -> None:
    """Write the check of every name and object, and the sums over what belongs to each; in the caller's transaction.

    About 10 s for a million objects. The rows are believed as they are.
    """
    database.require_transaction()
    database.run("CREATE TEMP TABLE sums(ino INTEGER PRIMARY KEY, members INT DEFAULT 0, xattrs INT DEFAULT 0)")
    macs = database.macs
    _names(database)
    _sum(database, ("block", "ino, block", _BLOCK), "members", lambda row: macs.of(row[0]).block(row[1], row[3:]))
    _sum(
        database,
        ("xattr", "ino, sealed_name", "sealed_value"),
        "xattrs",
        lambda row: macs.of(row[0]).xattr(*row[1:]),
    )
    _objects(database)
    database.run("DROP TABLE temp.sums")


def rows_in_order(database: Database, table: str, key: str, columns: str) -> Iterator[list[Row]]:
    """All rows of a table in batches: tenant, key and other columns, in the order of tenant and key.

    Rows that were read may be changed, but not their keys.
    """
    marks = ",".join("?" * (key.count(",") + 2))
    after: Sequence[Any] = ()
    while True:
        where = f"WHERE (tenant, {key})>({marks})" if after else ""
        rows = database.all(
            f"SELECT tenant, {key}, {columns} FROM {table} {where} ORDER BY tenant, {key} LIMIT {BATCH_ROWS}", after
        )
        if not rows:
            return
        yield rows
        after = rows[-1][: key.count(",") + 2]


def _names(database: Database) -> None:
    macs = database.macs
    summed: dict[int, int] = {}
    for rows in rows_in_order(database, "dirent", "parent, cookie, sealed_name", "ino"):
        checks = [macs.of(tenant).entry(parent, name, ino) for tenant, parent, _, name, ino in rows]
        database.run_many(
            "UPDATE dirent SET mac=? WHERE tenant=? AND parent=? AND cookie=? AND sealed_name=?",
            [(check, *row[:4]) for check, row in zip(checks, rows, strict=True)],
        )
        for check, row in zip(checks, rows, strict=True):
            summed[row[1]] = summed.get(row[1], 0) + check
        _add(database, "members", summed)


def _sum(database: Database, source: tuple[str, str, str], column: str, check: Callable[[Row], int]) -> None:
    summed: dict[int, int] = {}
    for rows in rows_in_order(database, *source):
        for row in rows:
            summed[row[1]] = summed.get(row[1], 0) + check(row)
        _add(database, column, summed)


def _add(database: Database, column: str, summed: dict[int, int]) -> None:
    """Add to the sums that are there; a batch may end in the middle of an object's rows."""
    rows = []
    for ino, more in summed.items():
        known = database.one(f"SELECT {column} FROM temp.sums WHERE ino=?", (ino,))
        rows.append((ino, total(more, known[0] if known else 0)))
    database.run_many(
        f"INSERT INTO temp.sums(ino, {column}) VALUES(?,?) ON CONFLICT DO UPDATE SET {column}=excluded.{column}", rows
    )
    summed.clear()


def _objects(database: Database) -> None:
    after = 0
    while rows := database.all(
        f"SELECT i.tenant, coalesce(s.members, 0), coalesce(s.xattrs, 0), {LISTING_COLUMNS}"
        " FROM inode i LEFT JOIN temp.sums s ON s.ino=i.ino WHERE i.ino>? ORDER BY i.ino LIMIT ?",
        (after, BATCH_ROWS),
    ):
        sealed = []
        for tenant, members, xattrs, *listed in rows:
            row = (*listed[:-3], members, xattrs)
            sealed.append((members, xattrs, database.macs.of(tenant).inode(row), listed[0]))
        database.run_many("UPDATE inode SET members=?, xattrs=?, mac=? WHERE ino=?", sealed)
        after = rows[-1][3]

"""Rows of `meta`: what is read before any key is there, each with a plain check against rot."""

from __future__ import annotations

from typing import Any

from kvfs.errors import FailsafeError, NotFoundError
from kvfsd.catalog.connection import REPAIR, Connection
from kvfsd.catalog.rowmacs import plain_check


def read(connection: Connection, key: str) -> Any:
    """Value of a row; NotFoundError if there is none, FailsafeError if it is damaged."""
    row = connection.one("SELECT value, mac FROM meta WHERE key=?", (key,))
    if row is None:
        raise NotFoundError(f"catalog {connection.path}: no meta row {key!r}")
    value, mac = row
    if plain_check(key, value) != mac:
        raise FailsafeError(f"catalog {connection.path}: meta row {key!r} fails its check; {REPAIR}")
    return value


def write(connection: Connection, key: str, value: int | bytes | str) -> None:
    """Write a row, new or not."""
    connection.run("INSERT OR REPLACE INTO meta VALUES(?,?,?)", (key, value, plain_check(key, value)))

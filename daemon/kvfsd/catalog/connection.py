"""One SQLite connection: how it is opened, statements, and what its errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from kvfs.errors import (
    FailsafeError,
    FormatError,
    InternalError,
    InvalidArgumentError,
    KvfsError,
    PoolBusyError,
    PoolFullError,
)

CACHE_KIB: Final = 64 * 1024
"""SQLite's cache: the bound of the catalog's memory."""
BUSY_TIMEOUT_S: Final = 2.0
"""How long a commit waits for another process, or a checkpoint that empties the log, to let go of the write lock."""
STATEMENTS_CACHED: Final = 256

_ERRORS: Final = (sqlite3.Error, UnicodeError, OverflowError)
"""What the statements of a damaged database, or numbers over 64 bits, raise."""

REPAIR: Final = "kvfsctl rebuild --force POOL makes the catalog anew from the media, with the pool unmounted"
"""What to do about a damaged catalog."""

Row: TypeAlias = tuple[Any, ...]


class Connection:
    """Statements on one database file; `read_only` connections write nothing and work beside a live pool.

    Every method raises FailsafeError for a damaged or failing database, PoolFullError for a full disk under it, and
    PoolBusyError if another process holds its write lock for longer than BUSY_TIMEOUT_S.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._connection = _connect(path, read_only=read_only)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is running."""
        return self._connection.in_transaction

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        """First row of a query, or None."""
        try:
            row: Row | None = self._connection.execute(sql, parameters).fetchone()
        except _ERRORS as error:
            self._failed(error)
        return row

    def all(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query; the caller bounds them with LIMIT."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except _ERRORS as error:
            self._failed(error)

    def iterate(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Row]:
        """Rows of a query one by one, for results too large to hold; nothing may be changed meanwhile."""
        try:
            yield from self._connection.execute(sql, parameters)
        except _ERRORS as error:
            self._failed(error)

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Execute a statement -> number of rows changed."""
        try:
            return self._connection.execute(sql, parameters).rowcount
        except _ERRORS as error:
            self._failed(error)

    def run_many(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Execute a statement once for each item of `parameters`."""
        try:
            self._connection.executemany(sql, parameters)
        except _ERRORS as error:
            self._failed(error)

    def run_script(self, sql: str) -> None:
        """Execute several statements."""
        try:
            self._connection.executescript(sql)
        except _ERRORS as error:
            self._failed(error)

    def disconnect(self) -> None:
        """Close the connection as it is."""
        self._connection.close()

    def _failed(self, error: Exception) -> NoReturn:
        raise domain_error(error, self.path) from error


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    # A closed catalog has no -wal file; `immutable` then spares a reader the -shm file that it could not create.
    query = "mode=rw"
    if read_only:
        query = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?{query}",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT_S,
            check_same_thread=False,  # one user at a time, whichever thread opened it
            cached_statements=STATEMENTS_CACHED,
        )
        connection.text_factory = _text
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        connection.execute("PRAGMA cell_size_check=ON")
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
    except _ERRORS as error:
        raise domain_error(error, path) from error
    return connection


def _text(stored: bytes) -> str:
    """A value that damage made a text: no text of ours, but no reason to give up either. It fails its row's check."""
    return stored.decode("utf-8", "replace")


def domain_error(error: Exception, path: Path) -> KvfsError:
    """What an error of SQLite means here."""
    text = f"catalog {path}: {error}"
    if isinstance(error, OverflowError):  # a number of 64 bits or more was asked for: nothing has it
        return InvalidArgumentError(text)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return PoolBusyError(text)
    if code == sqlite3.SQLITE_FULL:
        return PoolFullError(text)
    if code == sqlite3.SQLITE_NOTADB:
        return FormatError(text)
    if code == sqlite3.SQLITE_CORRUPT:
        return FailsafeError(f"{text}; {REPAIR}")
    if code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE):
        return InternalError(text)
    return FailsafeError(text)

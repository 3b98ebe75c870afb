"""The catalog's SQLite connection: opening, transactions, counters that never go back, sync and checkpoint.

WAL with synchronous=NORMAL: a commit survives the process at once, and a power loss after `sync_call` (kvfs's
durability table, docs/adr/0001-catalog.md). Commits never fsync and never checkpoint; both are blocking calls that run
through `ports.Offload` on connections or descriptors of their own.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn

from kvfs.errors import (
    FailsafeError,
    FormatError,
    InternalError,
    KvfsError,
    NotFoundError,
    PoolBusyError,
    PoolFullError,
)
from kvfsd.catalog import schema
from kvfsd.ondisk.metalog import Change, encode_entries

CACHE_KIB: Final = 64 * 1024
"""SQLite's cache: the bound of the catalog's memory."""
BUSY_TIMEOUT_S: Final = 2.0
"""How long a commit waits for another process or a TRUNCATE checkpoint that holds the write lock."""
STATEMENTS_CACHED: Final = 256
WAL_SOFT_BYTES: Final = 32 << 20
"""From this size on the log is copied into the database in the background (PASSIVE: writers go on)."""
WAL_HARD_BYTES: Final = 256 << 20
"""From this size on the log is also emptied; a writer may wait for the last, short part of that copy."""

INO_RANGE: Final = 1 << 16
GENERATION_RANGE: Final = 1 << 20
RANGE_LOW: Final = 1 << 12
"""A range is replaced when fewer numbers than this are left, before a transaction begins."""

Row = tuple[Any, ...]


def _nothing() -> None:
    """Default hook."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Called around each commit; a simulation raises from them to crash there."""

    before_commit: Callable[[], None] = _nothing
    after_commit: Callable[[], None] = _nothing


class _Range:
    """Numbers [next, end) of a counter whose `end` is on stable storage already."""

    def __init__(self, key: str, step: int) -> None:
        self.key = key
        self.step = step
        self.next = 0
        self.end = 0

    def take(self) -> int:
        if self.next >= self.end:
            raise InternalError(f"catalog: counter {self.key} used up inside a transaction")
        number = self.next
        self.next = number + 1
        return number


class Transaction:
    """`with database.transaction():` BEGIN IMMEDIATE ... COMMIT, or ROLLBACK if the body raises."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._database.commit()
        else:
            self._database.rollback()


class Database:
    """One connection to a catalog; use `open`. Not thread-safe but for what `sync_call` and `checkpoint_call` return.

    Every method raises FailsafeError for a damaged or failing database, PoolFullError for a full disk under it,
    PoolBusyError if another process holds its write lock for longer than BUSY_TIMEOUT_S.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, read_only: bool, hooks: Hooks) -> None:
        self.path = path
        self.read_only = read_only
        self.logging = True
        """False while a rebuild fills the catalog: changes are then not queued for the metadata log."""
        self.was_clean = True
        """Whether the process before closed the catalog; False means: recover."""
        self._connection = connection
        self._hooks = hooks
        self._transaction = Transaction(self)
        self._changes: dict[int, list[Change]] = {}
        self._next_sequence = 1
        self._inos = _Range(schema.META_NEXT_INO, INO_RANGE)
        self._generations = _Range(schema.META_NEXT_GENERATION, GENERATION_RANGE)
        self._attachments = _Range(schema.META_NEXT_ATTACHMENT, INO_RANGE)
        self._wal_fd = -1

    # --- opening and closing ---------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, pool_uuid: bytes, hooks: Hooks | None = None) -> Database:
        """Make an empty catalog for the pool (mode 0600); FileExistsError if there is something at `path`."""
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = _connect(path, read_only=False)
        connection.executescript(
            f"BEGIN; {schema.TABLES} PRAGMA application_id={schema.APPLICATION_ID};"
            f" PRAGMA user_version={schema.VERSION}; COMMIT;"
        )
        # ino 1 means "my root" in every command, so the first object is 2; 0 is never a number of anything.
        values = [
            (schema.META_POOL_UUID, pool_uuid),
            (schema.META_FEATURES, 0),
            (schema.META_NEXT_INO, 2),
            (schema.META_NEXT_GENERATION, 1),
            (schema.META_NEXT_ATTACHMENT, 1),
            (schema.META_CLEAN, 1),
            (schema.META_SYSTEM_VERSION, 1),
            (schema.META_SYSTEM_WRITTEN, 0),
            (schema.META_NEXT_TENANT, 1),
        ]
        connection.executemany("INSERT INTO meta VALUES(?,?)", values)
        connection.close()
        _sync_directory(path.parent)
        return cls.open(path, hooks=hooks)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, hooks: Hooks | None = None) -> Database:
        """Open a catalog. `read_only` is for tools: it writes nothing, and works beside a live pool.

        Raises NotFoundError if there is none, FormatError if the file is no catalog or one this code does not know.
        """
        if not path.is_file():
            raise NotFoundError(f"catalog {path}: no such file")
        connection = _connect(path, read_only=read_only)
        database = cls(path, connection, read_only=read_only, hooks=hooks or Hooks())
        try:
            database._check_version()
            if not read_only:
                database._start_writing()
        except BaseException:
            connection.close()
            raise
        return database

    def close(self) -> None:
        """Mark the catalog clean, checkpoint it and close; the -wal file is gone afterwards."""
        if not self.read_only:
            self.set_meta(schema.META_CLEAN, 1)
            self.one("PRAGMA wal_checkpoint(TRUNCATE)")
        self.abandon()

    def abandon(self) -> None:
        """Close without marking it clean, as a killed process would leave it."""
        self._connection.close()
        if self._wal_fd >= 0:
            os.close(self._wal_fd)
            self._wal_fd = -1

    def _check_version(self) -> None:
        try:
            application = self.one("PRAGMA application_id")
            version = self.one("PRAGMA user_version")
            features = self.one("SELECT value FROM meta WHERE key=?", (schema.META_FEATURES,)) if version else None
        except FailsafeError as error:
            raise FormatError(f"catalog {self.path}: {error}") from error
        if application != (schema.APPLICATION_ID,):
            raise FormatError(f"catalog {self.path}: not a catalog of kvfs")
        if version != (schema.VERSION,) or features is None:
            raise FormatError(f"catalog {self.path}: version {version}; this kvfs knows {schema.VERSION}")
        if features[0] & ~schema.FEATURES_KNOWN:
            raise FormatError(f"catalog {self.path}: unknown features {features[0] & ~schema.FEATURES_KNOWN:#x}")

    def _start_writing(self) -> None:
        self.was_clean = bool(self.meta(schema.META_CLEAN))
        self.run("PRAGMA wal_autocheckpoint=0")
        self._wal_fd = -1
        head = self.one("SELECT max(sequence) FROM outbox")
        self._next_sequence = (head[0] if head and head[0] else 0) + 1
        self._reserve([self._inos, self._generations, self._attachments])
        # After the first commit the -wal file exists, and stays this file until the last connection closes. Its
        # descriptor may be closed at any time: SQLite holds its POSIX locks on the other two files.
        self._wal_fd = os.open(f"{self.path}-wal", os.O_RDONLY)
        _sync_directory(self.path.parent)

    # --- statements ------------------------------------------------------------------------------------

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        """First row of a query, or None."""
        try:
            row: Row | None = self._connection.execute(sql, parameters).fetchone()
        except sqlite3.Error as error:
            self._failed(error)
        return row

    def all(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query; the caller bounds them with LIMIT."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            self._failed(error)

    def iterate(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Row]:
        """Rows of a query one by one, for results too large to hold; nothing may be changed meanwhile."""
        try:
            yield from self._connection.execute(sql, parameters)
        except sqlite3.Error as error:
            self._failed(error)

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Execute a statement -> number of rows changed."""
        try:
            return self._connection.execute(sql, parameters).rowcount
        except sqlite3.Error as error:
            self._failed(error)

    def run_many(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Execute a statement once for each item of `parameters`."""
        try:
            self._connection.executemany(sql, parameters)
        except sqlite3.Error as error:
            self._failed(error)

    def _failed(self, error: sqlite3.Error) -> NoReturn:
        raise _domain_error(error, self.path) from error

    # --- transactions ----------------------------------------------------------------------------------

    def transaction(self) -> Transaction:
        """Context of one atomic change, with its entries for the metadata log; nested use is a bug."""
        return self._transaction

    def begin(self) -> None:
        """Start a transaction (use `transaction`)."""
        if self._connection.in_transaction:
            raise InternalError("catalog: a transaction inside a transaction")
        if self._inos.end - self._inos.next < RANGE_LOW:
            self._reserve([self._inos])
        if self._generations.end - self._generations.next < RANGE_LOW:
            self._reserve([self._generations])
        self.run("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End a transaction; on failure everything of it is undone and the error raised."""
        try:
            if self._changes:
                self._queue_changes()
            self._hooks.before_commit()
            self.run("COMMIT")
        except BaseException:
            self.rollback()
            raise
        self._hooks.after_commit()

    def rollback(self) -> None:
        """Undo everything since `begin`."""
        self._changes.clear()
        if self._connection.in_transaction:
            self.run("ROLLBACK")

    def require_transaction(self) -> None:
        """InternalError unless a transaction is running: what follows must be atomic."""
        if not self._connection.in_transaction:
            raise InternalError("catalog: change outside a transaction")

    # --- metadata log ----------------------------------------------------------------------------------

    def log(self, tenant: int, change: Change) -> None:
        """Queue a row change of this transaction for the tenant's metadata log."""
        if self.logging:
            self._changes.setdefault(tenant, []).append(change)

    @property
    def last_sequence(self) -> int:
        """Number of the last entry that was queued for the metadata log."""
        return self._next_sequence - 1

    def _queue_changes(self) -> None:
        for tenant, changes in self._changes.items():
            for blob in encode_entries(changes):
                self.run("INSERT INTO outbox VALUES(?,?,?)", (tenant, self._next_sequence, blob))
                self._next_sequence += 1
        self._changes.clear()

    # --- counters --------------------------------------------------------------------------------------

    def next_ino(self) -> int:
        """A fresh object number, never handed out before, not even ahead of a power loss."""
        return self._next(self._inos)

    def next_generation(self) -> int:
        """A fresh generation, never handed out before, not even ahead of a power loss."""
        return self._next(self._generations)

    def next_attachment(self) -> int:
        """A fresh attachment epoch."""
        return self._next(self._attachments)

    def advance_counters(self, ino: int, generation: int) -> None:
        """Hand out only larger numbers than these from now on (rebuild)."""
        self._inos.next = max(self._inos.next, ino + 1)
        self._generations.next = max(self._generations.next, generation + 1)
        self._reserve([self._inos, self._generations])

    def _next(self, numbers: _Range) -> int:
        if numbers.next >= numbers.end and not self._connection.in_transaction:
            self._reserve([numbers])
        return numbers.take()

    def _reserve(self, ranges: Sequence[_Range]) -> None:
        # synchronous=FULL for this commit alone: after a power loss the counters are never behind what was used.
        self.run("PRAGMA synchronous=FULL")
        self.run("BEGIN IMMEDIATE")
        try:
            moved = []
            for numbers in ranges:
                base = max(self.meta(numbers.key), numbers.next)
                moved.append((numbers, numbers.next if numbers.next < numbers.end else base, base + numbers.step))
                self.run("UPDATE meta SET value=? WHERE key=?", (base + numbers.step, numbers.key))
            self.run("UPDATE meta SET value=0 WHERE key=?", (schema.META_CLEAN,))
            self.run("COMMIT")
        except BaseException:
            self.rollback()
            raise
        finally:
            self.run("PRAGMA synchronous=NORMAL")
        for numbers, start, end in moved:
            numbers.next, numbers.end = start, end

    # --- meta ------------------------------------------------------------------------------------------

    def meta(self, key: str) -> Any:
        """Value of a `meta` row; NotFoundError if there is none."""
        row = self.one("SELECT value FROM meta WHERE key=?", (key,))
        if row is None:
            raise NotFoundError(f"catalog {self.path}: no meta row {key!r}")
        return row[0]

    def set_meta(self, key: str, value: int | bytes | str) -> None:
        """Write a `meta` row."""
        self.run("INSERT OR REPLACE INTO meta VALUES(?,?)", (key, value))

    # --- stable storage --------------------------------------------------------------------------------

    def sync_call(self) -> Callable[[], None]:
        """A blocking call after which every commit so far survives a power loss: one fsync of the -wal file.

        A checkpoint syncs the database before the log is reused, so the log alone holds what is not safe yet.
        """
        descriptor = self._wal_fd
        path = self.path

        def sync() -> None:
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise FailsafeError(f"catalog {path}-wal: fsync: {error.strerror}") from error

        return sync

    def wal_bytes(self) -> int:
        """Size of the -wal file."""
        return os.fstat(self._wal_fd).st_size

    def checkpoint_call(self, *, empty: bool = False) -> Callable[[], None]:
        """A blocking call that copies the log into the database; with `empty` it also truncates the log.

        Plain, it never holds up a commit. `empty` should follow a plain one: it holds the write lock while it copies
        what was committed in between.
        """
        path = self.path

        def checkpoint() -> None:
            connection = _connect(path, read_only=False)
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if empty:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                raise _domain_error(error, path) from error
            finally:
                connection.close()

        return checkpoint


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
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise FormatError(f"catalog {path}: not a database") from error
        raise _domain_error(error, path) from error
    return connection


def _domain_error(error: sqlite3.Error, path: Path) -> KvfsError:
    text = f"catalog {path}: {error}"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return PoolBusyError(text)
    if code == sqlite3.SQLITE_FULL:
        return PoolFullError(text)
    if code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE):
        return InternalError(text)
    return FailsafeError(text)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

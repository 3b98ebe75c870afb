"""The catalog's database: opening, transactions with their entries for the metadata log, counters.

WAL with synchronous=NORMAL: a commit survives the process at once, and a power loss after `sync_call` (kvfs's
durability table, docs/adr/0001-catalog.md). Commits never fsync and never checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kvfs.errors import FailsafeError, FormatError, InternalError, NotFoundError
from kvfsd.catalog import meta_rows, schema
from kvfsd.catalog.connection import Connection, Row
from kvfsd.catalog.counters import Counters
from kvfsd.catalog.damage import DamageReports
from kvfsd.catalog.outbox import OutboxSize
from kvfsd.catalog.rowmacs import RowMacs
from kvfsd.catalog.wal import WriteAheadLog, sync_directory
from kvfsd.ondisk.metalog import Change, encode_entries

__all__ = ["Database", "Hooks", "Row", "Transaction"]


def _nothing() -> None:
    """Default hook."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Called around each commit; a simulation raises from them to crash there."""

    before_commit: Callable[[], None] = _nothing
    after_commit: Callable[[], None] = _nothing


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


class Database(Connection):
    """The connection of a catalog; use `open` or `create`. Lives on the event loop's thread.

    A read-only one has no counters, no sync and no checkpoint.
    """

    def __init__(self, path: Path, *, read_only: bool = False, hooks: Hooks | None = None) -> None:
        super().__init__(path, read_only=read_only)
        self.logging = True
        """False while a rebuild fills the catalog: changes are then not queued for the metadata log."""
        self.was_clean = True
        """Whether the process before closed the catalog; False means: recover."""
        self.macs = RowMacs()
        self.damage = DamageReports()
        self._hooks = hooks or Hooks()
        self._transaction = Transaction(self)
        self.outbox = OutboxSize()
        """What waits for the metadata log."""
        self._changes: dict[int, list[Change]] = {}
        self._next_sequence = 1
        self._counters = Counters(self)
        self._wal: WriteAheadLog | None = None

    # --- opening and closing ---------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, pool_uuid: bytes, hooks: Hooks | None = None) -> Database:
        """Make an empty catalog for the pool (mode 0600); FileExistsError if there is something at `path`."""
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = Connection(path)
        connection.run_script(
            f"BEGIN; {schema.TABLES} PRAGMA application_id={schema.APPLICATION_ID};"
            f" PRAGMA user_version={schema.VERSION}; COMMIT;"
        )
        for key, value in ((schema.META_POOL_UUID, pool_uuid), *schema.META_START):
            meta_rows.write(connection, key, value)
        connection.disconnect()
        sync_directory(path.parent)
        return cls.open(path, hooks=hooks)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, hooks: Hooks | None = None) -> Database:
        """Open a catalog. `read_only` is for tools: it writes nothing, and works beside a live pool.

        Raises NotFoundError if there is none, FormatError if the file is no catalog or one this code does not know.
        """
        if not path.is_file():
            raise NotFoundError(f"catalog {path}: no such file")
        database = cls(path, read_only=read_only, hooks=hooks)
        try:
            database._check_version()
            if not read_only:
                database._start_writing()
        except BaseException:
            database.disconnect()
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
        self.disconnect()
        if self._wal is not None:
            self._wal.close()

    def _check_version(self) -> None:
        try:
            application = self.one("PRAGMA application_id")
            version = self.one("PRAGMA user_version")
            if application != (schema.APPLICATION_ID,):
                raise FormatError(f"catalog {self.path}: not a catalog of kvfs")
            if version != (schema.VERSION,):
                raise FormatError(f"catalog {self.path}: version {version}; this kvfs knows {schema.VERSION}")
            values = {key: self.meta(key) for key in (schema.META_POOL_UUID, *dict(schema.META_START))}
            features = values[schema.META_FEATURES]
        except (FailsafeError, NotFoundError) as error:
            raise FormatError(f"catalog {self.path}: {error}") from error
        if not isinstance(features, int) or features & ~schema.FEATURES_KNOWN:
            raise FormatError(f"catalog {self.path}: unknown features {features!r}")

    def _start_writing(self) -> None:
        self.was_clean = bool(self.meta(schema.META_CLEAN))
        self.run("PRAGMA wal_autocheckpoint=0")
        head = self.one("SELECT max(sequence) FROM outbox")
        self._next_sequence = (head[0] if head and head[0] else 0) + 1
        self.outbox.read(self)
        for statement in schema.TABLES_ADDED:
            self.run(statement)
        self._counters.start()  # the first commit: from here on there is a -wal file
        self._wal = WriteAheadLog(self.path)

    # --- transactions ----------------------------------------------------------------------------------

    def transaction(self) -> Transaction:
        """Context of one atomic change, with its entries for the metadata log; nested use is a bug."""
        return self._transaction

    def begin(self) -> None:
        """Start a transaction (use `transaction`)."""
        if self.in_transaction:
            raise InternalError("catalog: a transaction inside a transaction")
        self._counters.refill()
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
        self.outbox.committed()
        self._hooks.after_commit()

    def rollback(self) -> None:
        """Undo everything since `begin`."""
        self._changes.clear()
        self.outbox.undone()
        if self.in_transaction:
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
                self.outbox.change(1, len(blob))
        self._changes.clear()

    # --- counters --------------------------------------------------------------------------------------

    def next_ino(self) -> int:
        """A fresh object number, never handed out before, not even ahead of a power loss."""
        return self._counters.take(self._counters.inos)

    def next_inos(self, count: int) -> int:
        """The first of `count` (at most 4,096) fresh object numbers in a row."""
        return self._counters.take_run(self._counters.inos, count)

    def next_generation(self) -> int:
        """A fresh generation, never handed out before, not even ahead of a power loss."""
        return self._counters.take(self._counters.generations)

    def next_attachment(self) -> int:
        """A fresh attachment epoch."""
        return self._counters.take(self._counters.attachments)

    def advance_counters(self, ino: int, generation: int) -> None:
        """Hand out only larger numbers than these from now on (rebuild)."""
        self._counters.advance(ino, generation)

    # --- meta and stable storage -----------------------------------------------------------------------

    def meta(self, key: str) -> Any:
        """Value of a `meta` row; NotFoundError if there is none, FailsafeError if it is damaged."""
        return meta_rows.read(self, key)

    def set_meta(self, key: str, value: int | bytes | str) -> None:
        """Write a `meta` row."""
        meta_rows.write(self, key, value)

    @property
    def wal(self) -> WriteAheadLog:
        """The write-ahead log of a database that is open for writing."""
        if self._wal is None:
            raise InternalError(f"catalog {self.path} is open read-only")
        return self._wal

    def sync_call(self) -> Callable[[], None]:
        """A blocking call after which every commit so far survives a power loss (`wal.WriteAheadLog.sync_call`)."""
        return self.wal.sync_call()

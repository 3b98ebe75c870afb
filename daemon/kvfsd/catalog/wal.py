"""The write-ahead log on stable storage: sync, and checkpoints that never hold up a commit.

Both are blocking calls that run through `ports.Offload`, on a descriptor or connection of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvfs.errors import FailsafeError
from kvfsd.catalog.connection import Connection

WAL_SOFT_BYTES: Final = 32 << 20
"""From this size on the log should be copied into the database in the background (writers go on)."""
WAL_HARD_BYTES: Final = 256 << 20
"""From this size on it should also be emptied; a writer may wait for the last, short part of that copy."""


class WriteAheadLog:
    """The -wal file of an open database; it stays the same file until the last connection closes.

    Its descriptor may be closed at any time: SQLite holds its POSIX locks on the other two files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(f"{path}-wal", os.O_RDONLY)
        sync_directory(path.parent)

    def sync_call(self) -> Callable[[], None]:
        """A blocking call after which every commit so far survives a power loss: one fsync.

        A checkpoint syncs the database before the log is reused, so the log alone holds what is not safe yet.
        FailsafeError if it fails: what was committed may then not be on stable storage, and a second try cannot tell.
        """
        descriptor, path = self._descriptor, self._path

        def sync() -> None:
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise FailsafeError(f"catalog {path}-wal: fsync: {error.strerror}") from error

        return sync

    def size_bytes(self) -> int:
        """Size of the file now."""
        return os.fstat(self._descriptor).st_size

    def checkpoint_call(self, *, empty: bool = False) -> Callable[[], None]:
        """A blocking call that copies the log into the database; with `empty` it also truncates the log.

        Plain, it never holds up a commit. With `empty` it takes the write lock for what was committed while the
        plain copy ran.
        """
        path = self._path

        def checkpoint() -> None:
            connection = Connection(path)
            try:
                connection.one("PRAGMA wal_checkpoint(PASSIVE)")
                if empty:
                    connection.one("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.disconnect()

        return checkpoint

    def due_checkpoint(self) -> Callable[[], None] | None:
        """The checkpoint that the file's size asks for now, None if it is small. Ask once a second or so."""
        size = self.size_bytes()
        return self.checkpoint_call(empty=size >= WAL_HARD_BYTES) if size >= WAL_SOFT_BYTES else None

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""How much waits for the metadata log: rows and bytes of the table `outbox`, kept in memory and exact.

Whoever changes the table says so in the same transaction (`change`); the sums move when that commits, so that a
rollback leaves them alone. They are read from the table once, when the catalog is opened.
"""

from __future__ import annotations

from kvfsd.catalog.connection import Connection


class OutboxSize:
    """`rows` queued entries of together `bytes` encoded bytes, as of the last commit."""

    __slots__ = ("_bytes_delta", "_rows_delta", "bytes", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self._rows_delta = 0
        self._bytes_delta = 0

    def read(self, connection: Connection) -> None:
        """Take both sums from the table: one scan of it, so not for every command."""
        row = connection.one("SELECT count(*), coalesce(sum(length(blob)), 0) FROM outbox")
        self.rows, self.bytes = row if row else (0, 0)

    def change(self, rows: int, entry_bytes: int) -> None:
        """The transaction in hand adds so many entries and bytes, or takes them away (negative)."""
        self._rows_delta += rows
        self._bytes_delta += entry_bytes

    def committed(self) -> None:
        """The transaction counts."""
        self.rows += self._rows_delta
        self.bytes += self._bytes_delta
        self._rows_delta = self._bytes_delta = 0

    def undone(self) -> None:
        """The transaction was rolled back."""
        self._rows_delta = self._bytes_delta = 0

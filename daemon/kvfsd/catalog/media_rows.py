"""Rows of the pool's media."""

from __future__ import annotations

from kvfs import limits
from kvfs.errors import InvalidArgumentError, NotFoundError
from kvfsd.catalog.database import Database
from kvfsd.catalog.rows import MediumRow
from kvfsd.catalog.schema import MediumState


class MediaRows:
    """Media by the index that locations use. An index is never given to another medium."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: MediumRow) -> None:
        """Add a medium. InvalidArgumentError: its index is over the limit; InternalError: index or UUID is taken."""
        self._database.require_transaction()
        if not 0 <= row.medium < limits.MEDIA_PER_POOL_MAX:
            raise InvalidArgumentError(f"medium {row.path}: index {row.medium} of {limits.MEDIA_PER_POOL_MAX}")
        self._database.run("INSERT INTO medium VALUES(?,?,?,?,?,?)", row)

    def all(self) -> list[MediumRow]:
        """Every medium, by index."""
        rows = self._database.all(
            "SELECT medium, uuid, path, weight, failure_domain, state FROM medium ORDER BY medium"
        )
        return [MediumRow._make(row) for row in rows]

    def set_state(self, index: int, state: MediumState) -> None:
        """Another state; NotFoundError."""
        self._database.require_transaction()
        if not self._database.run("UPDATE medium SET state=? WHERE medium=?", (state, index)):
            raise NotFoundError(f"no medium {index}")

    def set_path(self, index: int, path: str) -> None:
        """The medium is found somewhere else now; NotFoundError."""
        self._database.require_transaction()
        if not self._database.run("UPDATE medium SET path=? WHERE medium=?", (path, index)):
            raise NotFoundError(f"no medium {index}")

"""Numbers that are never handed out twice, not even ahead of a power loss: objects, generations, attachments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvfs.errors import InternalError
from kvfsd.catalog import meta_rows, schema
from kvfsd.catalog.connection import Connection

INO_RANGE: Final = 1 << 16
GENERATION_RANGE: Final = 1 << 20
RANGE_LOW: Final = 1 << 12
"""A range is replaced when fewer numbers than this are left, before a transaction begins."""


class _Range:
    """Numbers [next, end) of a counter whose `end` is on stable storage already."""

    def __init__(self, key: str, step: int) -> None:
        self.key = key
        self.step = step
        self.next = 0
        self.end = 0


class Counters:
    """Counters of an open catalog. A range is reserved with an fsync, so that a rollback never gives it out again."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.inos = _Range(schema.META_NEXT_INO, INO_RANGE)
        self.generations = _Range(schema.META_NEXT_GENERATION, GENERATION_RANGE)
        self.attachments = _Range(schema.META_NEXT_ATTACHMENT, INO_RANGE)

    def start(self) -> None:
        """Reserve the first ranges; marks the catalog as in use as well."""
        self._reserve([self.inos, self.generations, self.attachments])

    def take(self, numbers: _Range) -> int:
        """The next number."""
        if numbers.next >= numbers.end:
            if self._connection.in_transaction:
                raise InternalError(f"catalog: counter {numbers.key} used up inside a transaction")
            self._reserve([numbers])
        number = numbers.next
        numbers.next = number + 1
        return number

    def take_run(self, numbers: _Range, count: int) -> int:
        """The first of `count` numbers in a row; outside a transaction, `count` is at most RANGE_LOW."""
        if numbers.end - numbers.next < count:
            self._reserve([numbers])
        first = numbers.next
        numbers.next = first + count
        return first

    def refill(self) -> None:
        """Before a transaction: have enough numbers for it."""
        for numbers in (self.inos, self.generations):
            if numbers.end - numbers.next < RANGE_LOW:
                self._reserve([numbers])

    def advance(self, ino: int, generation: int) -> None:
        """Hand out only larger numbers than these from now on (rebuild)."""
        self.inos.next = max(self.inos.next, ino + 1)
        self.generations.next = max(self.generations.next, generation + 1)
        self._reserve([self.inos, self.generations])

    def _reserve(self, ranges: Sequence[_Range]) -> None:
        # synchronous=FULL for this commit alone: after a power loss the counters are never behind what was used.
        connection = self._connection
        connection.run("PRAGMA synchronous=FULL")
        try:
            connection.run("BEGIN IMMEDIATE")
            moved = []
            for numbers in ranges:
                base = max(meta_rows.read(connection, numbers.key), numbers.next)
                moved.append((numbers, numbers.next if numbers.next < numbers.end else base, base + numbers.step))
                meta_rows.write(connection, numbers.key, base + numbers.step)
            meta_rows.write(connection, schema.META_CLEAN, 0)
            connection.run("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.run("ROLLBACK")
            raise
        finally:
            connection.run("PRAGMA synchronous=NORMAL")
        for numbers, start, end in moved:
            numbers.next, numbers.end = start, end

"""Whether all blocks of an object are there. A lost row would read as a hole; so a hole is believed only after this.

Small objects are also looked at when they are opened, once for each generation.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from kvfs import limits
from kvfs.errors import BadRecordError
from kvfsd.catalog.database import Database
from kvfsd.catalog.inodes import Inodes
from kvfsd.catalog.rowmacs import total
from kvfsd.catalog.rows import InodeRow

KNOWN_MAX: Final = 1 << 14
STEP_BLOCKS: Final = 512
"""Rows of one step: about a millisecond."""
BLOCKS_PER_HOLE: Final = 8
"""Of a large object that was found whole a hole is believed for each so many blocks, before it is looked at again."""
_COLUMNS: Final = "block, generation, length, epoch, tag"

_Known = OrderedDict[tuple[int, int], tuple[int, int]]


class LostBlocksError(BadRecordError):
    """The blocks of an object are not those that its row says: one is lost, changed, or another version."""


class Wholeness:
    """Compares blocks with the sum of their checks in the object's row."""

    def __init__(self, database: Database, inodes: Inodes) -> None:
        self._database = database
        self._inodes = inodes
        self._opened: _Known = OrderedDict()
        self._holes: _Known = OrderedDict()
        """Generation, and holes that are still believed."""

    def opened(self, tenant: int, row: InodeRow) -> None:
        """The object of `row`, which is as it is now, is opened: LostBlocksError if it is small, and not whole.

        Small is up to VERIFY_AT_OPEN_MAX_BYTES: all of it is read before open returns.
        """
        key = (tenant, row.ino)
        self._holes.pop(key, None)
        if row.size > limits.VERIFY_AT_OPEN_MAX_BYTES or not stat.S_ISREG(row.mode):
            return
        if self._opened.get(key) == (row.generation, 0):
            return
        rows = self._database.all(f"SELECT {_COLUMNS} FROM block WHERE tenant=? AND ino=?", key)
        check = self._database.macs.of(tenant).block
        self._require(tenant, row, sum([check(row.ino, block) for block in rows]))
        _remember(self._opened, key, (row.generation, 0))

    def hole_steps(self, tenant: int, ino: int) -> Iterator[None]:
        """A block has no row: look at all that have one, STEP_BLOCKS a step, while others may run between the steps.

        LostBlocksError, after the last one, if that is no hole. A commit meanwhile starts it anew. Nothing is said of
        an object that is gone, or of one that is no file. BadRecordError.
        """
        generation, summed, count, after = -1, 0, 0, -1
        while (row := self._inodes.find(tenant, ino)) is not None and stat.S_ISREG(row.mode):
            known, believed = self._holes.get((tenant, ino), (-1, 0))
            if known == row.generation and believed > 0:
                self._holes[tenant, ino] = (known, believed - 1)
                return
            if row.generation != generation:
                generation, summed, count, after = row.generation, 0, 0, -1
            rows = self._database.all(
                f"SELECT {_COLUMNS} FROM block WHERE tenant=? AND ino=? AND block>? ORDER BY block LIMIT ?",
                (tenant, ino, after, STEP_BLOCKS),
            )
            check = self._database.macs.of(tenant).block
            summed, count = summed + sum([check(ino, block) for block in rows]), count + len(rows)
            if len(rows) < STEP_BLOCKS:
                self._require(tenant, row, summed)
                _remember(self._holes, (tenant, ino), (generation, count // BLOCKS_PER_HOLE))
                return
            after = rows[-1][0]
            yield

    def _require(self, tenant: int, row: InodeRow, summed: int) -> None:
        if total(summed) != row.members:
            text = f"blocks of object {row.ino} are lost or damaged"
            raise LostBlocksError(str(self._database.damage.note("block", tenant, row.ino, text)))


def _remember(known: _Known, key: tuple[int, int], what: tuple[int, int]) -> None:
    known[key] = what
    if len(known) > KNOWN_MAX:
        known.popitem(last=False)

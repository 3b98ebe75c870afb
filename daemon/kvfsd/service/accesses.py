"""Uses of objects: noted in memory, written in batches, so that an open costs no transaction.

Each open of a reader counts, page-cache hits included, for the mount asks at open. What is noted becomes the object's
access time, and that is the order in which objects are evicted (`catalog.retention_rows`). What is pending is lost by a
kill: ACCESSES_PERIOD_MS of it at most (`service.background`). It is bounded, and written at every sync and at shutdown.
"""

from __future__ import annotations

import itertools
from typing import Final

import trio

from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.rows import InodeRow
from kvfsd.ports import Clock

NEVER_NS: Final = -(1 << 63)
"""Before every time that a file can have; those before 1970 are negative."""
PENDING_MAX: Final = 8192
"""Uses kept in memory; one more writes them all at once (about 80 ms)."""
PENDING_SOFT: Final = 2048
"""From here on they are due, long before that has to be."""
FLUSH_ROWS: Final = 128
"""Uses that one transaction writes: about 1 ms."""


class AccessTimes:
    """Pending access times of a pool."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._pending: dict[int, tuple[int, int]] = {}
        self._due = trio.Event()

    def __len__(self) -> int:
        return len(self._pending)

    def note(self, tenant: int, row: InodeRow) -> None:
        """The object of `row` is read now."""
        now_ns = self._clock.wall_ns()
        if now_ns > row.atime_ns:
            self._note(tenant, row.ino, now_ns)

    def note_use(self, tenant: int, ino: int) -> None:
        """The object is in use now."""
        self._note(tenant, ino, self._clock.wall_ns())

    def _note(self, tenant: int, ino: int, now_ns: int) -> None:
        pending = self._pending
        pending[ino] = (tenant, now_ns)
        if len(pending) >= PENDING_SOFT:
            self._due.set()
            if len(pending) > PENDING_MAX:
                self.flush()

    def pending_ns(self, ino: int) -> int:
        """The access time that is not in the catalog yet; NEVER_NS if there is none."""
        entry = self._pending.get(ino)
        return entry[1] if entry else NEVER_NS

    def forget(self, ino: int) -> None:
        """The access time was set to another value."""
        self._pending.pop(ino, None)

    def flush(self) -> int:
        """Write what is pending, all at once -> how many."""
        written = 0
        while count := self.flush_some():
            written += count
        return written

    def flush_some(self, limit: int = FLUSH_ROWS) -> int:
        """Write up to `limit` uses in one transaction -> how many there were."""
        batch = list(itertools.islice(self._pending.items(), limit))
        if batch:
            with self._catalog.transaction():
                for ino, (tenant, atime_ns) in batch:
                    self._catalog.inodes.note_access(tenant, ino, atime_ns)
            for ino, _ in batch:
                del self._pending[ino]
        return len(batch)

    async def flush_gently(self) -> None:
        """Write what is pending now, with room for others in between."""
        left = len(self._pending)
        while left > 0 and (count := self.flush_some()):
            left -= count
            await trio.lowlevel.checkpoint()

    async def wait_due(self) -> None:
        """Return once there is much to write; waits for as long as there is not (the owner sets a deadline)."""
        self._due = trio.Event()
        if len(self._pending) < PENDING_SOFT:
            await self._due.wait()

"""Access times: noted in memory, written in batches, so that a read costs no transaction.

As with the kernel's relatime, an access counts when the noted one is older than the last change, or older than
ATIME_GRANULARITY_NS. What is pending is lost by a kill; it is bounded, and written at every sync and at shutdown.
"""

from __future__ import annotations

from typing import Final

from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.rows import InodeRow
from kvfsd.ports import Clock

ATIME_GRANULARITY_NS: Final = 3600 * 1_000_000_000
"""Evictors that walk by atime want better than relatime's day; an hour costs one row per object and hour."""
NEVER_NS: Final = -(1 << 63)
"""Before every time that a file can have; those before 1970 are negative."""
PENDING_MAX: Final = 4096
"""Accesses kept in memory; one more writes them all (about 10 ms)."""


class AccessTimes:
    """Pending access times of a pool."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._pending: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def note(self, tenant: int, row: InodeRow) -> None:
        """The object of `row` is read now."""
        now_ns = self._clock.wall_ns()
        known_ns = max(row.atime_ns, self.pending_ns(row.ino))
        if row.mtime_ns < known_ns and row.ctime_ns < known_ns and now_ns - known_ns < ATIME_GRANULARITY_NS:
            return
        if now_ns <= known_ns:
            return
        self._pending[row.ino] = (tenant, now_ns)
        if len(self._pending) > PENDING_MAX:
            self.flush()

    def pending_ns(self, ino: int) -> int:
        """The access time that is not in the catalog yet; NEVER_NS if there is none."""
        entry = self._pending.get(ino)
        return entry[1] if entry else NEVER_NS

    def forget(self, ino: int) -> None:
        """The access time was set to another value."""
        self._pending.pop(ino, None)

    def flush(self) -> int:
        """Write what is pending in one transaction -> how many."""
        pending, self._pending = self._pending, {}
        if pending:
            with self._catalog.transaction():
                for ino, (tenant, atime_ns) in pending.items():
                    self._catalog.inodes.note_access(tenant, ino, atime_ns)
        return len(pending)

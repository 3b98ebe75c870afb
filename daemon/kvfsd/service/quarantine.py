"""What becomes of bad records, and of unlinks that follow a fault.

* An object of which a record is bad on every replica is hidden: from one transaction on its names are misses and free
  to be stored anew; its data stays for inspection until then.
* Engines unlink a block after any read error, a passing one included. So an unlink within GRACE_MS of a fault puts the
  object into quarantine instead: `restore` undoes it, `purge` ends it after KEEP_MS or when its bytes are needed.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from kvfs.errors import BadRecordError, NotFoundError, WrongKeyError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.rows import Entry, QuarantineRow, RemovedName
from kvfsd.metrics import Metrics
from kvfsd.ports import Clock

log = logging.getLogger(__name__)

GRACE_MS: Final = 60_000
KEEP_MS: Final = 24 * 3600 * 1000
SUSPECTS_MAX: Final = 4096
"""Objects with a recent fault that are remembered; the oldest is forgotten first."""
PURGE_BATCH: Final = 64
REASON_UNLINKED: Final = "unlinked after a fault"


@dataclass(frozen=True, slots=True)
class QuarantinePolicy:
    """How long, in milliseconds, a fault is remembered and what was put aside is kept."""

    grace_ms: int = GRACE_MS
    keep_ms: int = KEEP_MS


class Quarantine:
    """Faults of a pool's objects, and what they lead to."""

    def __init__(self, catalog: Catalog, clock: Clock, metrics: Metrics, policy: QuarantinePolicy) -> None:
        self._catalog = catalog
        self._clock = clock
        self._metrics = metrics
        self._policy = policy
        self._suspects: OrderedDict[tuple[int, int], int] = OrderedDict()

    def note_fault(self, tenant: int, ino: int) -> None:
        """A read of the object failed; an unlink that follows soon is to be undoable."""
        self._suspects[tenant, ino] = self._clock.monotonic_ns()
        self._suspects.move_to_end((tenant, ino))
        if len(self._suspects) > SUSPECTS_MAX:
            self._suspects.popitem(last=False)

    def is_suspect(self, tenant: int, ino: int) -> bool:
        """Whether the object had a fault within the grace period."""
        noted_ns = self._suspects.get((tenant, ino))
        if noted_ns is None:
            return False
        if self._clock.monotonic_ns() - noted_ns <= self._policy.grace_ms * 1_000_000:
            return True
        del self._suspects[tenant, ino]
        return False

    def unlink(self, entry: Entry, keep_for: int | None) -> RemovedName:
        """Remove a name in the caller's transaction; all as `Namespace.remove_entry`, but that a suspect is kept."""
        namespace = self._catalog.namespace
        now_ns = self._clock.wall_ns()
        if self._suspects:
            row = namespace.lookup(entry.tenant, entry.parent, entry.name)
            if row is not None and self.is_suspect(entry.tenant, row.ino):
                removed = self._catalog.quarantine.unlink_into(entry, REASON_UNLINKED, now_ns, keep_for)
                if not removed.nlink:
                    self._metrics.counters.quarantined_unlinks += 1
                    log.warning("tenant %d: object %d %s is kept", entry.tenant, row.ino, REASON_UNLINKED)
                return removed
        return namespace.remove_entry(entry, now_ns, keep_for)

    def hide(self, tenant: int, ino: int, reason: str) -> bool:
        """A record of it is bad on every replica: a miss from now on -> False if it is one already.

        That is: it is gone, hidden, its row is damaged, or its tenant is being deleted.
        """
        try:
            self._catalog.inodes.get(tenant, ino)
        except (NotFoundError, BadRecordError, WrongKeyError):
            return False
        with self._catalog.transaction():
            self._catalog.quarantine.hide(tenant, ino, reason, self._clock.wall_ns())
        self._metrics.counters.quarantined_objects += 1
        log.error("tenant %d: object %d is quarantined: %s", tenant, ino, reason)
        return True

    def restore(self, tenant: int, ino: int) -> QuarantineRow:
        """Undo what put the object aside. NotFoundError, ExistsError if its name was taken since then."""
        row = self._catalog.quarantine.get(tenant, ino)
        with self._catalog.transaction():
            if row.sealed_name:
                self._catalog.quarantine.restore(tenant, ino, self._clock.wall_ns())
            else:
                self._catalog.quarantine.unhide(tenant, ino)
        self._suspects.pop((tenant, ino), None)
        self._metrics.counters.restored_objects += 1
        return row

    def expiry_ns(self) -> int:
        """What was put aside before this wall time has been kept long enough."""
        return self._clock.wall_ns() - self._policy.keep_ms * 1_000_000

    def purge(self) -> bool:
        """Free a batch of what was unlinked longer than `keep_ms` ago -> whether there may be more."""
        return self._expire(self.expiry_ns()) == PURGE_BATCH

    def make_room(self, tenant: int | None = None) -> bool:
        """Space is needed, by one tenant or by all: free a batch of what was unlinked -> whether there was anything."""
        return self._expire(self._clock.wall_ns() + 1, tenant) > 0

    def _expire(self, before_ns: int, tenant: int | None = None) -> int:
        with self._catalog.transaction():
            freed = self._catalog.quarantine.expire(before_ns, PURGE_BATCH, tenant)
        self._metrics.counters.purged_objects += freed
        return freed

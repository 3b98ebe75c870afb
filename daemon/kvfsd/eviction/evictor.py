"""The evictor: carries out what the policy decides. Name and data go together, in one transaction of the catalog.

    candidates, oldest use first (an index of the catalog; uses not written yet are laid over it)
      -> policy (pure) -> one transaction: all names, data, charge, tombstones for the metadata log
      -> EntryGone to the mounts of the tenant, counters, a line in the log now and then

Nothing here waits: each call evicts a bounded number of objects (about 70 us each). An object that a mount has open is
in use now: it is passed over and counts as used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.retention_rows import RemovedEntry, UseRow
from kvfsd.catalog.rows import Entry
from kvfsd.eviction.policy import Candidate, EvictionPolicy, LeastRecentlyUsed, Need
from kvfsd.metrics import Metrics
from kvfsd.ports import Clock

log = logging.getLogger(__name__)

VICTIMS_MAX: Final = 64
"""Objects of one transaction: about 5 ms."""
DAMAGED_TRIES: Final = 3
"""How often victims are chosen again because those chosen turned out to be damaged, which are never chosen again."""
LOOK_FIRST: Final = 16
LOOK_MAX: Final = 4096
"""Candidates read at first, and at most, to find one that is neither open nor used since."""
LOG_PERIOD_NS: Final = 10 * 1_000_000_000
"""A line per tenant and reason at most this often; it has the totals since the last one."""


class Uses(Protocol):
    """Uses that the catalog does not know yet (`kvfsd.service.accesses.AccessTimes`)."""

    def pending_ns(self, ino: int) -> int:
        """When the object was used, if that is not in the catalog yet; else a time before all others."""
        ...

    def note_use(self, tenant: int, ino: int) -> None:
        """The object is being used now."""
        ...

    def forget(self, ino: int) -> None:
        """The object is gone."""
        ...

    def flush(self) -> int:
        """Write them all."""
        ...


@dataclass(frozen=True, slots=True)
class EvictorPorts:
    """What the evictor works with.

    `openers`: attachments that have an object open. `keep`: it lost its names, those are to free it with their last
    close. `gone`: a name is gone, the mounts are to be told.
    """

    catalog: Catalog
    clock: Clock
    uses: Uses
    metrics: Metrics
    openers: Callable[[int, int], Sequence[int]]
    keep: Callable[[int, int], None]
    gone: Callable[[Entry], None]


@dataclass(slots=True)
class _Told:
    """What a line of the log has to tell of one tenant and reason."""

    since_ns: int = 0
    freed: Need = field(default_factory=Need)


class Evictor:
    """Evicts objects of one pool."""

    def __init__(self, ports: EvictorPorts, policy: EvictionPolicy | None = None) -> None:
        self._ports = ports
        self._catalog = ports.catalog
        self._policy = policy or LeastRecentlyUsed()
        self._told: dict[tuple[int, str], _Told] = {}

    def evict(
        self, tenant: int, need: Need, reason: str, victims_max: int = VICTIMS_MAX, at_most_bytes: int | None = None
    ) -> Need:
        """Free what is needed from the tenant's own objects, at most `victims_max` of them -> what was freed.

        `at_most_bytes`: what frees more than that in all stays. Nothing goes if the tenant's eviction is off, or every
        object is pinned, open or without what is needed.
        """
        if need.met or not self._catalog.retention.policy(tenant).eviction:
            return Need()
        freed = Need()
        for _ in range(DAMAGED_TRIES):
            victims = _within(self._choose(tenant, need, victims_max), at_most_bytes)
            freed = self._remove(tenant, [one.ino for one in victims]) if victims else freed
            if freed.objects or not victims:  # else all were damaged, and are not chosen again
                break
        self._ports.metrics.counters.evicted_objects += freed.objects
        self._ports.metrics.counters.evicted_bytes += freed.bytes
        self._tell(tenant, reason, freed)
        return freed

    def expire(self, limit: int = VICTIMS_MAX) -> bool:
        """Remove a batch of objects whose time is over, of all tenants -> whether there may be more."""
        now_s = self._ports.clock.wall_ns() // 1_000_000_000
        by_tenant: dict[int, list[int]] = {}
        for tenant, ino in self._catalog.retention.expired(now_s, limit):
            by_tenant.setdefault(tenant, []).append(ino)
        freed = sum(self.expire_objects(tenant, inos) for tenant, inos in by_tenant.items())
        return freed > 0 and sum(map(len, by_tenant.values())) == limit

    def expire_objects(self, tenant: int, inos: Sequence[int]) -> int:
        """Remove objects whose time is over -> how many; those that are open stay readable until they are closed."""
        freed = self._remove(tenant, inos)
        self._ports.metrics.counters.expired_objects += freed.objects
        self._tell(tenant, "expired", freed)
        return freed.objects

    def fence_objects(self, tenant: int, inos: Sequence[int]) -> None:
        """Remove blocks of a layout that is not in use any more."""
        freed = self._remove(tenant, inos)
        self._ports.metrics.counters.fenced_objects += len(inos)
        self._tell(tenant, "stored under another layout", freed)

    # --- choice ----------------------------------------------------------------------------------------

    def _choose(self, tenant: int, need: Need, victims_max: int) -> list[Candidate]:
        now_ns = self._ports.clock.wall_ns()
        limit = LOOK_FIRST
        while True:
            rows = self._catalog.retention.oldest(tenant, limit)
            candidates = self._candidates(tenant, rows, complete=len(rows) < limit)
            victims = self._policy.choose(candidates, need, now_ns)[:victims_max]
            freed = Need(sum(one.size_bytes for one in victims), len(victims))
            if need.less(freed).met or len(victims) == victims_max or len(rows) < limit:
                return victims
            if limit >= LOOK_MAX:
                return victims or self._after_flush(tenant, need, victims_max)
            limit *= 4

    def _after_flush(self, tenant: int, need: Need, victims_max: int) -> list[Candidate]:
        """The oldest LOOK_MAX were all open or used since the index was: write that down, then look once more."""
        self._ports.uses.flush()
        rows = self._catalog.retention.oldest(tenant, LOOK_MAX)
        candidates = self._candidates(tenant, rows, complete=len(rows) < LOOK_MAX)
        return self._policy.choose(candidates, need, self._ports.clock.wall_ns())[:victims_max]

    def _candidates(self, tenant: int, rows: Sequence[UseRow], *, complete: bool) -> list[Candidate]:
        """What of `rows` may go, in true order of use: none that was used after the last of the rows, unless these are
        all there are, for others that were not read may be older."""
        horizon = (rows[-1].priority, rows[-1].use_ns) if rows and not complete else None
        candidates = []
        damaged = self._catalog.database.damage.objects
        for row in rows:
            if (tenant, row.ino) in damaged:
                continue
            use_ns = max(row.use_ns, self._ports.uses.pending_ns(row.ino))
            if horizon is not None and (row.priority, use_ns) > horizon:
                continue
            if self._ports.openers(tenant, row.ino):
                self._ports.uses.note_use(tenant, row.ino)
                continue
            candidates.append(Candidate(row.ino, row.size_bytes, use_ns, row.priority))
        return candidates

    # --- effect ----------------------------------------------------------------------------------------

    def _remove(self, tenant: int, inos: Sequence[int]) -> Need:
        ports, freed = self._ports, Need()
        now_ns = ports.clock.wall_ns()
        entries: list[RemovedEntry] = []
        kept: list[int] = []
        with self._catalog.transaction():
            for ino in inos:
                row = self._catalog.inodes.find_sound(tenant, ino)
                if row is None:
                    continue
                openers = ports.openers(tenant, ino)
                entries += self._catalog.retention.remove(tenant, ino, now_ns, openers)
                if openers:
                    kept.append(ino)
                else:
                    freed = freed.plus(Need(row.stored_bytes, 1))
            self._catalog.retention.touch(entries, now_ns)
        for ino in inos:
            ports.uses.forget(ino)
        for ino in kept:
            ports.keep(tenant, ino)
        for entry, _ in entries:
            ports.gone(entry)
        return freed

    def _tell(self, tenant: int, reason: str, freed: Need) -> None:
        now_ns = self._ports.clock.monotonic_ns()
        told = self._told.setdefault((tenant, reason), _Told(since_ns=now_ns - LOG_PERIOD_NS))
        told.freed = told.freed.plus(freed)
        if now_ns - told.since_ns >= LOG_PERIOD_NS and told.freed.objects:
            log.info("tenant %d: %d objects, %d bytes gone: %s", tenant, told.freed.objects, told.freed.bytes, reason)
            self._told[tenant, reason] = _Told(since_ns=now_ns)


def _within(victims: list[Candidate], at_most_bytes: int | None) -> list[Candidate]:
    """The first victims, as many as stay within the bound."""
    if at_most_bytes is None:
        return victims
    kept, left = [], at_most_bytes
    for one in victims:
        left -= one.size_bytes
        if left < 0:
            break
        kept.append(one)
    return kept

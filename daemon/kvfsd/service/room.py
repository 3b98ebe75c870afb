"""Room for what is to be stored: who gives when a tenant is at its quota or the pool is full, how much ahead of need.

at its quota    what was put aside (quarantine), then the tenant's own oldest objects, then QUOTA_EXCEEDED
full pool       what was put aside, then objects of the tenant furthest above its guaranteed minimum, then POOL_FULL
ahead of need   `tend`: down to the low watermark once the high one is passed, in small steps
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from kvfs import limits
from kvfs.commands import ROOT_INO, EntryGone
from kvfs.errors import FormatError, KvfsError, NotFoundError, PoolFullError
from kvfsd.catalog.rows import Entry, TenantRow
from kvfsd.catalog.schema import TenantState
from kvfsd.eviction.evictor import Evictor, EvictorPorts
from kvfsd.eviction.policy import Need, TenantUse, Watermarks, choose_tenant

if TYPE_CHECKING:
    from kvfsd.service.service import Service

log = logging.getLogger(__name__)

STEP_VICTIMS: Final = 16
"""Objects of one step ahead of need: about 1 ms, then others have their turn."""
TEND_DEADLINE_MS: Final = 2_000
"""How long one round of `tend` goes on; the next one takes it up again."""
FULL_POOL_PERCENT: Final = 2
"""Share of the pool that one attempt to make room in it frees, two segments at least."""
FULL_POOL_VICTIMS_MAX: Final = 1024
"""Objects that one such attempt evicts at most: about 80 ms, next to a writer that waits for the collector."""


class Room:
    """Makes room in one open pool."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._catalog = service.catalog
        self.evictor = Evictor(
            EvictorPorts(
                catalog=service.catalog,
                clock=service.pool.ports.clock,
                uses=service.accesses,
                metrics=service.metrics,
                openers=self._openers,
                keep=self._keep,
                gone=self._gone,
            )
        )

    # --- on demand -------------------------------------------------------------------------------------

    def make(self, tenant: int, error: KvfsError, asked: Need) -> bool:
        """`error` refused `asked` more -> whether something was freed, so that it is worth trying again."""
        service = self._service
        if not isinstance(error, PoolFullError):
            return service.quarantine.make_room(tenant) or self._make_in_tenant(tenant, asked)
        service.metrics.counters.pool_full_refusals += 1
        freed = service.quarantine.make_room(None) or self._make_in_pool(tenant)
        if freed:
            service.collector.wake()  # the write that is tried again waits for it
        return freed

    def _make_in_tenant(self, tenant: int, asked: Need) -> bool:
        need = Need(*self._service.admission.shortfall(tenant, asked.bytes, asked.objects))
        return self.evictor.evict(tenant, need, "its quota").objects > 0

    def _make_in_pool(self, asking: int) -> bool:
        segment_bytes = max(one.superblock.segment_bytes for one in self._service.pool.media.values())
        need = Need(bytes=max(self._service.pool_space()[1] * FULL_POOL_PERCENT // 100, 2 * segment_bytes))
        freed, given_up = Need(), set[int]()
        while freed.bytes < need.bytes and freed.objects < FULL_POOL_VICTIMS_MAX:
            giver = choose_tenant(self._uses(given_up), asking)
            if giver is None:
                break
            got = self._take(giver, asking, need.less(freed), "the pool is full")
            if not got.objects:
                given_up.add(giver.tenant)
            freed = freed.plus(got)
        return freed.objects > 0

    def _take(self, giver: TenantUse, asking: int | None, need: Need, reason: str) -> Need:
        """Evict a few of the giver's objects; unless it asks itself, only what is above its minimum."""
        bound_bytes = None if giver.tenant == asking else giver.above_bytes
        return self.evictor.evict(giver.tenant, need, reason, STEP_VICTIMS, bound_bytes)

    def _uses(self, given_up: set[int]) -> list[TenantUse]:
        return [
            TenantUse(row.tenant, self._used(row)[0], self._catalog.retention.policy(row.tenant).min_bytes)
            for row in self._active()
            if row.tenant not in given_up
        ]

    def _active(self) -> list[TenantRow]:
        return [row for row in self._catalog.tenants.all() if row.state == TenantState.ACTIVE]

    def _used(self, row: TenantRow) -> tuple[int, int]:
        admission = self._service.admission
        return (
            row.used_bytes + admission.reserved_bytes(row.tenant),
            row.used_objects + admission.reserved_objects(row.tenant),
        )

    # --- ahead of need ---------------------------------------------------------------------------------

    async def tend(self) -> None:
        """One round: remove what has expired, then bring tenants and pool from above the high to the low watermark."""
        if self._service.failsafe_reason:
            return
        with trio.move_on_after(TEND_DEADLINE_MS / 1000):
            while self.evictor.expire(STEP_VICTIMS):
                await trio.lowlevel.checkpoint()
            for row in self._active():
                if row.quota_bytes or row.quota_objects:
                    await self._tend_tenant(row)
            await self._tend_pool()

    async def _tend_tenant(self, row: TenantRow) -> None:
        policy = self._catalog.retention.policy(row.tenant)
        marks = Watermarks(policy.high_percent, policy.low_percent)
        used_bytes, used_objects = self._used(row)
        need = Need(marks.surplus(used_bytes, row.quota_bytes), marks.surplus(used_objects, row.quota_objects))
        while not need.met:
            got = self.evictor.evict(row.tenant, need, "above its high watermark", STEP_VICTIMS)
            if not got.objects:
                return
            need = need.less(got)
            await trio.lowlevel.checkpoint()

    async def _tend_pool(self) -> None:
        marks = self._service.options.pool_watermarks
        free, total = self._service.pool_space()
        need, given_up = Need(marks.surplus(total - free, total)), set[int]()
        while not need.met:
            giver = choose_tenant(self._uses(given_up))
            if giver is None:
                return
            got = self._take(giver, None, need, "the pool is above its high watermark")
            if not got.objects:
                given_up.add(giver.tenant)
            need = need.less(Need(got.bytes, got.objects))
            await trio.lowlevel.checkpoint()

    # --- mounts ----------------------------------------------------------------------------------------

    def _openers(self, tenant: int, ino: int) -> Sequence[int]:
        return [one.attachment for one in self._service.sessions_of(tenant) if one.has_open(ino)]

    def _keep(self, tenant: int, ino: int) -> None:
        for session in self._service.sessions_of(tenant):
            if session.has_open(ino):
                session.opens.keep(ino)

    def _gone(self, entry: Entry) -> None:
        service = self._service
        if not service.sessions_of(entry.tenant):
            return
        try:
            root_ino = self._catalog.tenants.get(entry.tenant).root_ino
            name = service.pool.ring.names(entry.tenant).open_name(entry.parent, entry.name)
        except (NotFoundError, FormatError) as error:
            log.warning("tenant %d: a name that is gone is not told: %s", entry.tenant, error)
            return
        service.tell(entry.tenant, EntryGone(ROOT_INO if entry.parent == root_ino else entry.parent, name))


def pool_watermarks() -> Watermarks:
    """Those of a pool, unless the service is told others."""
    return Watermarks(limits.POOL_HIGH_PERCENT, limits.POOL_LOW_PERCENT)

"""The tasks behind a service: each does a little, regularly, and none holds the event loop for long.

metadata log    drains the catalog's outbox to the media            every 250 ms, and when commands wait for it
compaction      repairs and compacts the metadata log               LogCompaction.run
collector       gives garbage in segments back                      when woken, every second
reaper          releases blocks of large removed objects in batches every REAP_PERIOD_MS
accesses        writes access times                                 every ACCESSES_PERIOD_MS, or when many are waiting
eviction        makes room ahead of need, removes what expired      every EVICTION_PERIOD_MS
layout guard    removes blocks that another layout fenced           when a config.json was written
checkpoint      copies the catalog's log into its database          when it is over WAL_SOFT_BYTES, or commands wait
quarantine      purges what was kept long enough                    every PURGE_PERIOD_MS
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from kvfs.errors import FailsafeError, KvfsError
from kvfsd.metalog import powerloss

if TYPE_CHECKING:
    from kvfsd.service.service import Service

log = logging.getLogger(__name__)

REAP_PERIOD_MS: Final = 200
ACCESSES_PERIOD_MS: Final = 10_000
EVICTION_PERIOD_MS: Final = 250
CHECKPOINT_PERIOD_MS: Final = 500
PURGE_PERIOD_MS: Final = 60_000
RESTART_FIRST_MS: Final = 100
RESTART_MAX_MS: Final = 10_000
"""Pauses before a task that failed is started again: doubled each time."""

Task = Callable[["Service"], Awaitable[None]]


def start_all(service: Service, nursery: trio.Nursery) -> None:
    """Start every task of the service in its nursery."""
    for task in (
        metadata_log,
        compact_log,
        collect,
        reap,
        write_accesses,
        evict,
        guard_layouts,
        checkpoint,
        purge_quarantine,
        tell_hidden,
    ):
        nursery.start_soon(supervise, service, task)


async def supervise(service: Service, task: Task) -> None:
    """Run a task for ever: what it raises is reported, and it starts again after a pause. Failsafe ends it."""
    name = getattr(task, "__name__", repr(task))
    pause_ms = RESTART_FIRST_MS
    while not service.failsafe_reason:
        try:
            await task(service)
        except FailsafeError as error:
            service.enter_failsafe(str(error))
        except KvfsError as error:
            log.warning("background task %s: %s", name, error)
        except Exception:
            service.metrics.counters.internal_errors += 1
            log.exception("internal error in background task %s", name)
            if service.options.raise_internal_errors:
                raise
        await trio.sleep(pause_ms / 1000)
        pause_ms = min(2 * pause_ms, RESTART_MAX_MS)


async def metadata_log(service: Service) -> None:
    """Keep the sealed metadata log on the media close to the catalog."""
    await service.metadata_log.run()


async def compact_log(service: Service) -> None:
    """Keep the metadata log short; first see what a power loss left of it."""
    if not service.catalog.database.was_clean:
        try:
            await powerloss.repair(service.catalog, service.store, service.metadata_log)
        except KvfsError as error:
            log.warning("what a rebuild needs could not be made good: %s", error)
    await service.metadata_log.compaction.run()


async def collect(service: Service) -> None:
    """Collect garbage in segments."""
    await service.collector.run()


async def reap(service: Service) -> None:
    """Release what removed objects and deleted tenants had, a batch per transaction, with room for others between."""
    while True:
        await trio.sleep(REAP_PERIOD_MS / 1000)
        while _reap_some(service):
            await trio.lowlevel.checkpoint()


def _reap_some(service: Service) -> bool:
    catalog = service.catalog
    with catalog.transaction():
        if catalog.doomed.reap():
            return True
        for tenant in catalog.purge.deleting():
            if catalog.purge.purge_some(tenant):
                return True
            service.store.close_streams(tenant)
    return False


async def write_accesses(service: Service) -> None:
    """Write access times that are pending."""
    while True:
        with trio.move_on_after(ACCESSES_PERIOD_MS / 1000):
            await service.accesses.wait_due()
        await service.accesses.flush_gently()


async def evict(service: Service) -> None:
    """Keep tenants and pool below their high watermarks, and remove what has expired."""
    while True:
        await trio.sleep(EVICTION_PERIOD_MS / 1000)
        await service.room.tend()


async def guard_layouts(service: Service) -> None:
    """Compare layouts that engines write beside their blocks; remove blocks of others."""
    await service.guard.run()


async def checkpoint(service: Service) -> None:
    """Keep the catalog's write-ahead log short. The copying runs in a worker thread, beside commits."""
    while True:
        with trio.move_on_after(CHECKPOINT_PERIOD_MS / 1000):
            await service.wal_bound.wait_wanted()
        service.wal_bound.begin()
        due = service.catalog.database.wal.due_checkpoint()
        try:
            if due is not None:
                await service.pool.ports.offload.run(due)
        finally:
            service.wal_bound.checkpointed()


async def purge_quarantine(service: Service) -> None:
    """Free what was in quarantine long enough."""
    while True:
        while service.quarantine.purge():
            await trio.lowlevel.checkpoint()
        await service.hidden.purge(service.quarantine.expiry_ns())
        await trio.sleep(PURGE_PERIOD_MS / 1000)


async def tell_hidden(service: Service) -> None:
    """Tell mounts the names of objects that were hidden."""
    await service.hidden.run()

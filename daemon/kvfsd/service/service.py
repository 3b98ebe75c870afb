"""The service of one open pool: what sessions share, the tasks in the background, failsafe, orderly start and stop.

    async with Service.open(pool) as service:
        session = service.attach("tenant")

The tasks are children of one nursery (docs/CONCURRENCY.md). One that fails is reported and started again; when the
catalog is damaged the service goes into failsafe instead: reads go on, writes are refused with the reason.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from kvfs import limits
from kvfs.buffers import BufferPool
from kvfs.commands import Event, ObjectChanged
from kvfs.errors import FailsafeError, FormatError, KvfsError, PoolFullError
from kvfsd.catalog.rows import Location, PlacedBlock
from kvfsd.datapath import capacity
from kvfsd.datapath.admission import Admission
from kvfsd.datapath.pipeline import RECORD_BUFFER_BYTES, DataPath
from kvfsd.datapath.placement import MediumWeight
from kvfsd.datapath.recordwriter import RecordWriter
from kvfsd.datapath.scheduler import Scheduler
from kvfsd.eviction.policy import Watermarks
from kvfsd.metalog.logsealing import log_ports
from kvfsd.metalog.metadata_log import MetadataLog
from kvfsd.metrics import Metrics
from kvfsd.pool.pool import Pool
from kvfsd.segments.gc import SegmentCollector
from kvfsd.segments.space import OpenMedium
from kvfsd.segments.store import SegmentStore
from kvfsd.service import background
from kvfsd.service.accesses import AccessTimes
from kvfsd.service.backpressure import Backpressure
from kvfsd.service.damage import follow_damage
from kvfsd.service.hidden import HiddenNames
from kvfsd.service.layout_guard import LayoutGuard
from kvfsd.service.quarantine import Quarantine, QuarantinePolicy
from kvfsd.service.retention import Retention
from kvfsd.service.room import Room, pool_watermarks
from kvfsd.service.session import Session
from kvfsd.service.syncgate import SyncGate
from kvfsd.service.walbound import WalBound

log = logging.getLogger(__name__)

STOP_DEADLINE_S: Final = limits.COMMAND_DEADLINE_MS / 1000
"""How long detaching, the last metadata log and the last sync may take together before the pool is left to recovery."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How a service behaves; the defaults are for production.

    `raise_internal_errors`: a bug of ours raises instead of becoming a status (tests).
    """

    raise_internal_errors: bool = False
    medium_deadline_ms: int = limits.MEDIUM_DEADLINE_MS
    quarantine: QuarantinePolicy = field(default_factory=QuarantinePolicy)
    pool_watermarks: Watermarks = field(default_factory=pool_watermarks)


class Service:
    """One open pool, ready for sessions; see `open`."""

    def __init__(self, pool: Pool, options: ServiceOptions) -> None:
        self.pool = pool
        self.options = options
        self.catalog = pool.catalog
        self.metrics = Metrics()
        self.admission = Admission(pool.catalog.tenants, self.metrics)
        self.accesses = AccessTimes(pool.catalog, pool.ports.clock)
        self.quarantine = Quarantine(pool.catalog, pool.ports.clock, self.metrics, options.quarantine)
        self.failsafe_reason = ""
        """Why writes are refused; empty while they are not."""
        self.store = SegmentStore(
            [OpenMedium(one.medium, one.superblock) for one in pool.media.values()],
            pool.catalog.segments,
            pool.catalog.transaction,
            self._catalog_barrier,
        )
        self.collector = SegmentCollector(
            self.store, pool.catalog.segments, pool.catalog.blocks, pool.catalog.transaction, self._bad_record_found
        )
        self.path = self._data_path()
        self.metadata_log = MetadataLog(pool.catalog, log_ports(self.path, pool.sync))
        self.wal_bound = WalBound(pool.catalog.database.wal.size_bytes)
        self.backpressure = Backpressure(self.metadata_log.backlog, self.wal_bound, self.metrics)
        self._pool_bytes = capacity.pool_bytes([one.superblock for one in pool.media.values()], pool.replicas)
        self.hidden = HiddenNames(self)
        self.retention = Retention(pool.catalog, pool.ports.clock, lambda: self._pool_bytes)
        self.room = Room(self)
        self.guard = LayoutGuard(self)
        self._gate = SyncGate(self._sync_now)
        self._sessions: dict[int, list[Session]] = {}
        self._gauges()
        follow_damage(self)

    def _data_path(self) -> DataPath:
        pool = self.pool
        weights = [
            MediumWeight(index, one.superblock.medium, one.superblock.weight, one.superblock.failure_domain)
            for index, one in pool.media.items()
        ]
        slots = limits.INFLIGHT_DATA_COMMANDS_MAX
        return DataPath(
            pool=pool.uuid,
            catalog=pool.catalog,
            store=self.store,
            ring=pool.ring,
            writer=RecordWriter(self.store, weights, self.metrics, self.options.medium_deadline_ms),
            replicas=pool.replicas,
            admission=self.admission,
            scheduler=Scheduler(slots),
            metrics=self.metrics,
            ports=pool.ports,
            records=BufferPool(RECORD_BUFFER_BYTES, slots),
            plaintexts=BufferPool(limits.BLOCK_BYTES, slots),
            medium_deadline_ms=self.options.medium_deadline_ms,
        )

    def _gauges(self) -> None:
        self.metrics.gauges.update(
            pool_free_bytes=lambda: self.pool_space()[0],
            pool_bytes=lambda: self._pool_bytes,
            free_segment_bytes=self.store.free_bytes,
            data_commands_running=lambda: self.path.scheduler.running,
            data_commands_waiting=lambda: self.path.scheduler.waiting,
            sessions=lambda: sum(len(sessions) for sessions in self._sessions.values()),
            failsafe=lambda: int(bool(self.failsafe_reason)),
            segments_freed=lambda: self.collector.stats.segments_freed,
            records_copied=lambda: self.collector.stats.records_copied,
            catalog_wal_bytes=self.catalog.database.wal.size_bytes,
        )

    # --- life ------------------------------------------------------------------------------------------

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, pool: Pool, options: ServiceOptions | None = None) -> AsyncIterator[Service]:
        """Serve an open pool until the block ends; then detach all sessions, write what is pending, and sync.

        The pool stays open and is its opener's to close.
        """
        service = cls(pool, options or ServiceOptions())
        try:
            await service.metadata_log.drain()  # a tenant's keys are on the media before anything is sealed under them
        except PoolFullError as error:  # nothing can be stored either, until files are removed: that must stay possible
            log.warning("the metadata log is behind: %s", error)
        clean = True
        try:
            async with trio.open_nursery() as nursery:
                background.start_all(service, nursery)
                try:
                    yield service
                finally:
                    nursery.cancel_scope.cancel()
        except BaseException:
            clean = False
            raise
        finally:
            with trio.CancelScope(shield=True):
                await service._stop(clean)

    async def _stop(self, clean: bool) -> None:
        try:
            with trio.fail_after(STOP_DEADLINE_S):
                for session in [session for sessions in self._sessions.values() for session in sessions]:
                    await session.aclose()
                if not self.failsafe_reason:
                    self.accesses.flush()
                    await self.metadata_log.close()
        except (KvfsError, trio.TooSlowError) as error:
            log.exception("the service could not stop in order, the next start recovers: %r", error)
            if clean:
                raise

    def attach(self, tenant_name: str, resume: int | None = None) -> Session:
        """A session for one mount of the tenant. `resume`: the attachment whose commands may come again.

        Raises NotFoundError if there is no such tenant.
        """
        tenant = self.pool.tenants.show(tenant_name)
        attachment = resume or self.catalog.database.next_attachment()
        session = Session(self, self.catalog.tenants.get(tenant.number), attachment, resumed=resume is not None)
        self._sessions.setdefault(session.tenant, []).append(session)
        return session

    def detached(self, session: Session) -> None:
        """The session is closed."""
        sessions = self._sessions.get(session.tenant, [])
        if session in sessions:
            sessions.remove(session)

    def pool_space(self) -> tuple[int, int]:
        """Free bytes and all bytes of the pool, see `kvfsd.datapath.capacity`."""
        used_bytes, used_objects = self.catalog.tenants.total_use()
        reserved_bytes, reserved_objects = self.admission.total_reserved()
        used_bytes, used_objects = used_bytes + reserved_bytes, used_objects + reserved_objects
        return capacity.free_bytes(self._pool_bytes, used_bytes, used_objects), self._pool_bytes

    # --- events ----------------------------------------------------------------------------------------

    def sessions_of(self, tenant: int) -> Sequence[Session]:
        """The tenant's sessions."""
        return self._sessions.get(tenant, ())

    def has_siblings(self, session: Session) -> bool:
        """Whether the tenant has other sessions."""
        return len(self._sessions.get(session.tenant, ())) > 1

    def tell(self, tenant: int, event: Event, but: Session | None = None) -> None:
        """Queue an event for every session of the tenant but one."""
        for session in self._sessions.get(tenant, ()):
            if session is not but:
                session.events.put(event)

    # --- stable storage --------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Everything completed before this call survives a power loss. Calls that overlap share the work."""
        await self._gate.sync()

    async def _sync_now(self) -> None:
        await self.accesses.flush_gently()
        # Media first: a catalog that came through a power loss must not point at records that did not.
        await self.pool.sync()

    async def _catalog_barrier(self) -> None:
        await self.pool.ports.offload.run(self.catalog.database.sync_call())

    # --- trouble ---------------------------------------------------------------------------------------

    def enter_failsafe(self, reason: str) -> None:
        """Refuse writes from here on; reads go on. Only a restart leaves this state."""
        if not self.failsafe_reason:
            self.failsafe_reason = reason
            self.backpressure.wake()
            log.critical("failsafe, writes are refused: %s", reason)

    def refuse_in_failsafe(self) -> None:
        """FailsafeError if writes are refused."""
        if self.failsafe_reason:
            raise FailsafeError(self.failsafe_reason)

    def _bad_record_found(self, placed: PlacedBlock, location: Location, error: FormatError) -> None:
        """The collector met a record that fails its stored checksum."""
        self.metrics.counters.bad_records += 1
        log.warning("tenant %d, object %d: replica at %s: %s", placed.tenant, placed.ino, location, error)
        current = self.catalog.blocks.locate(placed.tenant, placed.ino, placed.row.block)
        if current is None or current.generation != placed.row.generation or len(current.locations) > 1:
            return
        self.hide(placed.tenant, placed.ino, str(error))

    def hide(self, tenant: int, ino: int, reason: str) -> None:
        """Put an object in quarantine and tell every mount of the tenant; its names are told once they are found."""
        if self.quarantine.hide(tenant, ino, reason):
            self.tell(tenant, ObjectChanged(ino))
            self.hidden.note(tenant, ino)

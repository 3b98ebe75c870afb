"""From the catalog's outbox to sealed records on the media: the metadata log and the system records.

One task runs `MetadataLog.run`, another one `compaction.run`; `drain`, `compact`, `write_system` and `close` may be
called by others. A lock keeps those that write apart. Order is all that matters here: entries leave the outbox only
after their record was written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

import trio

from kvfs import limits
from kvfs.errors import KvfsError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.log_rows import LogRecord
from kvfsd.catalog.retention_rows import TenantPolicy
from kvfsd.catalog.rows import Location
from kvfsd.catalog.schema import META_SYSTEM_VERSION, META_SYSTEM_WRITTEN
from kvfsd.metalog.backlog import Backlog
from kvfsd.metalog.compaction import LogCompaction
from kvfsd.ondisk.metalog import (
    BATCH_MAX_BYTES,
    HEADER_BYTES,
    SystemTenant,
    encode_batch,
    encode_system,
)
from kvfsd.ondisk.record import RecordType
from kvfsd.ondisk.segment import SegmentKind

PERIOD_MS: Final = limits.METADATA_LOG_LAG_MS // 4
"""How often the outbox is emptied; the rest of the bound is for the writing itself."""
SYSTEM_TENANT: Final = 0
_NOT_WRITTEN: Final = -1
"""A system version that no catalog has: the system records are written again."""


class LogPayload(NamedTuple):
    """What is to be sealed: a record of `record_type`, object 0, with this block number and generation."""

    record_type: RecordType
    tenant: int
    block: int
    generation: int
    payload: bytes


class SealedLogPayload(NamedTuple):
    """The sealed record, padded, and the key epoch it was sealed under."""

    epoch: int
    record: memoryview


Seal: TypeAlias = Callable[[LogPayload], SealedLogPayload]


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemReplacement:
    """System records to be written in place of the ones before, together with a change of the catalog.

    The records are on stable storage before `commit` changes the catalog, in the transaction that refers to them;
    `committed` is called with no wait after that transaction.
    """

    tenants: Callable[[], Sequence[SystemTenant]]
    seal: Seal
    commit: Callable[[], None]
    committed: Callable[[], None]


class LogStore(Protocol):
    """What the log needs of segments and placement."""

    async def append(self, tenant: int, epoch: int, record: memoryview, kind: SegmentKind) -> tuple[Location, ...]:
        """Write a record to the media of the tenant's log; its segments have rows in the catalog afterwards."""
        ...

    def settle(self, locations: Iterable[Location]) -> None:
        """Those records are in the catalog now, or never will be."""
        ...


@dataclass(frozen=True, slots=True)
class LogPorts:
    """What the log is given: `store`, `seal` (keys), `flush` (media, then catalog)."""

    store: LogStore
    seal: Seal
    flush: Callable[[], Awaitable[None]]


class MetadataLog:
    """The metadata logs of all tenants of one pool."""

    def __init__(self, catalog: Catalog, ports: LogPorts) -> None:
        self._catalog = catalog
        self._rows = catalog.log_rows
        self._database = catalog.database
        self._ports = ports
        self._lock = trio.Lock()
        self.backlog = Backlog(catalog.database.outbox)
        self.compaction = LogCompaction(catalog, self.backlog, ports.flush)

    async def run(self) -> None:
        """Keep the log within `limits.METADATA_LOG_LAG_MS` of the catalog, until cancelled.

        Drains every PERIOD_MS, and at once when commands wait for it. A medium that fails is tried again every
        PERIOD_MS; entries wait in the outbox meanwhile, and past its bound so do commands.
        """
        self.backlog.attended = True
        try:
            while True:
                with trio.move_on_after(PERIOD_MS / 1000):
                    await self.backlog.wait_wanted()
                with contextlib.suppress(KvfsError):  # it is in backlog.last_error
                    await self.drain()
        finally:
            self.backlog.attended = False

    async def drain(self) -> None:
        """Write everything that is queued now; the media are not flushed. Raises what store and sealer raise."""
        async with self._lock:
            began = self.backlog.begin()
            try:
                await self._write_system_if_changed()
                await self._write_waiting()
            except KvfsError as error:
                self.backlog.failed(error)
                raise
            self.backlog.caught_up(began)

    async def _write_waiting(self) -> None:
        last = self._database.last_sequence
        failures: list[KvfsError] = []
        for tenant in self._rows.waiting_tenants():
            try:
                while await self._write_batch(tenant, last):
                    self.backlog.progressed()
            except KvfsError as error:  # the other tenants' logs go on
                failures.append(error)
        if failures:
            raise failures[0]

    async def compact(self, tenant: int) -> None:
        """Write a whole snapshot of the tenant now, and drop the log before it: that one is damaged itself."""
        self.compaction.begin(tenant, lenient=True)
        while self.compaction.is_under_way(tenant):
            await self.compaction.step(tenant)
            await self.drain()

    async def close(self) -> None:
        """At clean shutdown: nothing is left in the outbox, and all of it is on stable storage."""
        await self.drain()
        await self._ports.flush()

    # --- batches ---------------------------------------------------------------------------------------

    async def _write_batch(self, tenant: int, last: int) -> bool:
        if not self._rows.is_active(tenant):
            with self._catalog.transaction():
                self._rows.discard(tenant)
            self.compaction.forget(tenant)
            return False
        queued = self._rows.pending(tenant, BATCH_MAX_BYTES - HEADER_BYTES)
        if not queued.entries:
            return False
        generation = self._database.next_generation()
        payload = encode_batch(self._rows.state(tenant).head_generation, queued.entries)
        sealing = LogPayload(RecordType.METADATA_LOG, tenant, 0, generation, payload)
        locations = await self._append(sealing, self._ports.seal, SegmentKind.METADATA_LOG)
        try:
            if not self._rows.is_active(tenant):
                return False  # deleted meanwhile: the record is garbage in its segment
            with self._catalog.transaction():
                self._rows.append(LogRecord(tenant, generation, len(payload), locations), queued)
        finally:
            self._ports.store.settle(locations)
        self.compaction.note_batch(tenant, queued.through, generation, len(payload))
        return queued.through < last

    async def _append(self, sealing: LogPayload, seal: Seal, kind: SegmentKind) -> tuple[Location, ...]:
        sealed = seal(sealing)
        return await self._ports.store.append(sealing.tenant, sealed.epoch, sealed.record, kind)

    # --- system records --------------------------------------------------------------------------------

    async def write_system(self) -> None:
        """Put all tenants, quotas and wrapped keys on the media, flushed, in place of the records before.

        For a new tenant or key this has to be done before anything is sealed under it.
        """
        async with self._lock:
            await self._write_system()

    async def replace_system(self, replacement: SystemReplacement) -> None:
        """Write these system records instead, as `write_system` does, and change the catalog with them.

        Nothing else is written to the log meanwhile. If it is cut off, the next drain writes the system records of the
        catalog as it then is, so that a newer one that does not count never stays the newest.
        """
        async with self._lock:
            with self._catalog.transaction():
                self._database.set_meta(META_SYSTEM_WRITTEN, _NOT_WRITTEN)
            await self._ports.flush()
            await self._write_system(replacement)

    async def _write_system_if_changed(self) -> None:
        if self._database.meta(META_SYSTEM_VERSION) != self._database.meta(META_SYSTEM_WRITTEN):
            await self._write_system()

    async def _write_system(self, replacement: SystemReplacement | None = None) -> None:
        asked = replacement or SystemReplacement(
            tenants=lambda: system_tenants(self._catalog),
            seal=self._ports.seal,
            commit=_nothing,
            committed=_nothing,
        )
        records: list[LogRecord] = []
        try:
            await self._append_system(asked, records)
        finally:
            for record in records:
                self._ports.store.settle(record.locations)

    async def _append_system(self, asked: SystemReplacement, records: list[LogRecord]) -> None:
        version = self._database.meta(META_SYSTEM_VERSION)
        snapshot = self._database.next_generation()
        for part, payload in enumerate(encode_system(snapshot, asked.tenants())):
            generation = snapshot if part == 0 else self._database.next_generation()
            sealing = LogPayload(RecordType.SYSTEM, SYSTEM_TENANT, part, generation, payload)
            locations = await self._append(sealing, asked.seal, SegmentKind.SYSTEM)
            records.append(LogRecord(SYSTEM_TENANT, generation, len(payload), locations))
        await self._ports.flush()
        with self._catalog.transaction():
            while self._rows.drop_before(SYSTEM_TENANT, snapshot):
                pass
            for record in records:
                self._rows.add_record(record)
            as_read = self._database.meta(META_SYSTEM_VERSION) == version
            asked.commit()
            self._database.set_meta(
                META_SYSTEM_WRITTEN, self._database.meta(META_SYSTEM_VERSION) if as_read else _NOT_WRITTEN
            )
        asked.committed()


def _nothing() -> None:
    """The catalog does not change with the system records."""


def system_tenants(catalog: Catalog) -> list[SystemTenant]:
    """What system records say: every tenant, and tenant 0, which has the pool's own key slots and nothing else."""
    own_slots = [(slot.epoch, slot.wrapped) for slot in catalog.tenants.slots(SYSTEM_TENANT)]
    tenants = [SystemTenant(SYSTEM_TENANT, b"", 0, 0, 0, 0, 0, own_slots)]
    for row in catalog.tenants.all():
        slots = [(slot.epoch, slot.wrapped) for slot in catalog.tenants.slots(row.tenant)]
        policy = catalog.retention.policy(row.tenant)
        tenants.append(
            SystemTenant(
                tenant=row.tenant,
                sealed_name=row.sealed_name,
                quota_bytes=row.quota_bytes,
                quota_objects=row.quota_objects,
                root_ino=row.root_ino,
                state=row.state,
                created_ns=row.created_ns,
                slots=slots,
                policy=[] if policy == TenantPolicy() else list(policy),
                access=[(one.kind, one.value) for one in catalog.tenants.access(row.tenant)],
            )
        )
    return tenants

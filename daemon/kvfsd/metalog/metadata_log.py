"""From the catalog's outbox to sealed records on the media: the metadata log, its compaction, the system records.

One task runs `MetadataLog.run`; `drain`, `write_system` and `close` may be called by others, a lock keeps them apart.
Order is all that matters here: entries leave the outbox only after their record was written; old records are dropped
only after a newer snapshot is complete and on stable storage.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

import trio

from kvfs import limits
from kvfs.errors import KvfsError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.log_rows import LogRecord, SnapshotCursor
from kvfsd.catalog.rows import Location
from kvfsd.catalog.schema import META_SYSTEM_VERSION, META_SYSTEM_WRITTEN, TenantState
from kvfsd.ondisk.metalog import (
    BATCH_MAX_BYTES,
    HEADER_BYTES,
    SnapshotBegin,
    SnapshotEnd,
    SystemTenant,
    encode_batch,
    encode_system,
)
from kvfsd.ondisk.record import RecordType
from kvfsd.ondisk.segment import SegmentKind

PERIOD_MS: Final = limits.METADATA_LOG_LAG_MS // 4
"""How often the outbox is emptied; the rest of the bound is for the writing itself."""
COMPACTING_PERIOD_MS: Final = 20
"""Instead of PERIOD_MS while a snapshot is written: one step of it, about 1 ms, each time."""
COMPACT_FACTOR: Final = 4
"""A log is compacted when it is this many times larger than its last snapshot ..."""
COMPACT_MIN_BYTES: Final = 16 * limits.MIB
"""... and larger than this."""
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
    """The part of `SegmentStore` that the log needs."""

    async def append(
        self, tenant: int, epoch: int, media: Sequence[int], record: memoryview, kind: SegmentKind
    ) -> tuple[Location, ...]:
        """Write a record to each of `media`; its segments have rows in the catalog afterwards."""
        ...

    def settle(self, locations: Iterable[Location]) -> None:
        """Those records are in the catalog now, or never will be."""
        ...


@dataclass(frozen=True, slots=True)
class LogPorts:
    """What the log is given: `seal` (keys), `place` (media for a tenant's log), `flush` (media, then catalog)."""

    store: LogStore
    seal: Seal
    place: Callable[[int], Sequence[int]]
    flush: Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _Snapshot:
    """A snapshot being written: where reading is, and which entries begin and end it."""

    name: int
    begin_sequence: int
    cursor: SnapshotCursor | None
    end_sequence: int = 0
    begin_generation: int = 0
    written_bytes: int = 0


class MetadataLog:
    """The metadata logs of all tenants of one pool."""

    def __init__(self, catalog: Catalog, ports: LogPorts) -> None:
        self._catalog = catalog
        self._rows = catalog.log_rows
        self._database = catalog.database
        self._ports = ports
        self._lock = trio.Lock()
        self._snapshots: dict[int, _Snapshot] = {}
        self.last_error: KvfsError | None = None
        """Why the log is behind, None while it is not."""

    async def run(self) -> None:
        """Keep the log within `limits.METADATA_LOG_LAG_MS` of the catalog, until cancelled.

        A medium that fails is tried again every PERIOD_MS; entries wait in the outbox meanwhile.
        """
        while True:
            await trio.sleep((COMPACTING_PERIOD_MS if self._snapshots else PERIOD_MS) / 1000)
            try:
                await self.drain()
                await self.compact_some()
            except KvfsError as error:
                self.last_error = error
            else:
                self.last_error = None

    async def drain(self) -> None:
        """Write everything that is queued now; the media are not flushed. Raises what store and sealer raise."""
        async with self._lock:
            await self._write_system_if_changed()
            last = self._database.last_sequence
            failures: list[KvfsError] = []
            for tenant in self._rows.waiting_tenants():
                try:
                    while await self._write_batch(tenant, last):
                        pass
                except KvfsError as error:  # the other tenants' logs go on
                    failures.append(error)
            if failures:
                raise failures[0]

    async def close(self) -> None:
        """At clean shutdown: nothing is left in the outbox, and all of it is on stable storage."""
        await self.drain()
        await self._ports.flush()

    # --- batches ---------------------------------------------------------------------------------------

    async def _write_batch(self, tenant: int, last: int) -> bool:
        if not self._rows.is_active(tenant):
            with self._catalog.transaction():
                self._rows.discard(tenant)
            self._snapshots.pop(tenant, None)
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
        self._note_snapshot(tenant, queued.through, generation, len(payload))
        return queued.through < last

    async def _append(self, sealing: LogPayload, seal: Seal, kind: SegmentKind) -> tuple[Location, ...]:
        sealed = seal(sealing)
        media = self._ports.place(sealing.tenant)
        return await self._ports.store.append(sealing.tenant, sealed.epoch, media, sealed.record, kind)

    # --- compaction ------------------------------------------------------------------------------------

    def needs_compaction(self, tenant: int) -> bool:
        """Whether the tenant's log has outgrown what a snapshot would take."""
        state = self._rows.state(tenant)
        return state.log_bytes > max(COMPACT_MIN_BYTES, COMPACT_FACTOR * state.snapshot_bytes)

    async def compact_some(self) -> None:
        """One step for every tenant whose log is too large: read some rows of the snapshot, or finish it."""
        for tenant in [row.tenant for row in self._catalog.tenants.all() if row.state == TenantState.ACTIVE]:
            if tenant in self._snapshots or self.needs_compaction(tenant):
                await self._compact_step(tenant)

    async def compact(self, tenant: int) -> None:
        """Write a whole snapshot of the tenant now, and drop the log before it."""
        if tenant not in self._snapshots:
            self._begin_snapshot(tenant)
        while tenant in self._snapshots:
            await self._compact_step(tenant)
            await self.drain()

    async def _compact_step(self, tenant: int) -> None:
        snapshot = self._snapshots.get(tenant) or self._begin_snapshot(tenant)
        if snapshot.cursor is not None:
            with self._catalog.transaction():
                snapshot.cursor = self._rows.snapshot_some(tenant, snapshot.cursor)
                if snapshot.cursor is None:
                    self._database.log(tenant, SnapshotEnd(snapshot.name))
            if snapshot.cursor is None:
                snapshot.end_sequence = self._database.last_sequence
        elif snapshot.end_sequence == -1:  # written through: _note_snapshot has seen its end
            await self._finish_snapshot(tenant, snapshot)

    def _begin_snapshot(self, tenant: int) -> _Snapshot:
        name = self._database.next_generation()
        with self._catalog.transaction():
            self._database.log(tenant, SnapshotBegin(name))
        snapshot = _Snapshot(name, self._database.last_sequence, SnapshotCursor())
        self._snapshots[tenant] = snapshot
        return snapshot

    def _note_snapshot(self, tenant: int, through: int, generation: int, payload_bytes: int) -> None:
        snapshot = self._snapshots.get(tenant)
        if snapshot is None or through < snapshot.begin_sequence:
            return
        snapshot.begin_generation = snapshot.begin_generation or generation
        snapshot.written_bytes += payload_bytes
        if 0 < snapshot.end_sequence <= through:
            snapshot.end_sequence = -1

    async def _finish_snapshot(self, tenant: int, snapshot: _Snapshot) -> None:
        await self._ports.flush()
        with self._catalog.transaction():
            state = self._rows.state(tenant)
            self._rows.set_state(tenant, state._replace(snapshot_bytes=snapshot.written_bytes))
        more = True
        while more:
            with self._catalog.transaction():
                more = self._rows.drop_before(tenant, snapshot.begin_generation)
            await trio.lowlevel.checkpoint()
        self._snapshots.pop(tenant, None)

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
            )
        )
    return tenants

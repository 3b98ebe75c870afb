"""A catalog from media alone: everything up to the metadata log's lag, nothing that was unlinked or deleted before it.

    segment headers, record headers -> newest system records that open -> each tenant's log from its last complete
    snapshot -> blocks matched with the records that were found -> recount, check

The log of a tenant is a chain: each record names the one before it. Records off the chain that ends in the newest one
are of a past that a power loss undid, or were written again, and do not count.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from kvfs.errors import FormatError, KvfsError, NotFoundError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.check import Problem, check
from kvfsd.catalog.log_rows import LogRecord, LogState
from kvfsd.catalog.reconcile import Reconcile
from kvfsd.catalog.replay import FoundRecord, Replay
from kvfsd.catalog.retention_rows import TenantPolicy
from kvfsd.catalog.rows import AccessRow, KeySlotRow, Location, SegmentRow, TenantRow
from kvfsd.catalog.rowsealing import seal_rows
from kvfsd.catalog.schema import META_NEXT_TENANT, TenantState
from kvfsd.ondisk.metalog import (
    Batch,
    Change,
    SnapshotBegin,
    SnapshotEnd,
    SystemPart,
    SystemTenant,
    decode_batch,
    decode_system,
)
from kvfsd.ondisk.record import RecordIdentity, RecordType

SYSTEM_TENANT = 0
COMMIT_EVERY = 256
"""Log records replayed in one transaction of the new catalog."""


class FoundSegment(NamedTuple):
    """A segment with a valid header, as a closed segment's row, and the records in it whose headers are valid."""

    row: SegmentRow
    records: Iterable[FoundRecord]


class RecordSource(Protocol):
    """The media of the pool, opened for reading."""

    pool: bytes

    def segments(self) -> AsyncIterator[FoundSegment]:
        """Every segment in use; `row.live_bytes` is 0 and `row.write_offset` the end of its last record."""
        ...

    def rows_key(self, tenant: int) -> bytes:
        """The key of the checks of a tenant's catalog rows, once `unlock` has given the ring its keys."""
        ...

    async def open(self, identity: RecordIdentity, location: Location) -> bytes:
        """Plaintext of one log or system record; BadRecordError, MediumUnavailableError, WrongKeyError.

        System records open before `unlock` has given the ring any key, logs only after.
        """
        ...


@dataclass(slots=True)
class RebuildReport:
    """What was found, and what is missing."""

    segments: int = 0
    records: int = 0
    tenants: int = 0
    log_records: int = 0
    log_gaps: list[str] = field(default_factory=list)
    """Places where a log record is missing or does not open; what it said is lost."""
    objects: int = 0
    objects_lost: int = 0
    """Objects left out because a block of theirs was not found, or their log is incomplete."""
    blocks: int = 0
    names_dropped: int = 0
    problems: list[Problem] = field(default_factory=list)
    """What `check` says of the new catalog; empty."""


class _Chain(NamedTuple):
    generations: list[int]
    """Oldest first."""
    snapshot: int
    """The SnapshotBegin to start at, 0: from the first change on."""


async def rebuild(catalog: Catalog, source: RecordSource, unlock: Callable[[list[KeySlotRow]], None]) -> RebuildReport:
    """Fill the empty `catalog` from `source`; `unlock` gives the tenants' key slots to the key ring.

    Raises NotFoundError if no system record opens (wrong key, or not a pool's media), and what the media raise
    while they are scanned. Damaged records cost what they hold and are reported.
    """
    work = _Rebuild(catalog, source)
    catalog.database.logging = False
    try:
        await work.scan()
        await work.restore_tenants(unlock)
        for tenant in catalog.tenants.all():
            await work.replay(tenant)
        work.finish()
    finally:
        catalog.database.logging = True
    work.report.problems = check(catalog.database)
    return work.report


class _Rebuild:
    """The steps of one rebuild, in order."""

    def __init__(self, catalog: Catalog, source: RecordSource) -> None:
        self.report = RebuildReport()
        self._catalog = catalog
        self._source = source
        self._replay = Replay(catalog.database)

    async def scan(self) -> None:
        """Rows for all segments, and a table of all records."""
        async for found in self._source.segments():
            with self._catalog.transaction():
                self._catalog.segments.allocate(found.row)
                self.report.records += self._replay.note_found(found.records)
            self.report.segments += 1

    # --- system records --------------------------------------------------------------------------------

    async def restore_tenants(self, unlock: Callable[[list[KeySlotRow]], None]) -> None:
        """Tenants and key slots of the newest complete system snapshot."""
        tenants = await self._newest_system()
        slots = [KeySlotRow(tenant.tenant, *slot) for tenant in tenants for slot in tenant.slots]
        unlock(slots)
        self._catalog.database.macs.unlock(self._source.rows_key)
        highest = max((tenant.tenant for tenant in tenants), default=0)
        with self._catalog.transaction():
            self._catalog.tenants.put_slots(slots)
            for tenant in tenants:
                if tenant.tenant != SYSTEM_TENANT and tenant.state == TenantState.ACTIVE:
                    self._catalog.tenants.restore(_tenant_row(tenant))
                    if tenant.policy:
                        self._catalog.retention.set_policy(tenant.tenant, TenantPolicy.of(tenant.policy))
                    self._catalog.tenants.add_access(tenant.tenant, [AccessRow(*one) for one in tenant.access])
                    self.report.tenants += 1
            self._catalog.database.set_meta(META_NEXT_TENANT, highest + 1)

    async def _newest_system(self) -> list[SystemTenant]:
        parts: dict[int, dict[int, SystemPart]] = {}
        for generation in self._replay.generations(RecordType.SYSTEM, SYSTEM_TENANT):
            part = await self._system_part(generation)
            if part is None:
                continue
            have = parts.setdefault(part.snapshot, {})
            have[part.part] = part
            if len(have) == part.parts:
                return [tenant for index in sorted(have) for tenant in have[index].tenants]
        why = f" ({self.report.log_gaps[0]})" if self.report.log_gaps else ""
        raise NotFoundError(f"no system record of this pool opens: wrong key, or none was written{why}")

    async def _system_part(self, generation: int) -> SystemPart | None:
        try:
            payload = await self._open(RecordType.SYSTEM, SYSTEM_TENANT, generation)
            return decode_system(payload, f"system record {generation}")
        except (NotFoundError, FormatError) as error:
            self.report.log_gaps.append(str(error))
            return None

    # --- logs ------------------------------------------------------------------------------------------

    async def replay(self, tenant: TenantRow) -> None:
        """The tenant's log, from its newest complete snapshot on."""
        chain = await self._chain(tenant.tenant)
        pending: list[Change] = []
        started = chain.snapshot == 0
        for start in range(0, len(chain.generations), COMMIT_EVERY):
            batches = [await self._batch(tenant.tenant, one) for one in chain.generations[start : start + COMMIT_EVERY]]
            with self._catalog.transaction():
                for batch in batches:
                    for entry in batch.entries if batch else ():
                        pending += entry.changes
                        started = started or SnapshotBegin(chain.snapshot) in entry.changes
                        if entry.last:
                            self._apply(tenant.tenant, pending if started else ())
                            pending = []
        with self._catalog.transaction():
            self._replay.put_root(tenant)
            self._keep_log(tenant.tenant, chain.generations)

    def _apply(self, tenant: int, changes: Iterable[Change]) -> None:
        for change in changes:
            self._replay.apply(tenant, change)

    async def _chain(self, tenant: int) -> _Chain:
        known = self._replay.generations(RecordType.METADATA_LOG, tenant)
        chain: list[int] = []
        ended: set[int] = set()
        if not known:  # a tenant's first record makes its root directory
            self.report.log_gaps.append(f"tenant {tenant}: no log record was found, all of its objects are lost")
        wanted = known[0] if known else 0
        while wanted:
            batch = await self._batch(tenant, wanted)
            if batch is None:
                self.report.log_gaps.append(f"tenant {tenant}: log record {wanted} is missing or damaged")
                wanted = next((one for one in known if one < wanted), 0)
                continue
            chain.append(wanted)
            marks = [change for entry in batch.entries for change in entry.changes]
            ended |= {change.snapshot for change in marks if isinstance(change, SnapshotEnd)}
            begun = [one.snapshot for one in marks if isinstance(one, SnapshotBegin) and one.snapshot in ended]
            if begun:
                return _Chain(chain[::-1], begun[-1])
            wanted = batch.previous
        return _Chain(chain[::-1], 0)

    async def _batch(self, tenant: int, generation: int) -> Batch | None:
        try:
            payload = await self._open(RecordType.METADATA_LOG, tenant, generation)
            return decode_batch(payload, f"tenant {tenant}: log record {generation}")
        except (NotFoundError, FormatError):
            return None

    async def _open(self, record_type: RecordType, tenant: int, generation: int) -> bytes:
        """The record from any replica; NotFoundError if none opens."""
        for location, block, length, epoch in self._replay.found(record_type, tenant, generation):
            identity = RecordIdentity(
                self._source.pool,
                record_type,
                tenant,
                epoch,
                object=0,
                block=block,
                generation=generation,
                length=length,
            )
            try:
                return await self._source.open(identity, location)
            except KvfsError as error:  # WrongKeyError too: an older system snapshot has not the keys of later epochs
                self.report.log_gaps.append(str(error))
        raise NotFoundError(f"tenant {tenant}: record {generation} is not there or does not open")

    def _keep_log(self, tenant: int, generations: list[int]) -> None:
        """The chain stays the tenant's log: new records go on from it, until the next snapshot replaces it."""
        log_bytes = 0
        for generation in generations:
            found = self._replay.found(RecordType.METADATA_LOG, tenant, generation)
            places = {location.medium: location for location, *_ in found}
            record = LogRecord(tenant, generation, found[0][2], tuple(places.values()))
            self._catalog.log_rows.add_record(record)
            log_bytes += record.length
        head = generations[-1] if generations else 0
        self._catalog.log_rows.set_state(tenant, LogState(head, log_bytes, 0))
        self.report.log_records += len(generations)

    # --- order -----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Attach blocks, put the tree in order, and go on with numbers that were never used."""
        with self._catalog.transaction():
            self._replay.attach_blocks()
            counts = Reconcile(self._catalog.database).put_in_order()
            seal_rows(self._catalog.database)
        self.report.objects, self.report.objects_lost, self.report.blocks, self.report.names_dropped = counts
        self._catalog.database.advance_counters(*self._replay.highest())


def _tenant_row(tenant: SystemTenant) -> TenantRow:
    return TenantRow(
        tenant=tenant.tenant,
        sealed_name=tenant.sealed_name,
        quota_bytes=tenant.quota_bytes,
        quota_objects=tenant.quota_objects,
        used_bytes=0,
        used_objects=0,
        root_ino=tenant.root_ino,
        state=tenant.state,
        created_ns=tenant.created_ns,
    )

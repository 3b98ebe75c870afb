"""After a power loss: what a rebuild needs on the media and the catalog believes to be there may not have arrived.

Segment headers and records of the metadata log are written and not flushed; whatever syncs the pool flushes them, too.
So after an unclean end every segment's header and every live record of the log is read once. A header that is missing
is written again. Where a record of the log is missing, a snapshot is written in place of the whole log; a log that is
sound gets one more record: records that arrived although the catalog lost them are off its chain from then on.
"""

from __future__ import annotations

import logging

from kvfs.errors import FormatError, KvfsError, MediumUnavailableError, NotFoundError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.log_rows import LogRecord
from kvfsd.catalog.rows import Location
from kvfsd.catalog.schema import TenantState
from kvfsd.metalog.metadata_log import MetadataLog
from kvfsd.ondisk.metalog import SnapshotBegin
from kvfsd.ondisk.record import RecordHeader, RecordType, check_body, record_bytes
from kvfsd.ondisk.segment import HEADER_BYTES, SegmentHeader
from kvfsd.segments.space import MediumSpace, SegmentUse
from kvfsd.segments.store import SegmentStore

log = logging.getLogger(__name__)


async def repair(catalog: Catalog, store: SegmentStore, metadata_log: MetadataLog) -> int:
    """Make good what is missing -> how much of it there was. Runs beside everything else.

    Raises what the media raise while something is written; what cannot be read now counts as there.
    """
    return await repair_headers(store) + await repair_logs(catalog, store, metadata_log)


async def repair_headers(store: SegmentStore) -> int:
    """Write the headers of segments in use that are not there -> how many. Serial media take no second header."""
    repaired = 0
    for space in store.spaces.values():
        for segment in [] if space.serial else list(space.in_use.values()):
            try:
                with store.pin(Location(space.index, segment.number, 1)):
                    repaired += await _repair_header(space, segment)
            except (NotFoundError, MediumUnavailableError):
                continue  # it is free by now, or cannot be read
    return repaired


async def _repair_header(space: MediumSpace, segment: SegmentUse) -> bool:
    offset = space.superblock.segment_offset(segment.number)
    where = f"medium {space.medium.name}: segment {segment.number}"
    stored = bytearray(HEADER_BYTES)
    await space.medium.read_into(offset, memoryview(stored))
    wanted = space.header_of(segment)
    try:
        if SegmentHeader.parse(stored, where) == wanted:
            return False
        reason = "it is another segment's"
    except FormatError as error:
        reason = str(error)
    log.warning("%s: header written again: %s", where, reason)
    await space.medium.write(offset, memoryview(wanted.pack()))
    return True


async def repair_logs(catalog: Catalog, store: SegmentStore, metadata_log: MetadataLog) -> int:
    """Have every tenant's log say on the media what the catalog says -> how many had to be written anew.

    Raises what the media raise while a log is written anew; a record that cannot be read now counts as there.
    """
    repaired = 0
    for tenant in [row.tenant for row in catalog.tenants.all() if row.state == TenantState.ACTIVE]:
        reason = await _damage(catalog, store, tenant)
        if reason:
            log.warning("tenant %d: the metadata log is written anew: %s", tenant, reason)
            await metadata_log.compact(tenant)
            repaired += 1
        elif catalog.log_rows.is_active(tenant):
            with catalog.transaction():
                catalog.database.log(tenant, SnapshotBegin(catalog.database.next_generation()))
    await metadata_log.drain()
    return repaired


async def _damage(catalog: Catalog, store: SegmentStore, tenant: int) -> str:
    """Why the tenant's log would not rebuild its catalog, empty if it would."""
    generation = 0
    while records := catalog.log_rows.records_after(tenant, generation):
        for record in records:
            faults = [fault for at in record.locations if (fault := await _fault(store, record, at))]
            if len(faults) == len(record.locations):
                return faults[0]
        generation = records[-1].generation
    return ""


async def _fault(store: SegmentStore, record: LogRecord, location: Location) -> str:
    """What is wrong with one replica of a log record, empty if nothing."""
    where = f"log record {record.generation} at {location.medium}:{location.segment}:{location.offset}"
    stored = memoryview(bytearray(record_bytes(record.length)))
    try:
        with store.pin(location):
            await store.read_into(location, stored)
        header = RecordHeader.parse(stored, where)
        check_body(header, stored[: header.stored_bytes], where)
    except MediumUnavailableError:
        return ""
    except KvfsError as error:
        return str(error)
    have = header.identity
    if (have.record_type, have.tenant, have.generation) == (RecordType.METADATA_LOG, record.tenant, record.generation):
        return ""
    return f"{where}: another record is there"

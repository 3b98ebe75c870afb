"""The data paths: straight functions of stages, from a command to sealed records on media and back.

`write_block` and `read_block` are the whole story; all that they hold (quota, slot, buffers, pins) is given back where
it was taken, whatever raises. Buffers come from pools and are bounded by the scheduler's slots: a path in a slot has
one record buffer, a read also the plaintext that it hands on. Only `schedule` and what talks to media waits.
"""

from __future__ import annotations

import logging
import mmap
from dataclasses import dataclass
from typing import Final

import trio

from kvfs import limits
from kvfs.buffers import BufferPool
from kvfs.errors import BadRecordError, InternalError, InvalidArgumentError, MediumUnavailableError, NotFoundError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.rows import BlockRow
from kvfsd.crypto import sealing
from kvfsd.crypto.keys import KeyRing
from kvfsd.datapath import placement
from kvfsd.datapath.admission import Admission
from kvfsd.datapath.backoff import Backoff
from kvfsd.datapath.recordwriter import Copies, RecordWriter
from kvfsd.datapath.scheduler import Scheduler, Slot
from kvfsd.datapath.stages import (
    Admitted,
    AdmittedRead,
    Attempt,
    Committed,
    Digested,
    Fetched,
    Located,
    Opened,
    Placed,
    ReadRequest,
    Scheduled,
    ScheduledRead,
    Sealed,
    Target,
    Verified,
    WriteRequest,
    Written,
    async_stage,
    stage,
)
from kvfsd.metrics import Metrics
from kvfsd.ondisk.record import SALT_BYTES, RecordIdentity, RecordType, record_bytes
from kvfsd.ondisk.segment import SegmentKind
from kvfsd.ports import Ports
from kvfsd.segments.store import Append, SegmentStore
from kvfsd.service.validation import check_block, check_ino

log = logging.getLogger(__name__)

RECORD_BUFFER_BYTES: Final = record_bytes(limits.BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class DataPath:
    """What the stages work with: one per open pool."""

    pool: bytes
    catalog: Catalog
    store: SegmentStore
    ring: KeyRing
    writer: RecordWriter
    replicas: int
    admission: Admission
    scheduler: Scheduler
    metrics: Metrics
    ports: Ports
    records: BufferPool
    plaintexts: BufferPool
    medium_deadline_ms: int = limits.MEDIUM_DEADLINE_MS


# --- write path ----------------------------------------------------------------------------------------


async def write_block(path: DataPath, request: WriteRequest) -> Committed:
    """Seal, place and stage one block: WriteBlock. The block is in the file only after its Commit.

    Raises QuotaExceededError, PoolFullError, MediumUnavailableError, InvalidArgumentError, FileTooLargeError.
    """
    admitted = admit(path, request)
    slot: Slot | None = None
    record: memoryview | None = None
    grown_bytes = 0
    try:
        scheduled = await schedule(path, admitted)
        slot = scheduled.slot
        sealed = seal(path, digest(path, scheduled))
        record = sealed.record
        committed = commit(path, await write(path, place(path, sealed)))
        grown_bytes = committed.grown_bytes
        return committed
    finally:
        if record is not None:
            _give_back(path.records, record)
        if slot is not None:
            slot.release()
        path.admission.settle_bytes(request.reservation, len(request.payload), grown_bytes)


@stage("write", "admit", WriteRequest)
def admit(path: DataPath, request: WriteRequest) -> Admitted:
    """The payload is 1 .. BLOCK_BYTES bytes of a possible block, and fits into the tenant's quota with all others."""
    length = len(request.payload)
    check_ino(request.target.ino)
    check_block(request.target.block)
    if not 0 < length <= limits.BLOCK_BYTES:
        raise InvalidArgumentError(f"{request.target}: payload of {length} bytes is not 1 .. {limits.BLOCK_BYTES}")
    path.admission.reserve_bytes(request.reservation, length)
    return Admitted(request.target, request.payload)


@async_stage("write", "schedule", Admitted)
async def schedule(path: DataPath, admitted: Admitted) -> Scheduled:
    """Wait for the command's turn among all tenants."""
    return Scheduled(admitted, await path.scheduler.acquire(admitted.target.tenant))


@stage("write", "digest", Scheduled)
def digest(path: DataPath, scheduled: Scheduled) -> Digested:
    """Take the inner checksum of the payload as the host handed it over."""
    return Digested(scheduled.admitted.target, sealing.Payload.of(scheduled.admitted.payload))


@stage("write", "seal", Digested)
def seal(path: DataPath, digested: Digested) -> Sealed:
    """Encrypt into a record buffer, under a fresh generation and salt."""
    target, ring = digested.target, path.ring
    epoch, generation = ring.current_epoch(target.tenant), path.catalog.database.next_generation()
    identity = _identity(path, target, epoch, generation, len(digested.payload.data))
    salt = path.ports.randomness.token(SALT_BYTES)
    key = ring.record_key(target.tenant, epoch, target.ino, generation, salt)
    buffer = path.records.acquire()
    try:
        record = sealing.seal_payload(key, identity, salt, digested.payload, memoryview(buffer))
    except BaseException:
        path.records.release(buffer)
        raise
    return Sealed(target, identity, memoryview(buffer)[: record.length], record.tag)


@stage("write", "place", Sealed)
def place(path: DataPath, sealed: Sealed) -> Placed:
    """Choose media by rendezvous of object and block: a rewrite goes where the block was, if there is room."""
    key = placement.block_key(path.pool, sealed.target.ino, sealed.target.block)
    copies = Copies(key, path.replicas, path.replicas)
    media = path.writer.choose(copies)
    if not media:
        raise MediumUnavailableError(f"{sealed.target}: no medium of the pool takes records")
    return Placed(sealed, copies, media)


@async_stage("write", "write", Placed)
async def write(path: DataPath, placed: Placed) -> Written:
    """Append the record to a segment of each medium, or of another one if it fails; asked again until the deadline."""
    sealed, identity = placed.sealed, placed.sealed.identity
    record = Append(identity.tenant, identity.epoch, sealed.record, SegmentKind.DATA)
    return Written(sealed, await path.writer.write_to(placed.media, record, placed.copies, sealed.target))


@stage("write", "commit", Written)
def commit(path: DataPath, written: Written) -> Committed:
    """Stage the block's row in the catalog, in a transaction of its own."""
    sealed = written.sealed
    target, identity = sealed.target, sealed.identity
    row = BlockRow(
        target.block, identity.generation, identity.length, identity.epoch, sealed.tag, tuple(written.locations)
    )
    try:
        with path.catalog.transaction():
            grown_bytes = path.catalog.blocks.stage(target.attachment, target.tenant, target.ino, row)
    finally:
        path.store.settle(written.locations)  # until here their segments could not be given back
    path.metrics.counters.payload_bytes_written += identity.length
    return Committed(target, identity.generation, grown_bytes)


# --- read path -----------------------------------------------------------------------------------------


async def read_block(path: DataPath, request: ReadRequest) -> Verified | None:
    """Fetch, open and verify one block: ReadBlock. None is a hole. The caller owns the plaintext's buffer.

    A replica that is bad or away leads to the next one; what is away is asked again until the deadline; a record that
    garbage collection moved meanwhile is found at its new place, because each attempt asks the catalog anew.
    Raises NotFoundError, MediumUnavailableError, BadRecordError (no replica passes its checks).
    """
    scheduled = await schedule_read(path, admit_read(path, request))
    try:
        attempt = Attempt(scheduled)
        pause = Backoff(path.metrics, path.medium_deadline_ms)
        while (located := locate(path, attempt)) is not None:
            try:
                return await _read_replica(path, located)
            except BadRecordError as error:
                path.metrics.counters.bad_records += 1
                log.warning("%s: replica at %s: %s", located.target, located.location, error)
                attempt = attempt.without_bad(located, str(error))
            except MediumUnavailableError as error:
                attempt = attempt.without_away(located)
                if attempt.exhausted(located.row):
                    await pause.wait(request.target, error)
                    attempt = attempt.again()
        # A lost row must not read as a hole; most files have none, and this is never done for them.
        for _ in path.catalog.wholeness.hole_steps(request.target.tenant, request.target.ino):
            await trio.lowlevel.checkpoint()
        return None
    finally:
        scheduled.slot.release()


async def _read_replica(path: DataPath, located: Located) -> Verified:
    with path.store.pin(located.location):  # taken before anything waits: what was located is still there
        fetched = await read(path, located)
        try:
            return verify(path, open_(path, fetched))
        finally:
            _give_back(path.records, fetched.record)


@stage("read", "admit", ReadRequest)
def admit_read(path: DataPath, request: ReadRequest) -> AdmittedRead:
    """The block number is a possible one."""
    check_ino(request.target.ino)
    check_block(request.target.block)
    return AdmittedRead(request.target, request.staged, request.fresh)


@async_stage("read", "schedule", AdmittedRead)
async def schedule_read(path: DataPath, admitted: AdmittedRead) -> ScheduledRead:
    """Wait for the command's turn among all tenants."""
    return ScheduledRead(admitted, await path.scheduler.acquire(admitted.target.tenant))


@stage("read", "locate", Attempt)
def locate(path: DataPath, attempt: Attempt) -> Located | None:
    """Ask the catalog where the block is now, and choose a replica that was not tried in vain. None is a hole."""
    admitted = attempt.scheduled.admitted
    target = admitted.target
    row = _current_row(path, admitted)
    if row is None:
        return None
    location = attempt.choose(row)
    if location is None:
        raise BadRecordError(f"{target}: every replica is bad, the last one: {attempt.reason}")
    return Located(target, row, location)


def _current_row(path: DataPath, admitted: AdmittedRead) -> BlockRow | None:
    target, blocks = admitted.target, path.catalog.blocks
    if admitted.staged:
        row = blocks.locate_staged(target.attachment, target.tenant, target.ino, target.block)
    else:
        row = blocks.locate(target.tenant, target.ino, target.block)
    # A removed object must not read as a hole, nor by what is left of it while its blocks are being released.
    if path.catalog.inodes.find(target.tenant, target.ino) is None and not admitted.fresh:
        raise NotFoundError(f"{target}: no such object")
    return row


@async_stage("read", "read", Located)
async def read(path: DataPath, located: Located) -> Fetched:
    """Read one replica's stored bytes, whole, within the medium's deadline."""
    buffer = path.records.acquire()
    record = memoryview(buffer)[: record_bytes(located.row.length)]
    try:
        with trio.move_on_after(path.medium_deadline_ms / 1000) as scope:
            await path.store.read_into(located.location, record)
        if scope.cancelled_caught:
            raise MediumUnavailableError(
                f"{located.target}: medium {located.location.medium} did not answer in {path.medium_deadline_ms} ms"
            )
    except BaseException:
        path.records.release(buffer)
        raise
    return Fetched(located, record)


@stage("read", "open", Fetched)
def open_(path: DataPath, fetched: Fetched) -> Opened:
    """Check the stored bytes and decrypt them as the very record that the catalog names."""
    located = fetched.located
    target, row = located.target, located.row
    identity = _identity(path, target, row.epoch, row.generation, row.length)
    salt = sealing.record_salt(fetched.record)
    key = path.ring.record_key(target.tenant, row.epoch, target.ino, row.generation, salt)
    buffer = path.plaintexts.acquire()
    try:
        checksum = sealing.decrypt_record(key, identity, row.tag, fetched.record, memoryview(buffer))
    except BaseException:
        path.plaintexts.release(buffer)
        raise
    return Opened(target, identity, checksum, memoryview(buffer)[: row.length])


@stage("read", "verify", Opened)
def verify(path: DataPath, opened: Opened) -> Verified:
    """The plaintext is what was digested when it was written."""
    try:
        sealing.verify_payload(opened.identity, opened.checksum, opened.unverified)
    except BaseException:
        _give_back(path.plaintexts, opened.unverified)
        raise
    path.metrics.counters.payload_bytes_read += opened.identity.length
    return Verified(opened.target, opened.unverified)


# --- both ----------------------------------------------------------------------------------------------


def release_plaintext(path: DataPath, verified: Verified) -> None:
    """The bytes of a read are not needed any more."""
    _give_back(path.plaintexts, verified.plaintext)


def _give_back(pool: BufferPool, view: memoryview) -> None:
    buffer = view.obj
    if not isinstance(buffer, mmap.mmap):
        raise InternalError(f"a {type(buffer).__name__} is no pooled buffer")
    pool.release(buffer)


def _identity(path: DataPath, target: Target, epoch: int, generation: int, length: int) -> RecordIdentity:
    return RecordIdentity(
        pool=path.pool,
        record_type=RecordType.DATA,
        tenant=target.tenant,
        epoch=epoch,
        object=target.ino,
        block=target.block,
        generation=generation,
        length=length,
    )

"""What the metadata log is given: records sealed under the tenant's keys, and the media they go to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kvfs import limits
from kvfsd.catalog.rows import Location
from kvfsd.crypto import keys, sealing
from kvfsd.datapath import placement
from kvfsd.datapath.pipeline import DataPath
from kvfsd.datapath.recordwriter import Copies
from kvfsd.metalog.metadata_log import LogPayload, LogPorts, SealedLogPayload
from kvfsd.ondisk.record import SALT_BYTES, RecordIdentity, RecordType, record_bytes
from kvfsd.ondisk.segment import SegmentKind
from kvfsd.ports import Randomness
from kvfsd.segments.store import Append

LOG_OBJECT = 0
"""The object number of records that belong to no file."""


def log_ports(path: DataPath, flush: Callable[[], Awaitable[None]]) -> LogPorts:
    """The ports of a pool's metadata log. A tenant's log stays on the same media while they take it, in segments of
    its own. System records have as many replicas as there may be, whatever the pool's own number.
    """

    def seal(asked: LogPayload) -> SealedLogPayload:
        return seal_log_record(path, asked)

    return LogPorts(_LogStore(path), seal, flush)


class _LogStore:
    """Appends records of the log, rather elsewhere than not at all."""

    def __init__(self, path: DataPath) -> None:
        self._path = path
        self.settle = path.store.settle

    async def append(self, tenant: int, epoch: int, record: memoryview, kind: SegmentKind) -> tuple[Location, ...]:
        path = self._path
        # Without a system record nothing of a pool can be rebuilt, so a lost medium must not take the only one.
        replicas = limits.REPLICAS_MAX if tenant == keys.SYSTEM_TENANT else path.replicas
        copies = Copies(placement.block_key(path.pool, LOG_OBJECT, tenant), replicas, path.replicas, fills=False)
        return await path.writer.write(Append(tenant, epoch, record, kind), copies, f"metadata log of tenant {tenant}")


def seal_log_record(path: DataPath, asked: LogPayload) -> SealedLogPayload:
    """Seal one record of the log: a system record under the slot key in use, any other under its tenant's DEK."""
    randomness = path.ports.randomness
    if asked.record_type == RecordType.SYSTEM:
        return seal_system_record(path.pool, path.ring.slot_key, randomness, asked)
    epoch, salt = path.ring.current_epoch(asked.tenant), randomness.token(SALT_BYTES)
    key = path.ring.record_key(asked.tenant, epoch, LOG_OBJECT, asked.generation, salt)
    return _seal(_identity(path.pool, epoch, asked), key, salt, asked.payload)


def seal_system_record(pool: bytes, slot_key: bytes, randomness: Randomness, asked: LogPayload) -> SealedLogPayload:
    """Seal one system record of `pool` under `slot_key`."""
    salt = randomness.token(SALT_BYTES)
    key = keys.system_record_key(slot_key, pool, asked.generation, salt)
    return _seal(_identity(pool, keys.SYSTEM_RECORD_EPOCH, asked), key, salt, asked.payload)


def _identity(pool: bytes, epoch: int, asked: LogPayload) -> RecordIdentity:
    return RecordIdentity(
        pool=pool,
        record_type=asked.record_type,
        tenant=asked.tenant,
        epoch=epoch,
        object=LOG_OBJECT,
        block=asked.block,
        generation=asked.generation,
        length=len(asked.payload),
    )


def _seal(identity: RecordIdentity, key: bytes, salt: bytes, payload: bytes) -> SealedLogPayload:
    """The sealed record, in a buffer of its own: log records are few, and small."""
    record = memoryview(bytearray(record_bytes(len(payload))))
    sealed = sealing.seal(key, identity, salt, payload, record)
    return SealedLogPayload(identity.epoch, record[: sealed.length])

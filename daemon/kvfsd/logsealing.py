"""What the metadata log is given: records sealed under the tenant's keys, and the media they go to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kvfsd import placement, sealing
from kvfsd.metadata_log import LogPayload, LogPorts, SealedLogPayload
from kvfsd.ondisk.record import SALT_BYTES, RecordIdentity, record_bytes
from kvfsd.pipeline import DataPath

LOG_OBJECT = 0
"""The object number of records that belong to no file."""


def log_ports(path: DataPath, flush: Callable[[], Awaitable[None]]) -> LogPorts:
    """The ports of a pool's metadata log. A tenant's log stays on the same media, in segments of its own."""

    def seal(asked: LogPayload) -> SealedLogPayload:
        return seal_log_record(path, asked)

    def place(tenant: int) -> tuple[int, ...]:
        return placement.place(placement.block_key(path.pool, LOG_OBJECT, tenant), path.weights, path.replicas)

    return LogPorts(path.store, seal, place, flush)


def seal_log_record(path: DataPath, asked: LogPayload) -> SealedLogPayload:
    """Seal one record of the log. Its buffer is its own: log records are few, and small."""
    epoch = path.ring.current_epoch(asked.tenant)
    identity = RecordIdentity(
        pool=path.pool,
        record_type=asked.record_type,
        tenant=asked.tenant,
        epoch=epoch,
        object=LOG_OBJECT,
        block=asked.block,
        generation=asked.generation,
        length=len(asked.payload),
    )
    salt = path.ports.randomness.token(SALT_BYTES)
    key = path.ring.record_key(asked.tenant, epoch, LOG_OBJECT, asked.generation, salt)
    record = memoryview(bytearray(record_bytes(len(asked.payload))))
    sealed = sealing.seal(key, identity, salt, asked.payload, record)
    return SealedLogPayload(epoch, record[: sealed.length])

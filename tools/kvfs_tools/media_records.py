"""The media of a pool as `kvfsd.metalog.rebuild` wants to see them: every record, opened with the key file alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from kvfs import limits
from kvfs.errors import BadRecordError, FormatError, MediumUnavailableError
from kvfsd.catalog.replay import FoundRecord
from kvfsd.catalog.rows import KeySlotRow, Location, SegmentRow
from kvfsd.catalog.schema import SegmentState
from kvfsd.crypto import keys
from kvfsd.crypto.keys import KeyRing
from kvfsd.crypto.sealing import open_record, record_salt
from kvfsd.metalog.rebuild import FoundSegment
from kvfsd.ondisk.record import OVERHEAD_BYTES, TAG_BYTES, RecordIdentity, RecordType, record_bytes
from kvfsd.ondisk.segment import SegmentHeader
from kvfsd.pool.poolmedia import PoolMedium
from kvfsd.ports import Ports
from kvfsd.segments.scan import ScannedRecord, SegmentScan, read_segment_header


class MediaSource:
    """Every record on the media of a pool (`kvfsd.metalog.rebuild.RecordSource`). `damages` collects what is none.

    `slot_keys` are those of the key file: two if a shred was cut off, and the newest snapshot is under one of them.
    """

    def __init__(
        self, pool: bytes, media: Mapping[int, PoolMedium], slot_keys: tuple[bytes, ...], ports: Ports
    ) -> None:
        self.pool = pool
        self.damages: list[str] = []
        self._media = media
        self._slot_keys = slot_keys
        self._randomness = ports.randomness
        self._ring = KeyRing(pool, slot_keys[0], ports.randomness)

    def unlock(self, slots: list[KeySlotRow]) -> None:
        """Take the keys in `slots`, which are those of one system snapshot; WrongKeyError."""
        self._ring = keys.settle(self.pool, self._slot_keys, slots, self._randomness)

    def rows_key(self, tenant: int) -> bytes:
        """The key of the checks of a tenant's catalog rows; WrongKeyError before `unlock`."""
        return self._ring.rows_key(tenant)

    async def segments(self) -> AsyncIterator[FoundSegment]:
        """Every segment in use, medium by medium."""
        for index, one in sorted(self._media.items()):
            for segment in range(one.superblock.segment_count):
                repaired: list[str] = []
                try:
                    header = await read_segment_header(one.medium, one.superblock, segment, repaired)
                except (FormatError, MediumUnavailableError) as error:
                    self.damages.append(str(error))
                    continue
                self.damages += [f"{damage}; its header is made again from its records" for damage in repaired]
                if header is not None:
                    yield await self._segment(index, one, header)

    async def _segment(self, index: int, one: PoolMedium, header: SegmentHeader) -> FoundSegment:
        records: list[FoundRecord] = []
        end_units = 1
        async for found in SegmentScan(one.medium, one.superblock, header.segment):
            if not isinstance(found, ScannedRecord):
                self.damages.append(f"segment {index}:{header.segment}, unit {found.offset}: {found.reason}")
                end_units = found.offset + found.units
                continue
            end_units = found.offset + found.header.stored_bytes // limits.RECORD_ALIGN_BYTES
            if found.damage:
                self.damages.append(found.damage)
                continue
            end = OVERHEAD_BYTES + found.header.identity.length
            tag = bytes(found.record[end - TAG_BYTES : end])
            records.append(FoundRecord(found.header.identity, Location(index, header.segment, found.offset), tag))
        row = SegmentRow(
            medium=index,
            segment=header.segment,
            state=SegmentState.CLOSED,
            kind=header.kind,
            tenant=header.tenant,
            epoch=header.epoch,
            write_offset=min(end_units * limits.RECORD_ALIGN_BYTES, one.superblock.segment_bytes),
            live_bytes=0,
        )
        return FoundSegment(row, records)

    async def open(self, identity: RecordIdentity, location: Location) -> bytes:
        """Plaintext of one record; BadRecordError, MediumUnavailableError, WrongKeyError."""
        one = self._media[location.medium]
        record = memoryview(bytearray(record_bytes(identity.length)))
        offset = one.superblock.segment_offset(location.segment) + location.offset * limits.RECORD_ALIGN_BYTES
        await one.medium.read_into(offset, record)
        plaintext = memoryview(bytearray(identity.length))
        if identity.record_type == RecordType.SYSTEM:
            self._open_system(identity, record, plaintext)
        else:
            owner = (identity.tenant, identity.epoch, identity.object, identity.generation)
            open_record(self._ring.record_key(*owner, record_salt(record)), identity, b"", record, plaintext)
        return bytes(plaintext)

    def _open_system(self, identity: RecordIdentity, record: memoryview, plaintext: memoryview) -> None:
        salt = record_salt(record)
        for slot_key in self._slot_keys[:-1]:
            key = keys.system_record_key(slot_key, self.pool, identity.generation, salt)
            with contextlib.suppress(BadRecordError):
                open_record(key, identity, b"", record, plaintext)
                return
        key = keys.system_record_key(self._slot_keys[-1], self.pool, identity.generation, salt)
        open_record(key, identity, b"", record, plaintext)

"""`kvfsctl rebuild`: the media of a pool as `kvfsd.rebuild` wants to see them, and the exchange of the catalog."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kvfs import limits
from kvfs.errors import ExistsError, FormatError, KvfsError, MediumUnavailableError, WrongKeyError
from kvfsd import pool as pools
from kvfsd import poolfile
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.replay import FoundRecord
from kvfsd.catalog.rows import KeySlotRow, Location, MediumRow, SegmentRow
from kvfsd.catalog.schema import MediumState, SegmentState
from kvfsd.cli.keysource import kek_source
from kvfsd.cli.options import KekOptions
from kvfsd.kek import source_of, sync_directory
from kvfsd.keyfile import SlotKeyFile
from kvfsd.keys import SYSTEM_TENANT, KeyRing
from kvfsd.ondisk.record import OVERHEAD_BYTES, TAG_BYTES, RecordIdentity, record_bytes
from kvfsd.ondisk.segment import SegmentHeader
from kvfsd.poollock import PoolLock
from kvfsd.poolmedia import FileMedia, PoolMedium, open_media
from kvfsd.ports import Ports
from kvfsd.rebuild import FoundSegment, RebuildReport, rebuild
from kvfsd.scan import ScannedRecord, SegmentScan, read_segment_header
from kvfsd.sealing import open_record, record_salt

REBUILT_NAME: Final = "catalog.db.rebuilt"
_SUFFIXES: Final = ("", "-wal", "-shm")


class MediaSource:
    """Every record on the media of a pool (`kvfsd.rebuild.RecordSource`). `damages` collects what is none."""

    def __init__(self, pool: bytes, media: Mapping[int, PoolMedium], ring: KeyRing) -> None:
        self.pool = pool
        self.damages: list[str] = []
        self._media = media
        self._ring = ring

    async def segments(self) -> AsyncIterator[FoundSegment]:
        """Every segment in use, medium by medium."""
        for index, one in sorted(self._media.items()):
            for segment in range(one.superblock.segment_count):
                try:
                    header = await read_segment_header(one.medium, one.superblock, segment)
                except (FormatError, MediumUnavailableError) as error:
                    self.damages.append(str(error))
                    continue
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
        owner = (identity.tenant, identity.epoch, identity.object, identity.generation)
        key = self._ring.record_key(*owner, record_salt(record))
        plaintext = bytearray(identity.length)
        open_record(key, identity, b"", record, memoryview(plaintext))
        return bytes(plaintext)


async def rebuild_pool(path: Path, options: KekOptions, force: bool) -> dict[str, Any]:
    """Make the catalog of the pool in `path` (absolute) anew from its media; the old one is kept -> what was found.

    Raises:
        ExistsError: the catalog opens, and not `force`.
        PoolBusyError: the pool is open in another process.
        KvfsError: no medium or no key, or no system record opens; the old catalog is then where it was.
    """
    ports = Ports()
    file, warnings = poolfile.read(path)
    with contextlib.ExitStack() as stack:
        lock = PoolLock.acquire(path)
        stack.callback(lock.release)
        own_slots = _old_catalog(path / pools.CATALOG_NAME, force=force)
        source = kek_source(options) or source_of(file.kek.kind, file.kek.name)
        key_file = SlotKeyFile(Path(file.key_directory), file.pool, ports.randomness)
        ring = _ring(file.pool, key_file.load(source, repair=False).candidates, own_slots, ports)
        async with contextlib.AsyncExitStack() as undo:
            driver = FileMedia(ports.offload)
            media, more = await open_media(driver, file.pool, pools.located(path, file), read_only=True)
            for one in media.values():
                undo.push_async_callback(one.medium.aclose)
            records = MediaSource(file.pool, media, ring)
            report = await _build(path / REBUILT_NAME, records, media, ring)
        kept = _exchange(path)
    found = dataclasses.asdict(report)
    found["problems"] = [f"{problem.kind}: {problem.detail}" for problem in report.problems]
    complete = not (report.log_gaps or report.objects_lost or report.problems)
    return {
        **found,
        "damages": records.damages,
        "complete": complete,
        "kept": kept,
        "warnings": warnings + more + key_file.warnings,
    }


def _old_catalog(path: Path, *, force: bool) -> list[KeySlotRow]:
    """The system's own key slots, if the old catalog still gives them; ExistsError if it opens and not `force`."""
    try:
        catalog = Catalog.open(path, read_only=True)
    except KvfsError:
        return []
    try:
        if not force:
            raise ExistsError(f"{path} opens; kvfsctl check says what is wrong with it, --force replaces it")
        return catalog.tenants.slots(SYSTEM_TENANT)
    except ExistsError:
        raise
    except KvfsError:
        return []
    finally:
        catalog.database.abandon()


def _ring(pool: bytes, candidates: tuple[bytes, ...], own_slots: list[KeySlotRow], ports: Ports) -> KeyRing:
    """A ring with the slot key that opens the system's slots."""
    ring = KeyRing(pool, candidates[0], ports.randomness)
    for slot_key in candidates:
        ring = KeyRing(pool, slot_key, ports.randomness)
        if all(ring.opens(slot) for slot in own_slots):
            ring.unlock(own_slots)
            return ring
    raise WrongKeyError("the key file does not open the system's key slots")


async def _build(path: Path, source: MediaSource, media: Mapping[int, PoolMedium], ring: KeyRing) -> RebuildReport:
    _remove(path, _SUFFIXES)  # of a rebuild that was cut off
    catalog = Catalog.create(path, source.pool)
    try:
        with catalog.transaction():
            for row in _media_rows(media):
                catalog.media.add(row)
        report = await rebuild(catalog, source, ring.unlock)
    except BaseException:
        catalog.database.abandon()
        raise
    catalog.close()
    return report


def _media_rows(media: Mapping[int, PoolMedium]) -> Iterator[MediumRow]:
    for index, one in sorted(media.items()):
        block = one.superblock
        yield MediumRow(
            medium=index,
            uuid=block.medium,
            path=one.medium.name,
            weight=block.weight,
            failure_domain=block.failure_domain,
            state=MediumState.ACTIVE,
        )


def _remove(path: Path, suffixes: tuple[str, ...]) -> None:
    for suffix in suffixes:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _exchange(directory: Path) -> str:
    """Put the new catalog in place -> where the old one is kept, empty if there was none."""
    current, kept = directory / pools.CATALOG_NAME, ""
    if current.exists():
        kept = f"{current}.before-{time.time_ns()}"
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{current}{suffix}", f"{kept}{suffix}")
    else:
        _remove(current, _SUFFIXES[1:])  # of a catalog that is gone: they would be taken for the new one's
    os.rename(directory / REBUILT_NAME, current)
    sync_directory(directory)
    return kept


def print_report(found: dict[str, Any]) -> None:
    """The report for people."""
    for key in ("log_gaps", "damages", "problems"):
        for line in found[key]:
            print(f"{key.rstrip('s').replace('_', ' ')}: {line}")
    print(
        f"rebuilt {found['objects']} objects in {found['blocks']} blocks of {found['tenants']} tenants from "
        f"{found['records']} records in {found['segments']} segments; {found['objects_lost']} objects lost"
    )
    if found["kept"]:
        print(f"the catalog that was there is kept as {found['kept']}")

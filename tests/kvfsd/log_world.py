"""Media, store and sealer for tests of the metadata log: records in memory, "sealed" by a header and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from kvfs.errors import BadRecordError, MediumUnavailableError
from kvfsd.catalog import Catalog
from kvfsd.catalog.replay import FoundRecord
from kvfsd.catalog.rows import BlockRow, KeySlotRow, Location, SegmentRow
from kvfsd.catalog.schema import SegmentState
from kvfsd.metalog.metadata_log import LogPayload, LogPorts, MetadataLog, SealedLogPayload
from kvfsd.metalog.rebuild import FoundSegment
from kvfsd.ondisk.record import RecordHeader, RecordIdentity, RecordType, record_bytes
from kvfsd.ondisk.segment import SegmentKind
from tests.kvfsd.catalog.world import POOL, World, row_key

SEGMENT_BYTES = 4 << 20


class MemoryMedia:
    """What a pool's media hold: `records` by location; it outlives the catalog."""

    pool = POOL

    def __init__(self) -> None:
        self.records: dict[Location, bytes] = {}
        self.kinds: dict[tuple[int, int], tuple[SegmentKind, int, int]] = {}
        self.failing = False

    def put(self, location: Location, identity: RecordIdentity, payload: bytes = b"") -> None:
        header = RecordHeader(identity, bytes(16), 0).pack()
        self.records[location] = header + payload

    async def segments(self) -> AsyncIterator[FoundSegment]:
        for (medium, segment), (kind, tenant, epoch) in list(self.kinds.items()):
            found = [
                FoundRecord(RecordHeader.parse(data, "test").identity, location)
                for location, data in self.records.items()
                if location[:2] == (medium, segment)
            ]
            end = max((one.location.offset * 4096 + record_bytes(one.identity.length) for one in found), default=4096)
            row = SegmentRow(medium, segment, SegmentState.CLOSED, kind, tenant, epoch, end, 0)
            yield FoundSegment(row, found)

    def rows_key(self, tenant: int) -> bytes:
        return row_key(tenant)

    async def open(self, identity: RecordIdentity, location: Location) -> bytes:
        data = self.records[location]
        if RecordHeader.parse(data, "test").identity != identity or data[128:] == b"damaged":
            raise BadRecordError(f"record at {location}")
        return data[128:]


class MemoryStore:
    """`SegmentStore` as far as the log uses it."""

    def __init__(self, catalog: Catalog, media: MemoryMedia) -> None:
        self._catalog = catalog
        self._media = media
        self._open: dict[tuple[SegmentKind, int], tuple[int, int]] = {}
        self.unsettled: list[Location] = []
        self.flushes = 0

    async def append(self, tenant: int, epoch: int, record: memoryview, kind: SegmentKind) -> tuple[Location, ...]:
        if self._media.failing:
            raise MediumUnavailableError("medium 0 is away")
        location = self.place(kind, tenant, epoch, len(record))
        self._media.records[location] = bytes(record)
        self.unsettled.append(location)
        return (location,)

    def place(self, kind: SegmentKind, tenant: int, epoch: int, length: int) -> Location:
        segment, offset = self._open.get((kind, tenant), (0, SEGMENT_BYTES))
        if offset + length > SEGMENT_BYTES:
            with self._catalog.transaction():
                if segment:
                    self._catalog.segments.close(0, segment)
                segment, offset = 100 + len(self._media.kinds), 4096
                self._catalog.segments.allocate(SegmentRow(0, segment, SegmentState.OPEN, kind, tenant, epoch, 4096, 0))
            self._media.kinds[0, segment] = (kind, tenant, epoch)
        self._open[kind, tenant] = (segment, offset + (length + 4095) // 4096 * 4096)
        return Location(0, segment, offset // 4096)

    def settle(self, locations: Iterable[Location]) -> None:
        for location in locations:
            self.unsettled.remove(location)

    async def flush(self) -> None:
        self.flushes += 1


def seal(sealing: LogPayload) -> SealedLogPayload:
    epoch = 0 if sealing.record_type == RecordType.SYSTEM else 1
    identity = RecordIdentity(
        POOL, sealing.record_type, sealing.tenant, epoch, 0, sealing.block, sealing.generation, len(sealing.payload)
    )
    return SealedLogPayload(epoch, memoryview(RecordHeader(identity, bytes(16), 0).pack() + sealing.payload))


class LogWorld(World):
    """A `World` whose blocks lie on memory media, with a metadata log."""

    def __init__(self, directory: Path, media: MemoryMedia | None = None) -> None:
        self.media = media or MemoryMedia()
        super().__init__(directory)
        self.start()

    def start(self) -> None:
        self.store_port = MemoryStore(self.catalog, self.media)
        ports = LogPorts(self.store_port, seal, self.store_port.flush)
        self.log = MetadataLog(self.catalog, ports)
        with self.catalog.transaction():
            self.catalog.tenants.put_slots([KeySlotRow(0, 0, b"system names"), KeySlotRow(0, 1, b"system")])

    def block(self, number: int, length: int = 1 << 20) -> BlockRow:
        generation = self.catalog.database.next_generation()
        location = self.store_port.place(SegmentKind.DATA, self.tenant, 1, record_bytes(length))
        return BlockRow(number, generation, length, 1, generation.to_bytes(16, "big"), (location,))

    def stage(self, ino: int, blocks: list[BlockRow], attachment: int = 7) -> None:
        super().stage(ino, blocks, attachment)
        for row in blocks:
            identity = RecordIdentity(POOL, RecordType.DATA, self.tenant, 1, ino, row.block, row.generation, row.length)
            self.media.put(row.locations[0], identity)

    def tree(self, tenant: int = 1) -> dict[tuple[bytes, ...], object]:
        return visible_tree(self.catalog, tenant)


def visible_tree(catalog: Catalog, tenant: int) -> dict[tuple[bytes, ...], object]:
    """Every path with all that a reader can see of it; locations are left out."""
    found: dict[tuple[bytes, ...], object] = {}
    waiting: list[tuple[tuple[bytes, ...], int]] = [((), catalog.tenants.get(tenant).root_ino)]
    while waiting:
        path, ino = waiting.pop()
        row = catalog.inodes.get(tenant, ino)
        blocks = [block[:5] for block in catalog.blocks.locate_range(tenant, ino, 0, 1 << 26)]
        names = catalog.xattrs.names(tenant, ino)
        found[path] = (row, blocks, {name: catalog.xattrs.get(tenant, ino, name) for name in names})
        if row.mode & 0xF000 == 0x4000:
            entries, _ = catalog.namespace.list_directory(tenant, ino, 0, 1 << 20)
            waiting += [((*path, entry.name), entry.inode.ino) for entry in entries]
    return found

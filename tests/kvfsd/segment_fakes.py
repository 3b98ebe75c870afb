"""An in-memory stand-in for the catalog's segment and block rows, with transactions that roll back."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

from kvfs import limits
from kvfs.errors import InternalError, NotFoundError
from kvfsd.catalog.rows import BlockRow, Location, PlacedBlock, SegmentRow
from kvfsd.catalog.schema import SegmentState
from kvfsd.media.memory import MemoryMedium
from kvfsd.ondisk.record import record_bytes
from kvfsd.ondisk.segment import SegmentKind
from kvfsd.ondisk.superblock import Superblock
from kvfsd.segments.space import OpenMedium
from kvfsd.segments.store import Append, SegmentStore

POOL = bytes(range(16))
UNIT = limits.RECORD_ALIGN_BYTES


class FakeCatalog:
    """Segment rows, and blocks by (tenant, ino, block). `durable` is what a power loss leaves."""

    def __init__(self) -> None:
        self.segments: dict[tuple[int, int], SegmentRow] = {}
        self.blocks: dict[tuple[int, int, int], BlockRow] = {}
        self.durable = copy.deepcopy((self.segments, self.blocks))
        self.barriers = 0
        self.in_transaction = False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        assert not self.in_transaction, "nested transaction"
        before = (dict(self.segments), dict(self.blocks))
        self.in_transaction = True
        try:
            yield
        except BaseException:
            self.segments, self.blocks = before
            raise
        finally:
            self.in_transaction = False

    async def barrier(self) -> None:
        self.barriers += 1
        self.durable = copy.deepcopy((self.segments, self.blocks))

    def power_loss(self) -> None:
        self.segments, self.blocks = copy.deepcopy(self.durable)

    # --- SegmentTable

    def all(self) -> list[SegmentRow]:
        return list(self.segments.values())

    def get(self, medium: int, segment: int) -> SegmentRow:
        try:
            return self.segments[medium, segment]
        except KeyError:
            raise NotFoundError(f"segment {medium}:{segment} is free") from None

    def empty(self, limit: int = 1024) -> list[SegmentRow]:
        rows = self.segments.values()
        return [row for row in rows if row.live_bytes == 0 and row.state == SegmentState.CLOSED][:limit]

    def allocate(self, row: SegmentRow) -> None:
        assert self.in_transaction
        assert (row.medium, row.segment) not in self.segments, "allocated twice"
        self.segments[row.medium, row.segment] = row

    def close(self, medium: int, segment: int) -> None:
        self._change(medium, segment, state=SegmentState.CLOSED)

    def free(self, medium: int, segment: int) -> None:
        assert self.in_transaction
        if self.get(medium, segment).live_bytes:
            raise InternalError("not empty")
        del self.segments[medium, segment]

    def add_live(self, medium: int, segment: int, delta_bytes: int) -> None:
        row = self.get(medium, segment)
        self._change(medium, segment, live_bytes=row.live_bytes + delta_bytes)

    def add_record(self, length: int, locations: tuple[Location, ...]) -> None:
        for medium, segment, offset in locations:
            self.add_live(medium, segment, record_bytes(length))
            end = max(self.get(medium, segment).write_offset, offset * UNIT + record_bytes(length))
            self._change(medium, segment, write_offset=end)

    def _change(self, medium: int, segment: int, **values: int) -> None:
        assert self.in_transaction
        self.segments[medium, segment] = self.get(medium, segment)._replace(**values)

    # --- blocks

    def put_block(self, tenant: int, ino: int, row: BlockRow) -> None:
        """Commit a block, replacing the one before."""
        with self.transaction():
            self._release(tenant, ino, row.block)
            self.blocks[tenant, ino, row.block] = row
            self.add_record(row.length, row.locations)

    def drop_block(self, tenant: int, ino: int, block: int) -> None:
        with self.transaction():
            self._release(tenant, ino, block)

    def _release(self, tenant: int, ino: int, block: int) -> None:
        old = self.blocks.pop((tenant, ino, block), None)
        if old is not None:
            for location in old.locations:
                self.add_live(location.medium, location.segment, -record_bytes(old.length))

    def live_in_segment(self, medium: int, segment: int) -> list[PlacedBlock]:
        return [
            PlacedBlock(tenant, ino, 0, row)
            for (tenant, ino, _), row in self.blocks.items()
            if any(location[:2] == (medium, segment) for location in row.locations)
        ]

    def relocate(self, placed: PlacedBlock, old: Location, new: Location) -> bool:
        row = self.blocks.get((placed.tenant, placed.ino, placed.row.block))
        if row is None or row.generation != placed.row.generation or old not in row.locations:
            return False
        moved = row._replace(locations=tuple(new if location == old else location for location in row.locations))
        self.blocks[placed.tenant, placed.ino, row.block] = moved
        self.add_live(old.medium, old.segment, -record_bytes(row.length))
        self.add_record(row.length, (new,))
        return True


def superblock_of(index: int, size_bytes: int = limits.MEDIUM_MIN_BYTES) -> Superblock:
    return Superblock(
        pool=POOL,
        medium=bytes([index + 1]) * 16,
        medium_index=index,
        size_bytes=size_bytes,
        segment_bytes=limits.SEGMENT_MIN_BYTES,
    )


def opened(index: int = 0, medium: object = None) -> OpenMedium:
    """Seven segments of 4 MiB each."""
    made = medium if medium is not None else MemoryMedium(f"m{index}", limits.MEDIUM_MIN_BYTES)
    return OpenMedium(made, superblock_of(index))  # type: ignore[arg-type]


def store_over(catalog: FakeCatalog, *media: OpenMedium) -> SegmentStore:
    return SegmentStore(media, catalog, catalog.transaction, catalog.barrier)


async def append(
    store: SegmentStore, tenant: int, epoch: int, media: Sequence[int], data: memoryview, kind: SegmentKind
) -> tuple[Location, ...]:
    """Append to all media or none -> the locations, not settled, in the order of the media."""
    done, errors = await store.append_each(Append(tenant, epoch, data, kind), media)
    if errors:
        store.settle(done.values())
        raise next(iter(errors.values()))
    return tuple(done[index] for index in media)

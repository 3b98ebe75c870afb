"""Read every block of what is asked for, all replicas, and check it as a read would: header, identity, sums, seal.

On a live pool a record may move (garbage collection) or go (overwritten, unlinked) between the catalog's answer and the
read: what fails is looked up again, and is bad only if the catalog still points at it.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvfs import limits
from kvfs.errors import BadRecordError, KvfsError, MediumUnavailableError, WrongKeyError
from kvfs_tools.inspection import Node, TenantView
from kvfsd.catalog.rows import BlockRow, InodeRow, Location
from kvfsd.crypto.sealing import open_record, record_salt
from kvfsd.ondisk.record import RecordIdentity, RecordType, record_bytes
from kvfsd.pool.poolmedia import PoolMedium

LOOKUPS_MAX = 5
"""How often a record that fails is looked up again: each time garbage collection would have to move it once more."""
BAD_SHOWN_MAX = 1000
"""Bad replicas that a report lists; more are only counted."""


@dataclass(frozen=True, slots=True)
class BadReplica:
    """One replica of one block that cannot be read as what it should be."""

    path: bytes
    ino: int
    block: int
    medium: str
    segment: int
    offset_bytes: int
    """Byte offset of the record on its medium, -1 if it has no such place."""
    reason: str


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found to be bad."""

    objects: int = 0
    blocks: int = 0
    replicas: int = 0
    payload_bytes: int = 0
    """Plaintext bytes of all replicas that were read."""
    bad_names: int = 0
    bad_replicas: int = 0
    lost_blocks: int = 0
    """Blocks without a good replica."""
    bad: list[BadReplica] = field(default_factory=list)
    damaged_rows: list[str] = field(default_factory=list)
    """Rows of the catalog that failed their checks; names and objects behind them could not be looked at."""

    @property
    def clean(self) -> bool:
        """Nothing bad was found."""
        return not (self.bad_names or self.bad_replicas or self.damaged_rows)


class Verifier:
    """Checks objects of one tenant into a `Report`."""

    def __init__(
        self, view: TenantView, media: Mapping[int, PoolMedium], report: Report, progress: Callable[[Report], None]
    ) -> None:
        self._view = view
        self._pool = view.pool
        self._media = media
        self._report = report
        self._progress = progress
        self._record = bytearray(record_bytes(limits.BLOCK_BYTES))
        self._plaintext = bytearray(limits.BLOCK_BYTES)

    async def tree(self, start: Node) -> None:
        """`start` and everything below it; an object with several names is read once."""
        linked: set[int] = set()
        for node in self._view.walk(start):
            self._report.bad_names += node.name_bad
            if not stat.S_ISREG(node.inode.mode):
                continue
            if node.inode.nlink > 1:
                if node.inode.ino in linked:
                    continue
                linked.add(node.inode.ino)
            await self._object(node)

    async def _object(self, node: Node) -> None:
        self._report.objects += 1
        with contextlib.suppress(BadRecordError):  # the catalog keeps it for the report
            for _ in self._pool.catalog.wholeness.hole_steps(self._view.tenant.number, node.inode.ino):
                pass
        for row in self._view.blocks(node.inode):
            await self._block(node, row)
            self._progress(self._report)

    async def _block(self, node: Node, row: BlockRow) -> None:
        self._report.blocks += 1
        good = 0
        for replica in range(len(row.locations)):
            found = await self._replica(node.inode, row, replica)
            if found is None:
                good += 1
                continue
            self._report.bad_replicas += 1
            if len(self._report.bad) < BAD_SHOWN_MAX:
                self._report.bad.append(self._described(node, row, *found))
        self._report.lost_blocks += not good

    async def _replica(self, inode: InodeRow, row: BlockRow, replica: int) -> tuple[Location, str] | None:
        """None if the replica is good, or gone by now; else where it is and what is wrong with it."""
        current: BlockRow | None = row
        tried: Location | None = None
        reason = ""
        for _ in range(LOOKUPS_MAX):
            if current is None or current.generation != row.generation or replica >= len(current.locations):
                return None  # overwritten, truncated or unlinked meanwhile
            location = current.locations[replica]
            if location == tried:
                break
            tried = location
            try:
                await self._read(inode, row, location)
            except (BadRecordError, MediumUnavailableError) as error:
                reason = str(error)
            else:
                return None
            current = self._pool.catalog.blocks.locate(self._view.tenant.number, inode.ino, row.block)
        return (tried, reason) if tried is not None else None

    async def _read(self, inode: InodeRow, row: BlockRow, location: Location) -> None:
        """Read and open one record; raises what is wrong with it."""
        tenant = self._view.tenant.number
        medium = self._media.get(location.medium)
        if medium is None:
            raise MediumUnavailableError(f"medium {location.medium} is not among the pool's")
        record = memoryview(self._record)[: record_bytes(row.length)]
        try:
            await medium.medium.read_into(_offset(medium, location), record)
        except KvfsError as error:
            raise MediumUnavailableError(str(error)) from error
        identity = RecordIdentity(
            pool=self._pool.uuid,
            record_type=RecordType.DATA,
            tenant=tenant,
            epoch=row.epoch,
            object=inode.ino,
            block=row.block,
            generation=row.generation,
            length=row.length,
        )
        try:
            key = self._pool.ring.record_key(tenant, row.epoch, inode.ino, row.generation, record_salt(record))
        except WrongKeyError as error:
            raise BadRecordError(str(error)) from error
        open_record(key, identity, row.tag, record, memoryview(self._plaintext))
        self._report.replicas += 1
        self._report.payload_bytes += row.length

    def _described(self, node: Node, row: BlockRow, location: Location, reason: str) -> BadReplica:
        name, offset = f"medium {location.medium}", -1
        medium = self._media.get(location.medium)
        if medium is not None:
            name = medium.medium.name
            with contextlib.suppress(KvfsError):
                offset = _offset(medium, location)
        return BadReplica(node.path, node.inode.ino, row.block, name, location.segment, offset, reason)


def _offset(medium: PoolMedium, location: Location) -> int:
    """Byte offset of a record on its medium; InvalidArgumentError if the medium has no such segment."""
    return medium.superblock.segment_offset(location.segment) + location.offset * limits.RECORD_ALIGN_BYTES

"""A catalog in a temporary directory, with one tenant, one open segment and short ways to make things in it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from kvfsd.catalog import Catalog, Hooks
from kvfsd.catalog.publication import Publication, Published
from kvfsd.catalog.rows import BlockRow, Entry, InodeRow, KeySlotRow, Location, SegmentRow, TenantRow
from kvfsd.catalog.schema import SegmentState, TenantState
from kvfsd.ondisk.record import record_bytes

POOL = bytes(range(16))
FULL = 1 << 20
DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
ATTACHMENT = 7


def sealed(name: str | bytes) -> bytes:
    """A stand-in for a sealed name: as long, and spread as evenly as one."""
    import hashlib

    raw = name.encode() if isinstance(name, str) else name
    return hashlib.blake2b(raw, digest_size=16).digest() + raw


def row_key(tenant: int) -> bytes:
    """A row key for each tenant, and for the system."""
    return tenant.to_bytes(4, "little") * 8


def made_catalog(path: Path, hooks: Hooks | None = None) -> Catalog:
    """A new catalog, unlocked."""
    catalog = Catalog.create(path, POOL, hooks)
    catalog.unlock(row_key)
    return catalog


def opened_catalog(path: Path, *, read_only: bool = False) -> Catalog:
    """A catalog that was made here, unlocked; closed again if that fails."""
    catalog = Catalog.open(path, read_only=read_only)
    try:
        catalog.unlock(row_key)
    except BaseException:
        catalog.database.abandon()
        raise
    return catalog


class World:
    """`tenant` 1 has root `root`; records go one after another into medium 0, segment 0."""

    def __init__(self, directory: Path, hooks: Hooks | None = None) -> None:
        self.path = directory / "catalog.db"
        self.catalog = made_catalog(self.path, hooks)
        self.tenant = 1
        self.clock = 1000
        self._offset = 1
        with self.catalog.transaction():
            self.add_segment(0)
        self.root = self.add_tenant(1)

    def add_segment(self, segment: int, medium: int = 0) -> None:
        self.catalog.segments.allocate(SegmentRow(medium, segment, SegmentState.OPEN, 1, 1, 1, 4096, 0))

    def add_tenant(self, tenant: int, quota_bytes: int = 0, quota_objects: int = 0) -> int:
        ino = self.catalog.database.next_ino()
        root = InodeRow(ino, DIRECTORY, 2, 0, 0, 0, 0, 0, 1, 1, 1, 0, parent=ino)
        row = TenantRow(tenant, b"t%d" % tenant, quota_bytes, quota_objects, 0, 0, ino, TenantState.ACTIVE, 1)
        with self.catalog.transaction():
            self.catalog.tenants.create(row, [KeySlotRow(tenant, 0, b"n"), KeySlotRow(tenant, 1, b"k")], root)
        return ino

    def entry(self, name: str, parent: int | None = None) -> Entry:
        return Entry(self.tenant, parent or self.root, sealed(name))

    def now(self) -> int:
        self.clock += 1
        return self.clock

    def node(self, mode: int = DIRECTORY) -> InodeRow:
        now = self.now()
        return InodeRow(self.catalog.database.next_ino(), mode, 0, 10, 20, 0, 0, 0, now, now, now, 1)

    def mkdir(self, name: str, parent: int | None = None) -> int:
        with self.catalog.transaction():
            return self.catalog.namespace.insert_node(self.entry(name, parent), self.node()).ino

    def location(self, length: int, segment: int = 0) -> Location:
        location = Location(0, segment, self._offset)
        self._offset += record_bytes(length) // 4096
        return location

    def block(self, number: int, length: int = FULL) -> BlockRow:
        generation = self.catalog.database.next_generation()
        tag = generation.to_bytes(16, "big")
        return BlockRow(number, generation, length, 1, tag, (self.location(length),))

    def stage(self, ino: int, blocks: list[BlockRow], attachment: int = ATTACHMENT) -> None:
        for row in blocks:
            with self.catalog.transaction():
                self.catalog.blocks.stage(attachment, self.tenant, ino, row)

    def publish(self, ino: int, name: str | None, size: int, **changes: object) -> Published:
        now = self.now()
        values: dict[str, object] = {
            "attachment": ATTACHMENT,
            "tenant": self.tenant,
            "ino": ino,
            "entry": self.entry(name) if name is not None else None,
            "size": size,
            "base_limit_bytes": 0,
            "mode": FILE,
            "uid": 10,
            "gid": 20,
            "atime_ns": now,
            "mtime_ns": now,
            "ctime_ns": now,
        }
        with self.catalog.transaction():
            return self.catalog.publisher.publish(Publication(**{**values, **changes}))  # type: ignore[arg-type]

    def store(self, name: str, lengths: list[int] | None = None, **changes: object) -> int:
        lengths = [FULL, FULL] if lengths is None else lengths
        ino = self.catalog.database.next_ino()
        self.stage(ino, [self.block(number, length) for number, length in enumerate(lengths)])
        self.publish(ino, name, sum(lengths), **changes)
        return ino

    def lookup(self, name: str, parent: int | None = None) -> InodeRow | None:
        return self.catalog.namespace.lookup(*self.entry(name, parent))

    def unlink(self, name: str, parent: int | None = None, keep_for: int | None = None) -> tuple[int, int]:
        with self.catalog.transaction():
            return self.catalog.namespace.remove_entry(self.entry(name, parent), self.now(), keep_for)

    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = opened_catalog(self.path)

    def names(self, parent: int | None = None) -> Iterator[bytes]:
        cookie, end = 0, False
        while not end:
            batch, end = self.catalog.namespace.list_directory(self.tenant, parent or self.root, cookie, 7)
            yield from (listed.name for listed in batch)
            cookie = batch[-1].cookie if batch else cookie

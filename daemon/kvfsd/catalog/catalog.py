"""The catalog of one pool: all its parts around one database connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvfsd.catalog.attachments import Attachments
from kvfsd.catalog.blocks import Blocks
from kvfsd.catalog.database import Database, Hooks, Transaction
from kvfsd.catalog.doomed import Doomed
from kvfsd.catalog.inodes import Inodes
from kvfsd.catalog.log_rows import LogRows
from kvfsd.catalog.media_rows import MediaRows
from kvfsd.catalog.namespace import Namespace
from kvfsd.catalog.publication import Publisher
from kvfsd.catalog.purge import Purge
from kvfsd.catalog.quarantine_rows import QuarantineRows
from kvfsd.catalog.renames import Renames
from kvfsd.catalog.retention_rows import RetentionRows
from kvfsd.catalog.rowmacs import RowKeys
from kvfsd.catalog.segment_rows import SegmentRows
from kvfsd.catalog.tenant_checks import TenantChecks
from kvfsd.catalog.tenants import Tenants
from kvfsd.catalog.wholeness import Wholeness
from kvfsd.catalog.xattrs import Xattrs


@dataclass(frozen=True, slots=True)
class Catalog:
    """Open with `Catalog.open` or `Catalog.create`; change things inside `with catalog.transaction():`."""

    database: Database
    segments: SegmentRows
    blocks: Blocks
    doomed: Doomed
    tenants: Tenants
    inodes: Inodes
    namespace: Namespace
    renames: Renames
    xattrs: Xattrs
    publisher: Publisher
    attachments: Attachments
    quarantine: QuarantineRows
    retention: RetentionRows
    media: MediaRows
    log_rows: LogRows
    purge: Purge
    wholeness: Wholeness

    @classmethod
    def create(cls, path: Path, pool_uuid: bytes, hooks: Hooks | None = None) -> Catalog:
        """An empty catalog at `path`, to be unlocked; FileExistsError."""
        return cls.over(Database.create(path, pool_uuid, hooks))

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, hooks: Hooks | None = None) -> Catalog:
        """See `Database.open`. Only `Tenants.numbers` and `Tenants.slots` work before `unlock`."""
        return cls.over(Database.open(path, read_only=read_only, hooks=hooks))

    @classmethod
    def over(cls, database: Database) -> Catalog:
        """The parts of the catalog around an open database."""
        segments = SegmentRows(database)
        blocks = Blocks(database, segments)
        tenants = Tenants(database)
        doomed = Doomed(database, segments)
        inodes = Inodes(database, blocks, tenants, doomed)
        namespace = Namespace(database, inodes)
        log_rows = LogRows(database, segments)
        return cls(
            database=database,
            segments=segments,
            blocks=blocks,
            doomed=doomed,
            tenants=tenants,
            inodes=inodes,
            namespace=namespace,
            renames=Renames(namespace, inodes),
            xattrs=Xattrs(database, inodes),
            publisher=Publisher(database, namespace, inodes, blocks),
            attachments=Attachments(database, blocks, inodes, doomed),
            quarantine=QuarantineRows(database, namespace, inodes),
            retention=RetentionRows(database, tenants, inodes, namespace),
            media=MediaRows(database),
            log_rows=log_rows,
            purge=Purge(database, inodes, tenants, segments, log_rows),
            wholeness=Wholeness(database, inodes),
        )

    def transaction(self) -> Transaction:
        """One atomic change; see `Database.transaction`."""
        return self.database.transaction()

    def unlock(self, keys: RowKeys) -> None:
        """Check rows with these keys from here on, those of the tenants at once; see `TenantChecks.check_all`."""
        self.database.macs.unlock(keys)
        TenantChecks(self.database, self.tenants).check_all()

    def close(self) -> None:
        """Checkpoint, mark clean, close."""
        if not self.database.read_only:
            TenantChecks(self.database, self.tenants).seal_use()
        self.database.close()

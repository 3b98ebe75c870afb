"""The catalog's tables (docs/adr/0001-catalog.md). Every table of tenants' things starts its key with the tenant."""

from __future__ import annotations

import enum
from typing import Final

VERSION: Final = 2
"""`user_version` of the database; another one is refused."""
APPLICATION_ID: Final = 0x6B766673
"""`application_id`: "kvfs"."""
FEATURES_KNOWN: Final = 0
"""Incompatible feature flags this code understands (`meta` row "features"); any other bit is refused."""

LISTING_COLUMNS: Final = (
    "i.ino, i.mode, i.nlink, i.uid, i.gid, i.rdev, i.size, i.stored_bytes, i.atime_ns, i.mtime_ns, i.ctime_ns, "
    "i.generation, i.parent, i.flags, i.target, i.members, i.xattrs, i.mac"
)
"""Columns of `rows.InodeRow`, in its order, of a table called i; and the row's check."""


class SegmentState(enum.IntEnum):
    """Life of a segment that has a row; a free one has none."""

    OPEN = 1
    CLOSED = 2


class TenantState(enum.IntEnum):
    """Life of a tenant."""

    ACTIVE = 1
    DELETING = 2


class MediumState(enum.IntEnum):
    """Whether a medium takes new records."""

    ACTIVE = 1
    DRAINING = 2
    GONE = 3


TABLES: Final = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value, mac INT NOT NULL) WITHOUT ROWID;

CREATE TABLE tenant(
    tenant INTEGER PRIMARY KEY, sealed_name BLOB NOT NULL, quota_bytes INT NOT NULL, quota_objects INT NOT NULL,
    used_bytes INT NOT NULL, used_objects INT NOT NULL, root_ino INT NOT NULL, state INT NOT NULL,
    created_ns INT NOT NULL, members INT NOT NULL, use_mac INT NOT NULL, mac INT NOT NULL);
CREATE TABLE tenant_policy(
    tenant INTEGER PRIMARY KEY, min_bytes INT NOT NULL, high_percent INT NOT NULL, low_percent INT NOT NULL,
    eviction INT NOT NULL, layout_guard INT NOT NULL);
CREATE TABLE key_slot(
    tenant INT NOT NULL, epoch INT NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY(tenant, epoch)) WITHOUT ROWID;

CREATE TABLE inode(
    ino INTEGER PRIMARY KEY, tenant INT NOT NULL, mode INT NOT NULL, nlink INT NOT NULL, uid INT NOT NULL,
    gid INT NOT NULL, rdev INT NOT NULL, size INT NOT NULL, stored_bytes INT NOT NULL, atime_ns INT NOT NULL,
    mtime_ns INT NOT NULL, ctime_ns INT NOT NULL, generation INT NOT NULL, parent INT NOT NULL, flags INT NOT NULL,
    target BLOB NOT NULL, members INT NOT NULL, xattrs INT NOT NULL, mac INT NOT NULL);
CREATE INDEX inode_use ON inode(tenant, ((flags >> 8) + 128) & 255, max(atime_ns, ctime_ns))
    WHERE (mode & 0xF000) = 0x8000 AND nlink BETWEEN 1 AND 64 AND (flags & 3) = 0;
CREATE INDEX inode_expiry ON inode(flags >> 16)
    WHERE (mode & 0xF000) = 0x8000 AND nlink > 0 AND (flags & 1) = 0 AND flags >= 65536;
CREATE INDEX inode_pinned ON inode(tenant, stored_bytes) WHERE (mode & 0xF000) = 0x8000 AND (flags & 2) = 2;
CREATE INDEX inode_settings ON inode(tenant, flags) WHERE (mode & 0xF000) = 0x4000 AND flags > 1;
CREATE TABLE dirent(
    tenant INT NOT NULL, parent INT NOT NULL, cookie INT NOT NULL, sealed_name BLOB NOT NULL, ino INT NOT NULL,
    mac INT NOT NULL, PRIMARY KEY(tenant, parent, cookie, sealed_name)) WITHOUT ROWID;
CREATE INDEX dirent_of_object ON dirent(ino);
CREATE TABLE xattr(
    tenant INT NOT NULL, ino INT NOT NULL, sealed_name BLOB NOT NULL, sealed_value BLOB NOT NULL,
    PRIMARY KEY(tenant, ino, sealed_name)) WITHOUT ROWID;

CREATE TABLE block(
    tenant INT NOT NULL, ino INT NOT NULL, block INT NOT NULL, generation INT NOT NULL, length INT NOT NULL,
    epoch INT NOT NULL, tag BLOB NOT NULL, locations BLOB NOT NULL, PRIMARY KEY(tenant, ino, block)) WITHOUT ROWID;
CREATE INDEX block_replica_1 ON block(substr(locations, 1, 6));
CREATE INDEX block_replica_2 ON block(substr(locations, 11, 6)) WHERE length(locations) > 10;
CREATE INDEX block_replica_3 ON block(substr(locations, 21, 6)) WHERE length(locations) > 20;
CREATE INDEX block_replica_4 ON block(substr(locations, 31, 6)) WHERE length(locations) > 30;
CREATE TABLE staged_block(
    tenant INT NOT NULL, attachment INT NOT NULL, ino INT NOT NULL, block INT NOT NULL, generation INT NOT NULL,
    length INT NOT NULL, epoch INT NOT NULL, tag BLOB NOT NULL, locations BLOB NOT NULL,
    PRIMARY KEY(tenant, attachment, ino, block)) WITHOUT ROWID;

CREATE TABLE open_unlinked(
    tenant INT NOT NULL, ino INT NOT NULL, attachment INT NOT NULL,
    PRIMARY KEY(tenant, ino, attachment)) WITHOUT ROWID;
CREATE TABLE doomed(tenant INT NOT NULL, ino INT NOT NULL, PRIMARY KEY(tenant, ino)) WITHOUT ROWID;
CREATE TABLE quarantine(
    tenant INT NOT NULL, ino INT NOT NULL, parent INT NOT NULL, sealed_name BLOB NOT NULL, reason TEXT NOT NULL,
    time_ns INT NOT NULL, PRIMARY KEY(tenant, ino)) WITHOUT ROWID;
CREATE TABLE completion(
    attachment INT NOT NULL, cid INT NOT NULL, sequence INT NOT NULL, blob BLOB NOT NULL,
    PRIMARY KEY(attachment, cid)) WITHOUT ROWID;

CREATE TABLE medium(
    medium INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE, path TEXT NOT NULL, weight INT NOT NULL,
    failure_domain TEXT NOT NULL, state INT NOT NULL);
CREATE TABLE segment(
    medium INT NOT NULL, segment INT NOT NULL, state INT NOT NULL, kind INT NOT NULL, tenant INT NOT NULL,
    epoch INT NOT NULL, write_offset INT NOT NULL, live_bytes INT NOT NULL,
    PRIMARY KEY(medium, segment)) WITHOUT ROWID;

CREATE TABLE outbox(
    tenant INT NOT NULL, sequence INT NOT NULL, blob BLOB NOT NULL, PRIMARY KEY(tenant, sequence)) WITHOUT ROWID;
CREATE TABLE log_record(
    tenant INT NOT NULL, generation INT NOT NULL, length INT NOT NULL, locations BLOB NOT NULL,
    PRIMARY KEY(tenant, generation)) WITHOUT ROWID;
CREATE TABLE log_state(
    tenant INTEGER PRIMARY KEY, head_generation INT NOT NULL, log_bytes INT NOT NULL, snapshot_bytes INT NOT NULL);
"""
"""Statements that make an empty catalog.

* mac: the row's own check (`rowmacs`). members, xattrs: sums of the checks of the rows that belong to it: blocks of a
  file, names of a directory, a tenant's keys, access list and policy; extended attributes. use_mac: of use, as of a
  clean close.
* dirent: the cookie (`rows.cookie_of`) is in the key, so one B-tree serves lookups and resumable listings.
* inode_use: what may be evicted, oldest use first (`retention_flags`); inode_expiry: what ends by itself. Indexes, so
  that they cannot disagree with the rows; their conditions stand word for word in the queries of `retention_rows`.
* dirent_of_object: the names of an object, so that an eviction takes them all.
* block: `locations` are 10 bytes per replica; the indexes find the blocks of a segment and, being indexes, cannot
  disagree with the rows. Those of replicas 2 to 4 are empty in a pool without replicas.
* doomed: large objects that are gone already, whose blocks are being released in batches.
* log_record: live records of the metadata log and of system snapshots (tenant 0), in segments like any other.
"""

TABLES_ADDED: Final = (
    "CREATE TABLE IF NOT EXISTS attachment(attachment INTEGER PRIMARY KEY, tenant INT NOT NULL, token_digest BLOB NOT"
    " NULL, boot BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS attachment_ino(attachment INT NOT NULL, first INT NOT NULL, count INT NOT NULL,"
    " PRIMARY KEY(attachment, first)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS tenant_access(tenant INT NOT NULL, kind INT NOT NULL, value BLOB NOT NULL,"
    " PRIMARY KEY(tenant, kind, value)) WITHOUT ROWID",
)
"""Tables that catalogs of the first days have not: made when one is opened for writing.

* attachment: those that a mount may resume after the daemon was restarted; what they staged outlives a recovery.
* attachment_ino: runs of object numbers that were given to such an attachment.
* tenant_access: who may attach to a tenant (`rows.AccessKind`); part of the system records.
"""

META_POOL_UUID: Final = "pool_uuid"
META_FEATURES: Final = "features"
META_NEXT_INO: Final = "next_ino"
META_NEXT_GENERATION: Final = "next_generation"
META_NEXT_ATTACHMENT: Final = "next_attachment"
META_CLEAN: Final = "clean"
META_SYSTEM_VERSION: Final = "system_version"
"""Counts changes of tenants, key slots and quotas."""
META_SYSTEM_WRITTEN: Final = "system_written"
"""The `system_version` that the newest system records on the media hold."""
META_NEXT_TENANT: Final = "next_tenant"
META_START: Final = (
    (META_FEATURES, 0),
    (META_NEXT_INO, 2),
    (META_NEXT_GENERATION, 1),
    (META_NEXT_ATTACHMENT, 1),
    (META_CLEAN, 1),
    (META_SYSTEM_VERSION, 1),
    (META_SYSTEM_WRITTEN, 0),
    (META_NEXT_TENANT, 1),
)
"""`meta` of an empty catalog. Ino 1 means "my root" in every command, so the first object is 2; 0 is never a number."""

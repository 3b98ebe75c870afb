"""Every bound of kvfs in one place; the unit is the end of the name.

A length or count is checked against its limit before anything is allocated for it.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

BLOCK_BYTES: Final = MIB
"""Plaintext of one full block = one sealed record. The largest FUSE request is 1 MiB (measured, Linux 6.18)."""

FILE_MAX_BYTES: Final = 1 << 46
"""Largest file: 64 TiB, 2^26 blocks; larger sizes and offsets are FILE_TOO_LARGE."""

NAME_MAX_BYTES: Final = 255
SYMLINK_MAX_BYTES: Final = 4095
LINKS_MAX: Final = 65_000

XATTR_NAME_MAX_BYTES: Final = 255
XATTR_VALUE_MAX_BYTES: Final = 64 * KIB
"""Linux's own XATTR_SIZE_MAX."""
XATTRS_PER_OBJECT_MAX_BYTES: Final = 128 * KIB

VERIFY_AT_OPEN_MAX_BYTES: Final = 8 * MIB
"""Default size up to which a file is fetched and verified at open (engine contract, 8)."""

STAGING_MAX_BYTES: Final = 64 * MIB
"""Dirty block buffers of one mount; past it the oldest partial block is sealed early."""
READ_CACHE_MAX_BYTES: Final = 64 * MIB
"""Verified plaintext that a mount keeps between open and read, and as look-ahead."""
LOOK_AHEAD_BLOCKS: Final = 4
"""Blocks fetched ahead of a sequential reader of a file that is too large to be verified at open."""
INODE_HINTS_MAX: Final = 32_768
"""Inodes of which a mount remembers what the kernel's page cache holds; forgetting one costs a re-read."""
INVALIDATIONS_MAX: Final = 65_536
"""Cache invalidations waiting for the kernel; past it everything is revoked at once."""
OPEN_FILES_MAX: Final = 65_536

INFLIGHT_DATA_COMMANDS_MAX: Final = 32
"""Data commands in flight on one queue pair."""
QUEUE_DEPTH: Final = 256
"""Commands outstanding on one queue pair; a command identifier is below it."""
COMMAND_DEADLINE_MS: Final = 30_000
"""A command that has not completed by then fails with DEADLINE_EXCEEDED."""
MEDIUM_DEADLINE_MS: Final = 2_000
"""How long a slow or failing medium is waited for (docs/ARCHITECTURE.md, errors)."""

DRAIN_DEADLINE_MS: Final = 5_000
"""How long requests in flight may take to finish after SIGTERM before the mount goes away under them."""

DIRECTORY_BATCH_MAX: Final = 512
"""Entries of one ReadDirectory completion."""

FRAME_META_MAX_BYTES: Final = 512 * KIB
"""Encoded command or completion, payload not counted; a full directory batch fits."""

RECORD_ALIGN_BYTES: Final = 4 * KIB
SEGMENT_MIN_BYTES: Final = 4 * MIB
SEGMENT_MAX_BYTES: Final = 64 * MIB
MEDIUM_MIN_BYTES: Final = 32 * MIB
MEDIA_PER_POOL_MAX: Final = 256
REPLICAS_MAX: Final = 4
TENANTS_MAX: Final = 4096
TENANT_NAME_MAX_BYTES: Final = 64

METADATA_LOG_LAG_MS: Final = 1_000
"""How far the sealed metadata log on the media may be behind the catalog, while media answer."""
METADATA_LOG_BACKLOG_MAX: Final = 4_096
"""Entries (the changes of one command) that may wait for the metadata log; past it commands that change something wait.
In one process 11,000 a second were queued without a pause: 0.4 s, and 14 ms to write them (measured, 2 cores)."""
METADATA_LOG_BACKLOG_MAX_BYTES: Final = 8 * MIB
"""The same in bytes: eight records of the log, which a medium of 50 MB/s writes in 0.2 s."""

TENANT_HIGH_PERCENT: Final = 98
TENANT_LOW_PERCENT: Final = 95
"""Watermarks of a tenant's quota, unless `tenant set` says otherwise: above the high one the oldest objects go until
the low one is reached, ahead of need."""
POOL_HIGH_PERCENT: Final = 95
POOL_LOW_PERCENT: Final = 90
"""The same of a pool's bytes; the room between keeps the collector of segments from copying much for little."""
PIN_SHARE_PERCENT: Final = 50
"""Share of a tenant's quota (of the pool, without one) that pinned objects may take: the rest stays a cache."""

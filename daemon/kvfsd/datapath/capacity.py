"""How much a pool holds and has left, as `statvfs` shows it to evictors (pure).

In plaintext bytes of full blocks, replicas taken off: what a tenant may still write, garbage included, because that is
collected before anybody is refused. It follows every store and unlink at once, and costs no scan.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvfs import limits
from kvfsd.ondisk.record import record_bytes
from kvfsd.ondisk.segment import HEADER_BYTES
from kvfsd.ondisk.superblock import Superblock
from kvfsd.segments.store import KEEP_FROM_WRITERS

OBJECT_OVERHEAD_BYTES: Final = limits.RECORD_ALIGN_BYTES
"""What an object's last, partial block takes beyond its bytes, at most."""


def pool_bytes(media: Iterable[Superblock], replicas: int) -> int:
    """Plaintext that an empty pool takes: whole blocks in the segments that data writers may use.

    The metadata log's segments, one or two per tenant, come out of it too and are not taken off.
    """
    blocks = 0
    for superblock in media:
        per_segment = (superblock.segment_bytes - HEADER_BYTES) // record_bytes(limits.BLOCK_BYTES)
        blocks += max(0, superblock.segment_count - KEEP_FROM_WRITERS) * per_segment
    return blocks * limits.BLOCK_BYTES // replicas


def free_bytes(total_bytes: int, used_bytes: int, objects: int) -> int:
    """What is left of `total_bytes` when all tenants together use, or have reserved, so many bytes and objects."""
    return max(0, total_bytes - used_bytes - objects * OBJECT_OVERHEAD_BYTES)

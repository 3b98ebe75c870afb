"""`kvfsctl pool relocate`: tell a pool where a medium of its lies now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kvfs.errors import NotFoundError
from kvfsd.media.superblocks import read_superblock
from kvfsd.pool import pool as pools
from kvfsd.pool import poolfile
from kvfsd.pool.poolfile import MediumEntry, stored_path
from kvfsd.pool.poollock import PoolLock
from kvfsd.pool.poolmedia import FileMedia, check_identity
from kvfsd.ports import Ports


async def relocate(directory: Path, index: int, path: Path) -> dict[str, Any]:
    """Medium `index` of the pool in `directory` is `path` now (absolute, both) -> index, uuid, before, path.

    Needs no key.

    Raises:
        NotFoundError: no pool there, or no such medium in it.
        PoolBusyError: the pool is open.
        MediumUnavailableError, FormatError: `path` cannot be read, or is not that medium; nothing is changed then.
    """
    poolfile.read(directory)
    lock = PoolLock.acquire(directory)
    try:
        file, _ = poolfile.read(directory)
        before = next((entry for entry in file.media if entry.index == index), None)
        if before is None:
            known = ", ".join(str(entry.index) for entry in file.media)
            raise NotFoundError(f"the pool in {directory} has no medium {index}; it has {known}")
        await _check(path, before, pools.located(directory, file), file.pool)
        after = MediumEntry(index, before.uuid, stored_path(path, directory))
        media = tuple(after if entry.index == index else entry for entry in file.media)
        poolfile.write(directory, msgspec.structs.replace(file, media=media, sequence=file.sequence + 1))
    finally:
        lock.release()
    return {"index": index, "uuid": before.uuid, "before": before.path, "path": after.path}


async def _check(path: Path, wanted: MediumEntry, entries: Sequence[MediumEntry], pool: bytes) -> None:
    """What lies at `path` is the `wanted` one of the pool's media."""
    medium = FileMedia(Ports().offload).open(path, read_only=True)
    try:
        found = await read_superblock(medium)
        check_identity(medium.name, found.superblock, pool, entries, wanted)
    finally:
        await medium.aclose()

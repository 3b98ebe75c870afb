"""The private pool of `kvfs mount MOUNTPOINT`: made on first use, its key elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kvfs import limits
from kvfs.errors import ConfigError
from kvfsd import directories
from kvfsd.cli.options import DEFAULT_TENANT
from kvfsd.crypto.kek import RawKeyFile
from kvfsd.pool import poolfile
from kvfsd.pool.poolmaking import PoolPlan, create_pool, default_medium
from kvfsd.ports import SystemRandomness

MEDIUM_BYTES: Final = 64 * limits.GIB
FREE_SHARE_PERCENT: Final = 90
"""Of the free disk space, this much at most: the file is sparse, and a full disk harms others."""
SMALLEST_BYTES: Final = 4 * limits.MEDIUM_MIN_BYTES
LOCK_DEADLINE_S: Final = 60.0
_LOCK_POLL_S: Final = 0.05


async def ensure_private_pool() -> tuple[Path, str]:
    """The private pool's directory, and a line for the user if it was made just now (else empty).

    Raises:
        ConfigError: it cannot be made, or there is not enough disk space.
    """
    directory = directories.private_pool()
    if _exists(directory):
        return directory, ""
    directories.ensure_private(directory.parent)
    with _creation_lock(directory.parent / "pool.lock"):
        if _exists(directory):  # another mount was faster
            return directory, ""
        _put_aside(directory)
        kek = await _create(directory)
    return directory, f"made a private pool in {directory}; its key is {kek} (keep it, without it nothing can be read)"


async def _create(directory: Path) -> Path:
    randomness = SystemRandomness()
    kek = directories.ensure_private(directories.keys()) / f"private-{randomness.token(4).hex()}.kek"
    plan = PoolPlan(media=[default_medium(directory, _medium_bytes(directory.parent))])
    source = RawKeyFile.create(kek, randomness)
    try:
        pool = await create_pool(directory, plan, source)
    except BaseException:
        kek.unlink(missing_ok=True)
        raise
    try:
        pool.tenants.create(DEFAULT_TENANT, uid=os.geteuid(), gid=os.getegid())
    finally:
        await pool.aclose()
    return kek


def _exists(directory: Path) -> bool:
    return any((directory / name).exists() for name in poolfile.NAMES)


def _put_aside(directory: Path) -> None:
    """What a crash left of an unfinished pool holds nobody's data: it makes room, but is not deleted."""
    if directory.exists() and any(directory.iterdir()):
        directory.rename(f"{directory}.incomplete-{time.time_ns()}")


def _medium_bytes(parent: Path) -> int:
    """Size of the medium: 64 GiB, less where the disk has less free."""
    free = shutil.disk_usage(parent).free
    size = min(MEDIUM_BYTES, free * FREE_SHARE_PERCENT // 100)
    if size < SMALLEST_BYTES:
        raise ConfigError(
            f"{parent} has {free >> 20} MiB free, a private pool needs {SMALLEST_BYTES * 100 // 90 >> 20}; "
            "free some, set XDG_DATA_HOME, or make a pool elsewhere with kvfsctl pool create"
        )
    return size - size % limits.MIB


@contextlib.contextmanager
def _creation_lock(path: Path) -> Iterator[None]:
    """Held while the pool is made; the kernel drops it with the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + LOCK_DEADLINE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ConfigError(f"another process has held {path} for {LOCK_DEADLINE_S:.0f} s") from None
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)

"""A pool opened for reading: closed otherwise, or beside the process that has it open. Nothing is ever written."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvfs.errors import InvalidArgumentError, MediumUnavailableError, NotPermittedError
from kvfsd.cli.keysource import kek_source
from kvfsd.cli.options import KekOptions
from kvfsd.media.base import Capability, Medium
from kvfsd.pool import pool as pools
from kvfsd.pool.pool import Pool
from kvfsd.pool.poolmedia import PoolMedium, open_media


class UnlockedFile:
    """A file or block device that is only read, without the lock that its owner holds."""

    capabilities = Capability.NONE

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise MediumUnavailableError(f"medium {path}: open: {error.strerror}") from error
        mode = os.fstat(self._descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            os.close(self._descriptor)
            raise InvalidArgumentError(f"medium {path}: neither a file nor a block device")
        self.size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; blocks, because whoever inspects waits for nothing else."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise MediumUnavailableError(f"medium {self.name}: read at {offset}: {error.strerror}") from error
            if count == 0:
                raise MediumUnavailableError(f"medium {self.name}: read at {offset}: it ends at {offset + done}")
            done += count

    async def write(self, offset: int, data: memoryview) -> None:
        """Refused."""
        raise NotPermittedError(f"medium {self.name}: opened for inspection only")

    async def reserve(self, offset: int, length: int) -> None:
        """Refused."""
        raise NotPermittedError(f"medium {self.name}: opened for inspection only")

    async def flush(self) -> None:
        """Nothing to do."""

    async def trim(self, offset: int, length: int) -> None:
        """Refused."""
        raise NotPermittedError(f"medium {self.name}: opened for inspection only")

    async def advise(self, offset: int, length: int) -> None:
        """Nothing to do."""

    async def aclose(self) -> None:
        """Close the descriptor; twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _UnlockedMedia:
    """Opens media beside their owner (`kvfsd.pool.poolmedia.MediaDriver`)."""

    def create(self, path: Path, size_bytes: int) -> Medium:
        raise NotPermittedError(f"medium {path}: opened for inspection only")

    def open(self, path: Path, *, read_only: bool) -> Medium:
        return UnlockedFile(path)


@dataclass(frozen=True, slots=True)
class ReadOnlyPool:
    """The open pool and its media; `pool.live` says that somebody else goes on changing it."""

    pool: Pool
    media: Mapping[int, PoolMedium]


@contextlib.asynccontextmanager
async def open_read_only(directory: str, options: KekOptions) -> AsyncIterator[ReadOnlyPool]:
    """Open the pool in `directory` for reading, and close it again. Raises what `Pool.open` raises."""
    pool = await Pool.open(Path(directory), kek_source(options), read_only=True)
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(pool.aclose)
        media = pool.media
        if pool.live:
            media, warnings = await open_media(
                _UnlockedMedia(), pool.uuid, pools.located(pool.directory, pool.file), read_only=True
            )
            pool.warnings += warnings
            for one in media.values():
                undo.push_async_callback(one.medium.aclose)
        yield ReadOnlyPool(pool, media)

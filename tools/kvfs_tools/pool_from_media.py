"""A pool whose state directory is gone: its pool file, made again from superblocks and the words of a command line."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path

from kvfs.errors import ConfigError, ExistsError, FormatError, NotFoundError
from kvfsd.crypto.kek import KekSource
from kvfsd.media.superblocks import read_superblock
from kvfsd.ondisk.superblock import Superblock
from kvfsd.pool import poolfile
from kvfsd.pool.poolfile import KekEntry, MediumEntry, PoolFile, stored_path, utf8_text
from kvfsd.pool.poollock import NAME as LOCK_NAME
from kvfsd.pool.poolmaking import key_directory_of
from kvfsd.pool.poolmedia import MediaDriver


async def pool_file_of(
    driver: MediaDriver, directory: Path, media: Sequence[Path], source: KekSource, key_directory: Path | None
) -> PoolFile:
    """The pool file for `directory` of the pool that `media` belong to. The media are only read.

    Raises:
        MediumUnavailableError, PoolBusyError, FormatError: a medium cannot be read, or is none.
        ConfigError: they are not media of one pool, each once.
    """
    found: dict[int, tuple[Path, Superblock]] = {}
    for path in media:
        block = await _superblock(driver, path)
        for other, known in found.values():
            if known.pool != block.pool:
                raise ConfigError(f"{other} and {path} belong to different pools; name the media of one")
        if block.medium_index in found:
            raise ConfigError(f"{found[block.medium_index][0]} and {path} are the same medium; name each once")
        found[block.medium_index] = (path, block)
    blocks = [block for _, block in found.values()]
    if not blocks:
        raise ConfigError("no medium is named")
    return PoolFile(
        uuid=str(uuid.UUID(bytes=blocks[0].pool)),
        replicas=max(block.replicas for block in blocks),
        key_directory=utf8_text((key_directory or key_directory_of(source)).absolute()),
        kek=KekEntry(kind=source.origin[0], name=source.origin[1]),
        media=tuple(
            MediumEntry(index=index, uuid=str(uuid.UUID(bytes=block.medium)), path=stored_path(path, directory))
            for index, (path, block) in sorted(found.items())
        ),
    )


async def _superblock(driver: MediaDriver, path: Path) -> Superblock:
    medium = driver.open(path, read_only=True)
    try:
        return (await read_superblock(medium)).superblock
    finally:
        await medium.aclose()


def make_directory(directory: Path, undo: contextlib.ExitStack) -> None:
    """Have `directory` (absolute), without a pool in it; `undo` gets what takes it back.

    Raises:
        ExistsError: there is a pool file in it that can be read: the pool needs no new one.
        ConfigError: it cannot be made.
    """
    try:
        poolfile.read(directory)
    except (NotFoundError, FormatError):
        pass
    else:
        raise ExistsError(
            f"{directory} holds a pool; leave --medium out to rebuild its catalog, and use kvfsctl pool relocate if a "
            "medium has moved"
        )
    if directory.is_dir():
        return
    try:
        directory.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {error.strerror}") from error
    undo.callback(_remove, directory)


def _remove(directory: Path) -> None:
    (directory / LOCK_NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something is in it: a rebuild that failed late
        directory.rmdir()

"""Making a pool: everything or nothing; what was made is taken back if a later step is refused."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvfs.errors import ConfigError, ExistsError
from kvfsd import directories
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.rows import MediumRow
from kvfsd.catalog.schema import MediumState
from kvfsd.crypto.kek import KekSource
from kvfsd.crypto.keyfile import SlotKeyFile
from kvfsd.crypto.keys import SYSTEM_TENANT, KeyRing
from kvfsd.pool import poolfile
from kvfsd.pool.pool import CATALOG_NAME, Pool, PoolParts, key_warnings
from kvfsd.pool.poolfile import KekEntry, MediumEntry, PoolFile, absolute, stored_path, utf8_text
from kvfsd.pool.poollock import NAME as LOCK_NAME
from kvfsd.pool.poollock import PoolLock
from kvfsd.pool.poolmedia import (
    FileMedia,
    MediaDriver,
    MediumIdentity,
    MediumSpec,
    PoolMedium,
    check_specs,
    make_medium,
    refuse_existing,
)
from kvfsd.ports import Ports, Randomness

DEFAULT_MEDIUM_NAME: Final = "medium-0"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What a new pool is to be.

    `segment_bytes`: None = a 64th of each medium, 4 to 64 MiB. `key_directory`: where the key file goes; None = beside
    the KEK, or the user's directory of keys if the KEK is no file.
    """

    media: Sequence[MediumSpec]
    replicas: int = 1
    segment_bytes: int | None = None
    key_directory: Path | None = None


def default_medium(directory: Path, size_bytes: int) -> MediumSpec:
    """The medium of a pool that needs no other: a sparse file in its state directory."""
    return MediumSpec(path=directory / DEFAULT_MEDIUM_NAME, size_bytes=size_bytes)


async def create_pool(
    directory: Path, plan: PoolPlan, source: KekSource, *, ports: Ports | None = None, driver: MediaDriver | None = None
) -> Pool:
    """Make a pool whose state lies in `directory`, which is missing or empty, and return it open.

    Raises:
        ExistsError: the directory holds something, or a medium or key file is there already or not empty.
        InvalidArgumentError: the plan is out of range; a medium is too small.
        WrongKeyError: the KEK cannot be had from `source`.
        ConfigError: a directory or file cannot be made.
    """
    ports = ports or Ports()
    directory = absolute(directory)
    check_specs(plan.media, plan.replicas)
    refuse_existing(plan.media)
    async with contextlib.AsyncExitStack() as undo:
        _make_directory(directory, undo)
        lock = PoolLock.acquire(directory)
        undo.callback((directory / LOCK_NAME).unlink, missing_ok=True)
        undo.callback(lock.release)
        file = _pool_file(directory, plan, source, ports.randomness)
        key_file = SlotKeyFile(_key_directory(Path(file.key_directory)), file.pool, ports.randomness)
        undo.callback(key_file.remove)
        ring = KeyRing(file.pool, key_file.create(source), ports.randomness)
        media = await _make_media(driver or FileMedia(ports.offload), plan, file, undo)
        catalog = _make_catalog(directory / CATALOG_NAME, ring, media, undo)
        await ports.offload.run(catalog.database.sync_call())
        # The pool exists from here on: without this file nothing above counts.
        poolfile.write(directory, file)
        undo.pop_all()
    warnings = key_warnings(source, key_file, directory, file)
    return Pool(
        PoolParts(
            directory=directory,
            file=file,
            lock=lock,
            key_file=key_file,
            ring=ring,
            catalog=catalog,
            media=dict(enumerate(media)),
            ports=ports,
            warnings=warnings,
        )
    )


def _make_directory(directory: Path, undo: contextlib.AsyncExitStack) -> None:
    try:
        if directory.exists():
            found = next(directory.iterdir(), None)
            if found is not None:
                what = "a pool" if (directory / poolfile.NAMES[0]).exists() else f"something ({found.name})"
                raise ExistsError(f"{directory} holds {what} already; a pool is made in a missing or empty directory")
        else:
            directory.mkdir(mode=0o700, parents=True)
            undo.callback(directory.rmdir)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {error.strerror}") from error
    for name in poolfile.NAMES:
        undo.callback((directory / name).unlink, missing_ok=True)


def _key_directory(directory: Path) -> Path:
    """`directory`, made private if it is missing."""
    return directory if directory.is_dir() else directories.ensure_private(directory)


def _pool_file(directory: Path, plan: PoolPlan, source: KekSource, randomness: Randomness) -> PoolFile:
    entries = tuple(
        MediumEntry(index=index, uuid=_fresh_uuid(randomness), path=stored_path(spec.path, directory))
        for index, spec in enumerate(plan.media)
    )
    return PoolFile(
        uuid=_fresh_uuid(randomness),
        replicas=plan.replicas,
        key_directory=utf8_text((plan.key_directory or key_directory_of(source)).absolute()),
        kek=KekEntry(kind=source.origin[0], name=source.origin[1]),
        media=entries,
    )


def _fresh_uuid(randomness: Randomness) -> str:
    return str(uuid.UUID(bytes=randomness.token(16), version=4))


def key_directory_of(source: KekSource) -> Path:
    """Where the key file of a pool lies unless another place is named: beside the KEK, or with the user's keys."""
    return source.path.absolute().parent if source.path is not None else directories.keys()


async def _make_media(
    driver: MediaDriver, plan: PoolPlan, file: PoolFile, undo: contextlib.AsyncExitStack
) -> list[PoolMedium]:
    made = []
    for spec, entry in zip(plan.media, file.media, strict=True):
        identity = MediumIdentity(
            file.pool, uuid.UUID(hex=entry.uuid).bytes, entry.index, plan.segment_bytes, plan.replicas
        )
        made.append(await make_medium(driver, spec, identity, undo))
    return made


def _make_catalog(path: Path, ring: KeyRing, media: Sequence[PoolMedium], undo: contextlib.AsyncExitStack) -> Catalog:
    for suffix in ("", "-wal", "-shm"):
        undo.callback(Path(f"{path}{suffix}").unlink, missing_ok=True)
    catalog = Catalog.create(path, ring.pool)
    undo.callback(catalog.database.abandon)
    catalog.unlock(ring.rows_key)
    with catalog.transaction():
        for one in media:
            block = one.superblock
            row = MediumRow(
                medium=block.medium_index,
                uuid=block.medium,
                path=one.medium.name,
                weight=block.weight,
                failure_domain=block.failure_domain,
                state=MediumState.ACTIVE,
            )
            catalog.media.add(row)
        catalog.tenants.put_slots(ring.create_tenant(SYSTEM_TENANT))
    return catalog

"""A pool: made once, then open in one process at a time. Joins state directory, keys, catalog and media.

DIRECTORY/pool.json, pool.json.bak    what the pool is and where its parts are (poolfile)
DIRECTORY/lock, DIRECTORY/catalog.db  one writer (poollock); the catalog
media                                 anywhere; by default DIRECTORY/medium-0 (poolmedia)
KEYS/UUID.slots, UUID.slots.bak       the slot key, wrapped by the KEK (keyfile); elsewhere, beside the KEK
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import trio

from kvfs import limits
from kvfs.errors import DeadlineExceededError, FailsafeError, FormatError, NotFoundError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.schema import META_POOL_UUID
from kvfsd.crypto import keys
from kvfsd.crypto.kek import KekSource, location_warnings, source_of
from kvfsd.crypto.keyfile import SlotKeyFile
from kvfsd.crypto.keys import SYSTEM_TENANT, KeyRing
from kvfsd.pool import poolfile
from kvfsd.pool.poolfile import PoolFile, absolute
from kvfsd.pool.poollock import PoolLock
from kvfsd.pool.poolmedia import FileMedia, MediaDriver, PoolMedium, open_media
from kvfsd.pool.tenants import TenantRegistry
from kvfsd.ports import Ports

CATALOG_NAME: Final = "catalog.db"
CLOSE_STEP_DEADLINE_S: Final = limits.COMMAND_DEADLINE_MS / 1000
"""How long one step of closing (a drain, a flush) may take; past it the next opening recovers."""


@dataclass(slots=True, kw_only=True)
class PoolParts:
    """What an open pool is made of. `media` is by index, and empty for a reader beside a live pool."""

    directory: Path
    file: PoolFile
    lock: PoolLock
    key_file: SlotKeyFile
    ring: KeyRing
    catalog: Catalog
    media: dict[int, PoolMedium]
    ports: Ports
    read_only: bool = False
    warnings: list[str] = field(default_factory=list)


class Pool:
    """An open pool: `create_pool` makes one, `Pool.open` opens one, `aclose` ends it.

    `warnings` are lines for people: repairs done while opening, keys that lie beside what they protect.
    """

    def __init__(self, parts: PoolParts) -> None:
        self.directory = parts.directory
        self.file = parts.file
        self.uuid = parts.file.pool
        self.replicas = parts.file.replicas
        self.key_file = parts.key_file
        self.ring = parts.ring
        self.catalog = parts.catalog
        self.media = parts.media
        self.ports = parts.ports
        self.read_only = parts.read_only
        self.live = parts.lock.live
        """True for a reader beside a process that has the pool open: the catalog moves on under it, media are shut."""
        self.warnings = parts.warnings
        self.tenants = TenantRegistry(parts.catalog, parts.ring, parts.ports.clock, read_only=parts.read_only)
        self._lock = parts.lock
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._closed = False

    @classmethod
    async def open(
        cls,
        directory: Path,
        source: KekSource | None = None,
        *,
        read_only: bool = False,
        ports: Ports | None = None,
        driver: MediaDriver | None = None,
    ) -> Pool:
        """Open the pool in `directory`; `source` None = as it was given when the pool was made.

        A writer also recovers: what attachments of a dead process left is dropped, damaged second copies are written
        again, a shred that was cut off is ended one way or the other. `read_only` changes nothing on disk.

        Raises:
            NotFoundError: there is no pool.
            PoolBusyError: another process has it open.
            WrongKeyError: the KEK is missing, wrong, or open to others.
            FormatError, MediumUnavailableError, NotPermittedError: a part is damaged, missing, foreign or too new.
            FailsafeError: the catalog is missing or damaged, or a tenant's row in it is.
        """
        ports = ports or Ports()
        asked = _Opening(absolute(directory), source, ports, driver or FileMedia(ports.offload), read_only)
        async with contextlib.AsyncExitStack() as undo:
            parts = await _open_parts(asked, undo)
            undo.pop_all()
        return cls(parts)

    def before_close(self, call: Callable[[], Awaitable[None]]) -> None:
        """Have `aclose` await `call` first, last come first served: drains, and tasks that use the pool."""
        self._closers.append(call)

    async def sync(self) -> None:
        """Everything committed so far survives a power loss: media first, then the catalog that points at them."""
        errors: list[Exception] = []

        async def flush(one: PoolMedium) -> None:
            try:
                await one.medium.flush()
            except Exception as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for one in self.media.values():
                nursery.start_soon(flush, one)
        if errors:
            raise errors[0]
        await self.ports.offload.run(self.catalog.database.sync_call())

    async def aclose(self) -> None:
        """Drain, sync, mark the catalog clean, close everything. Not cancellable; every step has a deadline.

        Whatever fails, all is closed and the lock given back; the first error is raised then, and the catalog is not
        marked clean, so that the next opening recovers. Closing twice is harmless.
        """
        if self._closed:
            return
        self._closed = True
        errors: list[Exception] = []
        steps = [*reversed(self._closers)] + ([] if self.read_only else [self.sync])
        with trio.CancelScope(shield=True):
            for step in steps:
                await _attempt(step, errors)
            await _attempt(self._close_catalog if not errors else self._abandon_catalog, errors)
            for one in self.media.values():
                await _attempt(one.medium.aclose, errors)
        self._lock.release()
        if errors:
            raise errors[0]

    async def _close_catalog(self) -> None:
        await self.ports.offload.run(self.catalog.close)

    async def _abandon_catalog(self) -> None:
        self.catalog.database.abandon()


async def _attempt(step: Callable[[], Awaitable[None]], errors: list[Exception]) -> None:
    try:
        with trio.fail_after(CLOSE_STEP_DEADLINE_S):
            await step()
    except trio.TooSlowError:
        errors.append(DeadlineExceededError(f"closing the pool: a step took over {CLOSE_STEP_DEADLINE_S:.0f} s"))
    except Exception as error:
        errors.append(error)


class _Opening(NamedTuple):
    """What `Pool.open` was asked for."""

    directory: Path
    source: KekSource | None
    ports: Ports
    driver: MediaDriver
    read_only: bool


async def _open_parts(asked: _Opening, undo: contextlib.AsyncExitStack) -> PoolParts:
    directory, read_only = asked.directory, asked.read_only
    poolfile.read(directory)
    lock = PoolLock.acquire(directory, read_only=read_only)
    undo.callback(lock.release)
    file, warnings = _read_locked(directory, read_only=read_only)
    source = asked.source or source_of(file.kek.kind, file.kek.name)
    key_file = SlotKeyFile(Path(file.key_directory), file.pool, asked.ports.randomness)
    slot_keys = key_file.load(source, repair=not read_only)
    catalog = _open_catalog(directory / CATALOG_NAME, file.pool, read_only=read_only)
    undo.callback(catalog.database.abandon)
    ring = keys.settle(file.pool, slot_keys.candidates, all_slots(catalog), asked.ports.randomness)
    ring.current_epoch(SYSTEM_TENANT)
    catalog.unlock(ring.rows_key)
    media: dict[int, PoolMedium] = {}
    if not lock.live:
        media, found = await open_media(asked.driver, file.pool, located(directory, file), read_only=read_only)
        warnings += found
        for one in media.values():
            undo.push_async_callback(one.medium.aclose)
    if not read_only:
        key_file.settle(ring.slot_key)
        await asked.ports.offload.run(catalog.attachments.recover)
    warnings += key_file.warnings + key_warnings(source, key_file, directory, file)
    return PoolParts(
        directory=directory,
        file=file,
        lock=lock,
        key_file=key_file,
        ring=ring,
        catalog=catalog,
        media=media,
        ports=asked.ports,
        read_only=read_only,
        warnings=warnings,
    )


def _read_locked(directory: Path, *, read_only: bool) -> tuple[PoolFile, list[str]]:
    """The pool file, now that nobody else changes it; a writer writes a copy that is not whole again."""
    file, faults = poolfile.read(directory)
    if not faults or read_only:
        return file, faults
    poolfile.write(directory, file)
    return file, [f"{fault}; written again from the other copy" for fault in faults]


def _open_catalog(path: Path, pool: bytes, *, read_only: bool) -> Catalog:
    try:
        catalog = Catalog.open(path, read_only=read_only)
    except (NotFoundError, FormatError) as error:
        raise FailsafeError(f"{error}; kvfsctl rebuild POOL builds the catalog again from the media") from error
    try:
        if catalog.database.meta(META_POOL_UUID) != pool:
            raise FormatError(f"catalog {path} belongs to another pool")
    except BaseException:
        catalog.database.abandon()
        raise
    return catalog


def all_slots(catalog: Catalog) -> list[keys.KeySlot]:
    """Every key slot of the pool: the system's, then the tenants'."""
    numbers = [SYSTEM_TENANT, *catalog.tenants.numbers()]
    return [slot for number in numbers for slot in catalog.tenants.slots(number)]


def located(directory: Path, file: PoolFile) -> list[poolfile.MediumEntry]:
    """The pool's media with absolute paths; those inside the state directory are kept relative, and move with it."""
    return [
        poolfile.MediumEntry(index=entry.index, uuid=entry.uuid, path=str(directory / entry.path))
        for entry in file.media
    ]


def key_warnings(source: KekSource, key_file: SlotKeyFile, directory: Path, file: PoolFile) -> list[str]:
    """A line for each of KEK and key file that lies beside what it protects."""
    secrets = [key_file.paths[0]] if source.path is None else [source.path, key_file.paths[0]]
    return location_warnings(secrets, directory, [Path(entry.path) for entry in located(directory, file)])

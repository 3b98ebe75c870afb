"""A pool's media: made with it, opened with it, and checked to be the ones that it was made with."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from kvfs import limits
from kvfs.errors import ExistsError, FormatError, InvalidArgumentError, MediumUnavailableError, NotPermittedError
from kvfsd.media.base import Medium
from kvfsd.media.file import FileMedium
from kvfsd.media.superblocks import FoundSuperblock, format_medium, read_superblock, write_superblock
from kvfsd.ondisk.superblock import SLOT_BYTES, SLOT_OFFSETS, Superblock
from kvfsd.pool.poolfile import MediumEntry
from kvfsd.ports import Offload

SEGMENTS_PER_MEDIUM: Final = 64
"""Default: a medium is cut into this many segments, as far as the limits of a segment's size allow."""
WEIGHT_UNIT_BYTES: Final = limits.MEDIUM_MIN_BYTES
"""Default weight of a medium in placement: one for each of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediumSpec:
    """A medium that a pool is to be made with.

    `size_bytes`: a new sparse file of that size is made at `path`; None: `path` is an existing empty file or a block
    device, used as large as it is. `weight`: its share in placement, None = in proportion to its size.
    `failure_domain`: replicas go to different ones; empty = its own.
    """

    path: Path
    size_bytes: int | None = None
    weight: int | None = None
    failure_domain: str = ""


class MediaDriver(Protocol):
    """Opens media; simulations bring their own."""

    def create(self, path: Path, size_bytes: int) -> Medium:
        """A new medium; ExistsError."""
        ...

    def open(self, path: Path, *, read_only: bool) -> Medium:
        """An existing one; MediumUnavailableError, PoolBusyError."""
        ...


class FileMedia:
    """Files and block devices."""

    def __init__(self, offload: Offload) -> None:
        self._offload = offload

    def create(self, path: Path, size_bytes: int) -> Medium:
        """A new sparse file."""
        return FileMedium.create(path, size_bytes, self._offload)

    def open(self, path: Path, *, read_only: bool) -> Medium:
        """An existing file or block device."""
        return FileMedium.open(path, self._offload, read_only=read_only)


@dataclass(frozen=True, slots=True)
class PoolMedium:
    """An open medium of a pool, with the superblock that says where its segments are."""

    medium: Medium
    found: FoundSuperblock

    @property
    def superblock(self) -> Superblock:
        """Its newest superblock."""
        return self.found.superblock


def default_segment_bytes(medium_bytes: int) -> int:
    """A 64th of the medium, 4 to 64 MiB, a multiple of 4 KiB."""
    wanted = max(limits.SEGMENT_MIN_BYTES, min(limits.SEGMENT_MAX_BYTES, medium_bytes // SEGMENTS_PER_MEDIUM))
    return wanted - wanted % limits.RECORD_ALIGN_BYTES


def check_specs(specs: Sequence[MediumSpec], replicas: int) -> None:
    """InvalidArgumentError unless a pool can be made of `specs`."""
    if not 1 <= len(specs) <= limits.MEDIA_PER_POOL_MAX:
        raise InvalidArgumentError(f"a pool has 1 to {limits.MEDIA_PER_POOL_MAX} media, {len(specs)} are given")
    if not 1 <= replicas <= min(len(specs), limits.REPLICAS_MAX):
        raise InvalidArgumentError(
            f"{replicas} replicas: want 1 to {limits.REPLICAS_MAX}, and at most one for each of {len(specs)} media"
        )
    if len({spec.path.resolve() for spec in specs}) != len(specs):
        raise InvalidArgumentError("the same path is given for two media")
    for spec in specs:
        if spec.size_bytes is not None:
            _check_size(spec.path, spec.size_bytes)
        if spec.weight is not None and not 1 <= spec.weight < 1 << 32:
            raise InvalidArgumentError(f"medium {spec.path}: weight {spec.weight}: want 1 to 2^32-1")


async def make_medium(
    driver: MediaDriver, spec: MediumSpec, identity: MediumIdentity, undo: contextlib.AsyncExitStack
) -> PoolMedium:
    """Create or open, and format, one medium; `undo` gets what takes that back, and closes it in any case."""
    path = spec.path.absolute()
    if spec.size_bytes is None:
        medium = driver.open(path, read_only=False)
        undo.push_async_callback(medium.aclose)
        _check_size(path, medium.size_bytes)
    else:
        medium = driver.create(path, spec.size_bytes - spec.size_bytes % limits.RECORD_ALIGN_BYTES)
        undo.callback(path.unlink, missing_ok=True)
        undo.push_async_callback(medium.aclose)
    superblock = Superblock(
        pool=identity.pool,
        medium=identity.medium,
        medium_index=identity.index,
        size_bytes=medium.size_bytes,
        segment_bytes=identity.segment_bytes or default_segment_bytes(medium.size_bytes),
        weight=spec.weight or max(1, medium.size_bytes // WEIGHT_UNIT_BYTES),
        failure_domain=spec.failure_domain,
        replicas=identity.replicas,
    )
    found = await format_medium(medium, superblock)
    undo.push_async_callback(_unformat, medium)
    return PoolMedium(medium, found)


@dataclass(frozen=True, slots=True)
class MediumIdentity:
    """Who a medium is; `segment_bytes` None = the default for its size; `replicas` are those of its pool."""

    pool: bytes
    medium: bytes
    index: int
    segment_bytes: int | None
    replicas: int


async def open_media(
    driver: MediaDriver, pool: bytes, entries: Sequence[MediumEntry], *, read_only: bool
) -> tuple[dict[int, PoolMedium], list[str]]:
    """Every medium of the pool by index, and warnings; whatever was opened is closed again if one is refused.

    Raises:
        MediumUnavailableError: a medium is missing or does not answer; the text says what can be done.
        FormatError: it is no medium, another pool's, another one of this pool, damaged, or too new.
        NotPermittedError: it may only be read by this version.
        PoolBusyError: another process has it open.
    """
    opened: dict[int, PoolMedium] = {}
    warnings: list[str] = []
    async with contextlib.AsyncExitStack() as undo:
        for entry in entries:
            medium = _open_one(driver, entry, read_only=read_only)
            undo.push_async_callback(medium.aclose)
            found = await read_superblock(medium)
            check_identity(medium.name, found.superblock, pool, entries, entry)
            if found.superblock.read_only and not read_only:
                raise NotPermittedError(f"medium {medium.name} uses features of a newer kvfs: open the pool read-only")
            if found.damage:
                found = await _repair(medium, found, warnings, read_only=read_only)
            opened[entry.index] = PoolMedium(medium, found)
        undo.pop_all()
    return opened, warnings


def _open_one(driver: MediaDriver, entry: MediumEntry, *, read_only: bool) -> Medium:
    try:
        return driver.open(Path(entry.path), read_only=read_only)
    except MediumUnavailableError as error:
        raise MediumUnavailableError(
            f"medium {entry.index} of the pool is missing: {error}; bring it back, or if it lies elsewhere now: "
            f"kvfsctl pool relocate POOL {entry.index} PATH; if it is lost, see docs/OPERATIONS.md, a lost medium"
        ) from error


def check_identity(
    name: str, superblock: Superblock, pool: bytes, entries: Sequence[MediumEntry], entry: MediumEntry
) -> None:
    """FormatError unless `superblock` is that of `entry`; the text says whose it is, if it is one of `entries`."""
    if superblock.pool != pool:
        raise FormatError(
            f"medium {name} is foreign: it belongs to pool {uuid.UUID(bytes=superblock.pool)}, "
            f"not to {uuid.UUID(bytes=pool)}"
        )
    found = uuid.UUID(bytes=superblock.medium)
    if found == uuid.UUID(hex=entry.uuid) and superblock.medium_index == entry.index:
        return
    others = [other for other in entries if uuid.UUID(hex=other.uuid) == found]
    if others:
        raise FormatError(
            f"medium {name} is swapped: it is medium {others[0].index} of the pool, expected at {others[0].path}; "
            f"medium {entry.index} was expected here"
        )
    raise FormatError(
        f"medium {name} is of this pool, but is not its medium {entry.index} ({entry.uuid}): it is {found}"
    )


async def _repair(medium: Medium, found: FoundSuperblock, warnings: list[str], *, read_only: bool) -> FoundSuperblock:
    if read_only:
        warnings.append(f"{found.damage}; the other slot is good, this one is left as it is")
        return found
    repaired = await write_superblock(medium, found, found.superblock)
    warnings.append(f"{found.damage}; written again from the other slot")
    return dataclasses.replace(repaired, damage="")


async def _unformat(medium: Medium) -> None:
    """Wipe the superblocks of a medium whose pool could not be finished, so that it counts as empty again."""
    for offset in SLOT_OFFSETS:
        await medium.write(offset, memoryview(bytes(SLOT_BYTES)))


def _check_size(path: Path, size_bytes: int) -> None:
    if size_bytes < limits.MEDIUM_MIN_BYTES:
        raise InvalidArgumentError(
            f"medium {path}: {size_bytes} bytes are too small; a medium has at least {limits.MEDIUM_MIN_BYTES}"
        )


def refuse_existing(specs: Sequence[MediumSpec]) -> None:
    """ExistsError if a medium that is to be made is there already: said before anything is made."""
    for spec in specs:
        if spec.size_bytes is not None and spec.path.exists():
            raise ExistsError(f"medium {spec.path}: exists already; leave its size out to use it as it is")

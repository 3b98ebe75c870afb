"""`kvfsctl rebuild`: a new catalog, and where the state directory is lost a new pool file, from media and keys."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvfs.errors import ConfigError, ExistsError, KvfsError
from kvfs_tools.media_records import MediaSource
from kvfs_tools.pool_from_media import make_directory, pool_file_of
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.rows import MediumRow
from kvfsd.catalog.schema import MediumState
from kvfsd.cli.keysource import kek_source
from kvfsd.cli.options import KekOptions
from kvfsd.cli.output import printable
from kvfsd.crypto.kek import KekSource, source_of, sync_directory
from kvfsd.crypto.keyfile import SlotKeyFile
from kvfsd.metalog.rebuild import RebuildReport, rebuild
from kvfsd.pool import pool as pools
from kvfsd.pool import poolfile
from kvfsd.pool.poolfile import PoolFile
from kvfsd.pool.poollock import PoolLock
from kvfsd.pool.poolmedia import FileMedia, PoolMedium, open_media
from kvfsd.ports import Ports

REBUILT_NAME: Final = "catalog.db.rebuilt"
_SUFFIXES: Final = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be rebuilt: the catalog of the pool in `directory` (absolute); with `media`, its pool file too.

    `key_directory`: where the key file lies, if `media` are given; None = where a new pool would have it.
    """

    directory: Path
    kek: KekOptions
    force: bool = False
    media: tuple[Path, ...] = ()
    key_directory: Path | None = None


async def rebuild_pool(wanted: Wanted) -> dict[str, Any]:
    """Make the catalog anew from the media, which are only read; the old one is kept -> what was found.

    Raises:
        ExistsError: the catalog opens, and not `force`; or media are given for a directory that has its pool file.
        PoolBusyError: the pool is open in another process.
        KvfsError: no medium or no key, or no system record opens; all is then as it was.
    """
    ports = Ports()
    with contextlib.ExitStack() as undo:
        file, source, warnings = await _pool_file(wanted, ports, undo)
        with contextlib.closing(_Lock(wanted.directory)):
            found = await _rebuild_locked(wanted, file, source, ports)
        undo.pop_all()
    return found | {"warnings": warnings + found["warnings"]}


class _Lock:
    """The pool's lock, to be closed."""

    def __init__(self, directory: Path) -> None:
        self.close = PoolLock.acquire(directory).release


async def _pool_file(wanted: Wanted, ports: Ports, undo: contextlib.ExitStack) -> tuple[PoolFile, KekSource, list[str]]:
    """The pool file, read, or made from the media named; it is not written yet."""
    source = kek_source(wanted.kek)
    if not wanted.media:
        file, warnings = poolfile.read(wanted.directory)
        return file, source or source_of(file.kek.kind, file.kek.name), warnings
    if source is None:
        raise ConfigError("with --medium, name the pool's key: --kek FILE, --passphrase-file or --credential")
    file = await pool_file_of(FileMedia(ports.offload), wanted.directory, wanted.media, source, wanted.key_directory)
    make_directory(wanted.directory, undo)
    return file, source, []


async def _rebuild_locked(wanted: Wanted, file: PoolFile, source: KekSource, ports: Ports) -> dict[str, Any]:
    directory = wanted.directory
    _refuse_good_catalog(directory / pools.CATALOG_NAME, force=wanted.force)
    key_file = SlotKeyFile(Path(file.key_directory), file.pool, ports.randomness)
    slot_keys = key_file.load(source, repair=False).candidates
    async with contextlib.AsyncExitStack() as close:
        media, warnings = await open_media(
            FileMedia(ports.offload), file.pool, pools.located(directory, file), read_only=True
        )
        for one in media.values():
            close.push_async_callback(one.medium.aclose)
        records = MediaSource(file.pool, media, slot_keys, ports)
        report = await _build(directory / REBUILT_NAME, records, media)
    if wanted.media:
        poolfile.write(directory, file)
        warnings += pools.key_warnings(source, key_file, directory, file)
    kept = _exchange(directory)
    return _found(report) | {
        "uuid": file.uuid,
        "damages": records.damages,
        "kept": kept,
        "warnings": warnings + key_file.warnings,
    }


def _found(report: RebuildReport) -> dict[str, Any]:
    found = dataclasses.asdict(report)
    found["problems"] = [f"{problem.kind}: {problem.detail}" for problem in report.problems]
    found["complete"] = not (report.log_gaps or report.objects_lost or report.problems)
    return found


def _refuse_good_catalog(path: Path, *, force: bool) -> None:
    """ExistsError if there is a catalog that opens, and not `force`."""
    if force:
        return
    try:
        catalog = Catalog.open(path, read_only=True)
    except KvfsError:
        return
    catalog.database.abandon()
    raise ExistsError(f"{path} opens; kvfsctl check says what is wrong with it, --force replaces it")


async def _build(path: Path, source: MediaSource, media: Mapping[int, PoolMedium]) -> RebuildReport:
    _remove(path, _SUFFIXES)  # of a rebuild that was cut off
    catalog = Catalog.create(path, source.pool)
    try:
        with catalog.transaction():
            for row in _media_rows(media):
                catalog.media.add(row)
        report = await rebuild(catalog, source, source.unlock)
    except BaseException:
        catalog.database.abandon()
        _remove(path, _SUFFIXES)
        raise
    catalog.close()
    return report


def _media_rows(media: Mapping[int, PoolMedium]) -> Iterator[MediumRow]:
    for index, one in sorted(media.items()):
        block = one.superblock
        yield MediumRow(
            medium=index,
            uuid=block.medium,
            path=one.medium.name,
            weight=block.weight,
            failure_domain=block.failure_domain,
            state=MediumState.ACTIVE,
        )


def _remove(path: Path, suffixes: tuple[str, ...]) -> None:
    for suffix in suffixes:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _exchange(directory: Path) -> str:
    """Put the new catalog in place -> where the old one is kept, empty if there was none."""
    current, kept = directory / pools.CATALOG_NAME, ""
    if current.exists():
        kept = f"{current}.before-{time.time_ns()}"
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{current}{suffix}", f"{kept}{suffix}")
    else:
        _remove(current, _SUFFIXES[1:])  # of a catalog that is gone: they would be taken for the new one's
    os.rename(directory / REBUILT_NAME, current)
    sync_directory(directory)
    return kept


def print_report(found: dict[str, Any]) -> None:
    """The report for people."""
    for key in ("log_gaps", "damages", "problems"):
        for line in found[key]:
            print(f"{key.removesuffix('s').replace('_', ' ')}: {printable(line)}")
    print(
        f"rebuilt {found['objects']} objects in {found['blocks']} blocks of {found['tenants']} tenants from "
        f"{found['records']} records in {found['segments']} segments; {found['objects_lost']} objects lost"
    )
    if found["kept"]:
        print(f"the catalog that was there is kept as {printable(found['kept'])}")

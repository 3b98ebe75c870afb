"""Making a pool from the words of a command line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfs.errors import ConfigError
from kvfs_tools.administration import write_to_media
from kvfsd.cli.keysource import kek_source
from kvfsd.cli.options import KekOptions
from kvfsd.crypto.kek import KekSource, RawKeyFile
from kvfsd.pool.poolmaking import PoolPlan, create_pool, default_medium
from kvfsd.pool.poolmedia import MediumSpec
from kvfsd.pool.tenants import NAME as TENANT_NAME
from kvfsd.ports import SystemRandomness
from kvfsd.units import parse_size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPool:
    """What is to be made; sizes in bytes."""

    directory: Path
    media: list[MediumSpec]
    replicas: int
    segment_bytes: int | None
    key_directory: Path | None
    kek: KekOptions
    tenants: tuple[str, ...]


def parse_media(directory: str, words: list[str], default_bytes: int) -> list[MediumSpec]:
    """The media named by `--medium`, or the default one of `default_bytes` in the pool's own directory.

    Raises:
        ConfigError: a medium's words are wrong; the text names them.
    """
    if not words:
        return [default_medium(Path(os.path.abspath(directory)), default_bytes)]
    return [_parse_medium(word) for word in words]


def _parse_medium(word: str) -> MediumSpec:
    path, *settings = word.split(",")
    if not path:
        raise ConfigError(f"--medium {word!r} names no path")
    size_bytes: int | None = None
    weight: int | None = None
    domain = ""
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key == "size" and equals:
            size_bytes = parse_size_bytes(value, f"--medium {path}: size")
        elif key == "weight" and value.isascii() and value.isdecimal():
            weight = int(value[:20])
        elif key == "domain" and value:
            domain = value
        else:
            raise ConfigError(f"--medium {path}: {setting!r} is none of size=SIZE, weight=COUNT, domain=NAME")
    return MediumSpec(path=Path(path).absolute(), size_bytes=size_bytes, weight=weight, failure_domain=domain)


async def create(wanted: NewPool) -> dict[str, Any]:
    """Make the pool and its tenants -> uuid, directory, kek (what to open it with), warnings.

    Raises:
        ConfigError: no key is named, or a key file cannot be made.
        KvfsError: what `create_pool` and `TenantRegistry.create` raise.
    """
    _check_tenant_names(wanted.tenants)
    source, made_key = _source(wanted.kek)
    plan = PoolPlan(
        media=wanted.media,
        replicas=wanted.replicas,
        segment_bytes=wanted.segment_bytes,
        key_directory=wanted.key_directory,
    )
    try:
        pool = await create_pool(wanted.directory, plan, source)
    except BaseException:
        if made_key is not None:
            made_key.unlink(missing_ok=True)
        raise
    try:
        for name in wanted.tenants:
            pool.tenants.create(name, uid=os.geteuid(), gid=os.getegid())
        await write_to_media(pool)
        made = {"uuid": pool.file.uuid, "directory": str(wanted.directory), "kek": source.description}
        return made | {"warnings": list(pool.warnings)}
    finally:
        await pool.aclose()


def _check_tenant_names(names: tuple[str, ...]) -> None:
    """Before anything is made, because a pool whose second tenant was refused would have to be taken back."""
    for name in names:
        if not TENANT_NAME.fullmatch(os.fsencode(name)) or names.count(name) > 1:
            raise ConfigError(f"--tenant {name!r}: want 1 to 64 of A-Z a-z 0-9 . _ -, each once")


def _source(options: KekOptions) -> tuple[KekSource, Path | None]:
    """The key source, and the key file if it had to be made."""
    source = kek_source(options)
    if source is None:
        raise ConfigError("no key is named; give --kek FILE (made if missing), --passphrase-file or --credential")
    path = source.path
    if options.kek and path is not None and not os.path.lexists(path):
        return RawKeyFile.create(path, SystemRandomness()), path
    return source, None

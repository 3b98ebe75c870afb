"""Run an administrative method where the pool is open: in the mount that has it, else in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import trio

from kvfs.errors import KvfsError
from kvfsd.admin import admin_client, mounts
from kvfsd.admin.admin import Methods
from kvfsd.admin.admin_methods import PoolAdmin
from kvfsd.cli import output
from kvfsd.cli.keysource import kek_source
from kvfsd.cli.options import KekOptions
from kvfsd.pool.pool import Pool
from kvfsd.service.service import Service


def administer(directory: str, options: KekOptions, method: str, **params: Any) -> Any:
    """The result of `method` of `kvfsd.admin.admin_methods` on the pool in `directory`.

    A live mount of the pool runs it if there is one (it has the keys already); otherwise the pool is opened here.

    Raises:
        KvfsError: what the method raises, and what `Pool.open` raises.
    """
    live = mounts.live_mount_of_pool(os.path.realpath(directory))
    if live is not None:
        return admin_client.call(live.admin_socket, method, params)
    return trio.run(_run_here, Path(directory), options, method, params)


async def write_to_media(pool: Pool) -> None:
    """Put tenants and the metadata log of an open pool on its media, as a mount does.

    Otherwise a rebuild before the next mount would not know of them, or bring back what was deleted. The change itself
    is in the catalog already: if the media fail, that is a warning, and the next mount tries again.
    """
    try:
        async with Service.open(pool):
            pass
    except KvfsError as error:
        output.warn("kvfsctl", f"warning: done, but not on the media yet: {error}")


async def _run_here(directory: Path, options: KekOptions, method: str, params: dict[str, Any]) -> Any:
    pool = await Pool.open(directory, kek_source(options))
    try:
        methods = Methods()
        PoolAdmin(pool).register(methods)
        result = msgspec.to_builtins(await methods.run(method, params))
        await write_to_media(pool)
        return result
    finally:
        await pool.aclose()

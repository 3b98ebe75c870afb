"""`kvfsctl tenant shred`: on a pool that nobody has open, so that the tenant is not in use."""

from __future__ import annotations

from pathlib import Path

from kvfs.errors import NotEmptyError
from kvfsd.cli.keysource import kek_source
from kvfsd.cli.options import KekOptions
from kvfsd.crypto.shredding import shred_tenant
from kvfsd.pool.pool import Pool
from kvfsd.service.service import Service


async def shred(directory: Path, options: KekOptions, name: str, *, force: bool) -> None:
    """Shred the tenant `name` of the pool in `directory`.

    Raises:
        NotFoundError: no such tenant.
        NotEmptyError: it has objects, and not `force`.
        KvfsError: what `Pool.open` and `shred_tenant` raise.
    """
    pool = await Pool.open(directory, kek_source(options))
    try:
        tenant = pool.tenants.show(name)
        if tenant.used_objects and not force:
            raise NotEmptyError(f"tenant {name} has {tenant.used_objects} objects; --force shreds them, too")
        async with Service.open(pool) as service:
            await shred_tenant(pool, service.metadata_log, tenant.number)
    finally:
        await pool.aclose()

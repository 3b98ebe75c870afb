"""The service on a real pool: what is stored comes back, after a reopening and after a kill; quotas are exact."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from serving import TENANT, TRANSPORTS, Host, killed_at_end, make_pool, reopen_pool, serving

from kvfs import limits
from kvfs.errors import NotFoundError

MIB = limits.MIB


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_file_comes_back_in_the_same_service_after_reopening_and_after_a_kill(
    tmp_path: Path, transport: str
) -> None:
    data = os.urandom(2 * MIB + 4097)
    pool = await make_pool(tmp_path)
    async with serving(pool) as service:
        host = Host(TRANSPORTS[transport](service.attach(TENANT)))
        attributes = await host.store(b"block.bin", data)
        assert attributes.size == attributes.stored_bytes == len(data)
        assert await host.load(b"block.bin") == data
        await host.pair.aclose()
    async with killed_at_end(await reopen_pool(tmp_path)) as service:
        host = Host(TRANSPORTS[transport](service.attach(TENANT)))
        assert await host.load(b"block.bin") == data
        await host.store(b"second", data[:5])
        ino = await host.allocate()
        await host.write_block(ino, 0, data[:100])
    async with serving(await reopen_pool(tmp_path)) as service:
        host = Host(TRANSPORTS[transport](service.attach(TENANT)))
        assert await host.load(b"block.bin") == data
        assert await host.load(b"second") == data[:5]
        with pytest.raises(NotFoundError):
            await host.read_block(ino)
        tenant = service.pool.tenants.show(TENANT)
        assert (tenant.used_bytes, tenant.used_objects) == (len(data) + 5, 2)

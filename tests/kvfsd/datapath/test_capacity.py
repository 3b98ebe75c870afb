"""What statvfs shows of a pool: it follows every store and unlink at once, and what it promises can be written."""

from __future__ import annotations

import os
from pathlib import Path

from kvfs import limits
from kvfs.commands import FilesystemUsage, StatFilesystem, Unlink
from kvfsd.datapath.capacity import free_bytes
from kvfsd.service.inprocess import InProcessQueuePair
from tests.kvfsd.serving import TENANT, Host, Layout, make_pool, serving

MIB = limits.MIB


async def usage(host: Host) -> FilesystemUsage:
    result = (await host.submit(StatFilesystem())).result
    assert isinstance(result, FilesystemUsage)
    return result


async def test_free_space_follows_stores_unlinks_and_what_is_being_written(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path)) as service:
        host = Host(InProcessQueuePair(service.attach(TENANT)))
        empty = await usage(host)
        assert 0 < empty.pool_free_bytes <= empty.pool_bytes < 64 * MIB
        await host.store(b"file", bytes(2 * MIB))
        await host.write_block(await host.allocate(), 0, bytes(MIB))
        after = await usage(host)
        assert 3 * MIB <= empty.pool_free_bytes - after.pool_free_bytes <= 3 * MIB + 8192
        await host.submit(Unlink(1, b"file", False))
        await host.pair.aclose()
        again = Host(InProcessQueuePair(service.attach(TENANT)))
        assert (await usage(again)).pool_free_bytes == empty.pool_free_bytes


async def test_most_of_what_is_promised_can_be_written(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path)) as service:
        host = Host(InProcessQueuePair(service.attach(TENANT)))
        promised = (await usage(host)).pool_free_bytes // MIB - 9  # three segments are the metadata log's
        data = os.urandom(MIB)
        for number in range(promised):
            await host.store(b"%d" % number, data)
        assert (await usage(host)).pool_free_bytes < 10 * MIB


async def test_replicas_are_taken_off(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path, Layout(media=2, replicas=2))) as service:
        one = await usage(Host(InProcessQueuePair(service.attach(TENANT))))
        assert one.pool_bytes < 64 * MIB


def test_free_space_is_never_negative() -> None:
    assert free_bytes(10, 5, 3) == 0

"""What a power loss took from the media, while the catalog believes it to be there, is made good."""

from __future__ import annotations

from pathlib import Path

import trio
from serving import TENANT, Host, killed_at_end, make_pool, reopen_pool, serving

from kvfs.commands import Unlink
from kvfsd.metalog import powerloss
from kvfsd.ondisk.segment import HEADER_BYTES, SegmentHeader, SegmentKind
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service


async def zero(service: Service, offset: int, length: int) -> None:
    await service.pool.media[0].medium.write(offset, memoryview(bytes(length)))


async def repaired(service: Service) -> int:
    return await powerloss.repair(service.catalog, service.store, service.metadata_log)


def log_generations(service: Service) -> list[int]:
    return [record.generation for record in service.catalog.log_rows.records_after(1, 0)]


async def test_nothing_is_missing_after_a_kill(tmp_path: Path) -> None:
    async with killed_at_end(await make_pool(tmp_path)) as service:
        await Host(InProcessQueuePair(service.attach(TENANT))).store(b"file", b"content")
        await service.metadata_log.drain()
        before = log_generations(service)
    async with killed_at_end(await reopen_pool(tmp_path)) as service:
        assert await repaired(service) == 0
        after = log_generations(service)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1, "one more record, so that the chain goes on from what the catalog knows"


async def test_a_segment_header_that_is_missing_is_written_again(tmp_path: Path) -> None:
    async with killed_at_end(await make_pool(tmp_path)) as service:
        await Host(InProcessQueuePair(service.attach(TENANT))).store(b"file", b"content")
        superblock = service.pool.media[0].superblock
        number = next(row.segment for row in service.catalog.segments.all() if row.kind == SegmentKind.DATA)
        await zero(service, superblock.segment_offset(number), HEADER_BYTES)
    async with killed_at_end(await reopen_pool(tmp_path)) as service:
        assert await repaired(service) == 1
        stored = bytearray(HEADER_BYTES)
        await service.pool.media[0].medium.read_into(superblock.segment_offset(number), memoryview(stored))
        assert SegmentHeader.parse(stored, "test").segment == number
        assert await repaired(service) == 0


async def test_a_log_without_one_of_its_records_is_written_anew(tmp_path: Path) -> None:
    async with killed_at_end(await make_pool(tmp_path)) as service:
        host = Host(InProcessQueuePair(service.attach(TENANT)))
        for name in (b"first", b"second"):
            await host.store(name, b"content")
            await service.metadata_log.drain()
        await host.submit(Unlink(1, b"first", False))
        await service.metadata_log.drain()
        lost = service.catalog.log_rows.records_after(1, 0)[-1]
        space = service.store.spaces[0]
        await zero(service, space.byte_offset(lost.locations[0], 4096), 4096)
    async with killed_at_end(await reopen_pool(tmp_path)) as service:
        assert await repaired(service) == 1
        assert log_generations(service)[0] > lost.generation
        assert await repaired(service) == 0


async def test_a_service_repairs_by_itself_after_a_kill_and_not_after_a_clean_end(
    tmp_path: Path, monkeypatch, autojump_clock
) -> None:
    calls: list[Service] = []
    repair = powerloss.repair

    async def counted(*arguments) -> int:
        calls.append(arguments)
        return await repair(*arguments)

    monkeypatch.setattr("kvfsd.metalog.powerloss.repair", counted)
    for name, expected in ((b"clean", 0), (b"killed", 0), (b"after", 1)):
        pool = await (make_pool(tmp_path) if name == b"clean" else reopen_pool(tmp_path))
        context = killed_at_end(pool) if name == b"killed" else serving(pool)
        async with context as service:
            await Host(InProcessQueuePair(service.attach(TENANT))).store(name, b"content")
            await trio.sleep(1)
        assert len(calls) == expected, name

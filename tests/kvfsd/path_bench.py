"""A service on faulty media with one session, for tests of the data paths."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvfs import limits
from kvfsd.datapath import pipeline
from kvfsd.datapath.stages import ReadRequest, Target, WriteRequest
from kvfsd.media.faulty import FaultyMedium
from kvfsd.pool.pool import Pool
from kvfsd.pool.poolmedia import FileMedia
from kvfsd.ports import InlineOffload
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from kvfsd.service.session import Session
from tests.kvfsd.serving import TENANT, Host, Layout, make_pool, serving


class FaultyMedia(FileMedia):
    """Opens every medium behind a FaultyMedium that is kept in `opened`."""

    def __init__(self) -> None:
        super().__init__(InlineOffload())
        self.opened: list[FaultyMedium] = []

    def create(self, path: Path, size_bytes: int) -> FaultyMedium:
        self.opened.append(FaultyMedium(super().create(path, size_bytes), seed=1))
        return self.opened[-1]


class Bench:
    """A service with one session and what the stages need."""

    def __init__(self, service: Service, session: Session, media: list[FaultyMedium]) -> None:
        self.service = service
        self.session = session
        self.path = service.path
        self.media = media
        self.host = Host(InProcessQueuePair(session))

    async def write_request(self, data: bytes, block: int = 0) -> WriteRequest:
        ino = await self.host.allocate()
        target = Target(self.session.tenant, self.session.attachment, ino, block)
        return WriteRequest(target, data, self.session.reservations.for_write(ino))

    def read_request(self, target: Target, *, staged: bool = True) -> ReadRequest:
        return ReadRequest(target, staged, self.session.reservations.is_fresh(target.ino))

    async def read(self, target: Target) -> bytes:
        verified = await pipeline.read_block(self.path, self.read_request(target))
        assert verified is not None
        data = bytes(verified.plaintext)
        pipeline.release_plaintext(self.path, verified)
        return data

    def holds_nothing(self) -> bool:
        tenant = self.session.tenant
        unsettled = sum(
            segment.unsettled + segment.pins
            for space in self.service.store.spaces.values()
            for segment in space.in_use.values()
        )
        return (
            self.path.scheduler.running == 0
            and self.path.scheduler.waiting == 0
            and self.service.admission.reserved_bytes(tenant) == self.staged_bytes()
            and unsettled == 0
        )

    def staged_bytes(self) -> int:
        return self.service.catalog.blocks.staged_bytes(self.session.tenant)


async def _bench(pool: Pool, media: list[FaultyMedium]) -> AsyncIterator[Bench]:
    async with serving(pool) as service:
        yield Bench(service, service.attach(TENANT), media)
        for medium in media:
            medium.set_faults(())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    driver = FaultyMedia()
    pool = await make_pool(tmp_path, Layout(quota_bytes=8 * limits.MIB), driver=driver)
    async for one in _bench(pool, driver.opened):
        yield one


@pytest.fixture
async def mirrored(tmp_path: Path) -> AsyncIterator[Bench]:
    driver = FaultyMedia()
    pool = await make_pool(tmp_path, Layout(media=2, replicas=2), driver=driver)
    async for one in _bench(pool, driver.opened):
        yield one

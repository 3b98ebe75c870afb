"""The layout guard: another config.json makes the older blocks of vLLM's directories misses, at once and for good."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from kvfs import retention
from kvfs.commands import CloseObject, GetXattr, MakeNode, ObjectChanged, OpenObject, ReadDirectory, Rename, SetXattr
from kvfs.errors import FormatError, NotFoundError, NotPermittedError
from kvfsd.catalog.check import check
from kvfsd.pool.tenants import TenantChange
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.layouts import Layout
from kvfsd.service.service import Service
from tests.kvfsd.serving import TENANT, Host, killed_at_end, make_pool, reopen_pool, serving

BASE = b"org_model_0123456789ab"


class Engine(Host):
    """What vLLM's fs tier does: a base directory with a config, blocks in a rank's directory beside it."""

    def __init__(self, service: Service) -> None:
        super().__init__(InProcessQueuePair(service.attach(TENANT)))
        self.service = service
        self.now_ns = service.pool.ports.clock.wall_ns

    async def mkdir(self, name: bytes, parent: int = 1) -> int:
        return (await self.submit(MakeNode(parent, name, 0o040755, 0, 0, b""))).result.attributes.ino

    async def make(self) -> None:
        self.base = await self.mkdir(BASE)
        self.rank = await self.mkdir(BASE + b"_r0")
        self.deep = await self.mkdir(b"ab_g0", await self.mkdir(b"0ab", self.rank))

    async def find(self) -> None:
        self.base = (await self.lookup(BASE)).ino
        self.rank = (await self.lookup(BASE + b"_r0")).ino
        self.deep = (await self.lookup(b"ab_g0", (await self.lookup(b"0ab", self.rank)).ino)).ino

    async def configure(self, content: bytes) -> None:
        await self.store(b"config.tmp", content, parent=self.base)
        await self.submit(Rename(self.base, b"config.tmp", self.base, b"config.json", 0, keep_open=False))

    async def block(self, name: bytes) -> int:
        return (await self.store(name, b"KV of " + name, parent=self.deep)).ino

    async def misses(self, name: bytes) -> bool:
        try:
            await self.lookup(name, self.deep)
        except NotFoundError:
            return True
        return False

    async def listed(self) -> set[bytes]:
        return {entry.name for entry in (await self.submit(ReadDirectory(self.deep, 0, 100))).result.entries}

    async def layout(self) -> bytes:
        return (await self.submit(GetXattr(self.base, retention.LAYOUT))).result.value


async def settled() -> None:
    for _ in range(200):
        await trio.lowlevel.checkpoint()


async def swept(service: Service) -> None:
    with trio.fail_after(10):
        while service.guard.fences or service.guard._asked:  # noqa: ASYNC110 - nobody is told when a sweep ends
            await trio.sleep(0.01)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with serving(await make_pool(tmp_path)) as service:
        engine = Engine(service)
        await engine.make()
        yield engine
    assert service.metrics.counters.internal_errors == 0


async def test_another_layout_makes_older_blocks_misses_and_the_same_one_does_not(engine: Engine) -> None:
    await engine.configure(b'{"tp_size": 1}')
    await swept(engine.service)
    first = await engine.layout()
    await engine.block(b"1.bin")
    await engine.configure(b'{"tp_size": 1}')
    await swept(engine.service)
    assert not await engine.misses(b"1.bin")
    assert await engine.layout() == first
    await engine.store(b"other.txt", b"stays", parent=engine.deep)
    await engine.configure(b'{"tp_size": 2}')
    assert await engine.misses(b"1.bin"), "from the commit on, before anything was read"
    assert await engine.listed() == {b"other.txt"}
    await engine.block(b"2.bin")
    assert not await engine.misses(b"2.bin")
    await swept(engine.service)
    assert await engine.misses(b"1.bin")
    assert not await engine.misses(b"2.bin")
    assert await engine.listed() == {b"other.txt", b"2.bin"}
    counters = engine.service.metrics.counters
    assert (counters.layout_changes, counters.fenced_objects) == (1, 1)
    assert ObjectChanged(0) in engine.pair.take_events()
    assert (await engine.lookup(b"config.json", engine.base)).size == 14
    await engine.configure(b'{"tp_size": 1}')
    await swept(engine.service)
    assert await engine.misses(b"2.bin"), "back again is another layout, too"


async def test_a_config_that_is_rewritten_in_place_counts(engine: Engine) -> None:
    ino = (await engine.store(b"config.json", b"one", parent=engine.base)).ino
    await swept(engine.service)
    await engine.block(b"1.bin")
    await engine.write_block(ino, 0, b"two")
    await engine.commit(ino, 3)
    assert await engine.misses(b"1.bin")
    await swept(engine.service)
    assert engine.service.metrics.counters.fenced_objects == 1


async def test_open_blocks_are_readable_until_they_are_closed_and_not_opened_anew(engine: Engine) -> None:
    await engine.configure(b"one")
    await swept(engine.service)
    ino = await engine.block(b"1.bin")
    other = await engine.block(b"2.bin")
    await engine.submit(OpenObject(ino, serial=1))
    await engine.configure(b"two")
    with pytest.raises(NotFoundError):
        await engine.submit(OpenObject(other))
    await swept(engine.service)
    assert await engine.read_block(ino) == b"KV of 1.bin"
    await engine.submit(CloseObject(ino, 1))
    with pytest.raises(NotFoundError):
        await engine.read_block(ino)


async def test_other_directories_and_tenants_that_do_not_want_it_are_left_alone(engine: Engine) -> None:
    plain = await engine.mkdir(b"my_model")
    await engine.store(b"weights.bin", b"x", parent=plain)
    await engine.store(b"config.json", b"one", parent=plain)
    await engine.configure(b"one")
    await swept(engine.service)
    await engine.block(b"1.bin")
    engine.service.pool.tenants.change(TENANT, TenantChange(layout_guard=False))
    await engine.configure(b"two")
    await engine.store(b"config.json", b"two", parent=plain)
    await settled()
    assert not await engine.misses(b"1.bin")
    assert (await engine.lookup(b"weights.bin", plain)).size == 1
    assert engine.service.metrics.counters.layout_changes == 0


async def test_the_layout_is_read_only(engine: Engine) -> None:
    await engine.configure(b"one")
    await swept(engine.service)
    with pytest.raises(NotPermittedError):
        await engine.submit(SetXattr(engine.base, retention.LAYOUT, b"x", 0))
    assert Layout.of(await engine.layout()).generation == 0
    for value in (b"", b"0" * 64, b"0" * 64 + b" x"):
        with pytest.raises(FormatError):
            Layout.of(value)


async def test_a_fence_outlives_a_kill_at_any_moment(tmp_path: Path) -> None:
    pool = await make_pool(tmp_path)
    async with serving(pool) as service:
        engine = Engine(service)
        await engine.make()
        await engine.configure(b"one")
        await swept(service)
        for number in range(40):
            await engine.block(b"%d.bin" % number)
    async with killed_at_end(await reopen_pool(tmp_path)) as service:  # no task runs: nothing is decided
        engine = Engine(service)
        await engine.find()
        await engine.configure(b"two")
        assert await engine.misses(b"1.bin")
    async with killed_at_end(await reopen_pool(tmp_path)) as service:
        engine = Engine(service)
        await engine.find()
        assert await engine.misses(b"1.bin"), "the change is seen at the start, too"
        base, ino = next(iter(service.guard._asked.items()))
        await service.guard._decide(base, ino)
        await service.guard._sweep_directory(base.tenant, engine.deep, 1)
    pool = await reopen_pool(tmp_path)
    assert not check(pool.catalog.database)
    async with serving(pool) as service:
        engine = Engine(service)
        await engine.find()
        assert await engine.misses(b"1.bin")
        assert await engine.listed() == set()
        await swept(service)
        assert service.metrics.counters.fenced_objects == 40
        await engine.block(b"1.bin")
    async with serving(await reopen_pool(tmp_path)) as service:
        engine = Engine(service)
        await engine.find()
        await swept(service)
        assert await engine.listed() == {b"1.bin"}

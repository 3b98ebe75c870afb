"""Real pools in a temporary directory with a service on top, for the tests of the DPU half."""

from __future__ import annotations

import contextlib
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from kvfs import limits
from kvfs.commands import (
    AllocateIno,
    Attributes,
    Commit,
    Found,
    Ino,
    Lookup,
    OpenObject,
    Placement,
    ReadBlock,
    WriteBlock,
)
from kvfs.handshake import FEATURES_KNOWN
from kvfs.queuepair import Buffer, QueuePair
from kvfs.remote import attached
from kvfs.remotelink import Target
from kvfsd.admin.admin import listen
from kvfsd.crypto.kek import RawKeyFile
from kvfsd.pool.pool import Pool
from kvfsd.pool.poolmaking import PoolPlan, create_pool
from kvfsd.pool.poolmedia import MediaDriver, MediumSpec
from kvfsd.pool.tenants import TenantChange
from kvfsd.ports import InlineOffload, Ports, SystemRandomness
from kvfsd.server.server import Server, ServerOptions
from kvfsd.service.inprocess import CodecQueuePair, InProcessQueuePair
from kvfsd.service.service import Service, ServiceOptions

TENANT = "alpha"
OTHER = "beta"
KEY_NAME = "kek"
FILE_MODE = stat.S_IFREG | 0o640
TEST_OPTIONS = ServiceOptions(raise_internal_errors=True, medium_deadline_ms=200)


class SteppingClock:
    """Wall and monotonic time that move only when told to, but always a little, so that no two readings are equal."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000_000_000_000

    def wall_ns(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def monotonic_ns(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def advance_ms(self, milliseconds: int) -> None:
        self.now_ns += milliseconds * 1_000_000


def ports(clock: SteppingClock | None = None) -> Ports:
    return Ports(clock=clock or SteppingClock(), randomness=SystemRandomness(), offload=InlineOffload())


@dataclass(slots=True)
class Layout:
    """How a test's pool is made."""

    media: int = 1
    medium_bytes: int = 64 * limits.MIB
    replicas: int = 1
    quota_bytes: int = 0
    quota_objects: int = 0
    eviction: bool = True
    watermarks: tuple[int, int] = (100, 100)
    """High and low percentage of both tenants: by default nothing goes ahead of need."""


async def make_pool(
    tmp_path: Path, layout: Layout | None = None, *, the_ports: Ports | None = None, driver: MediaDriver | None = None
) -> Pool:
    layout = layout or Layout()
    source = RawKeyFile.create(tmp_path / KEY_NAME, SystemRandomness())
    specs = [
        MediumSpec(path=tmp_path / f"medium-{index}", size_bytes=layout.medium_bytes) for index in range(layout.media)
    ]
    plan = PoolPlan(media=specs, replicas=layout.replicas, key_directory=tmp_path / "keys")
    pool = await create_pool(tmp_path / "pool", plan, source, ports=the_ports or ports(), driver=driver)
    pool.tenants.create(TENANT, quota_bytes=layout.quota_bytes, quota_objects=layout.quota_objects)
    pool.tenants.create(OTHER)
    high, low = layout.watermarks
    for name in (TENANT, OTHER):
        pool.tenants.change(name, TenantChange(high_percent=high, low_percent=low, eviction=layout.eviction))
    return pool


async def reopen_pool(tmp_path: Path, *, the_ports: Ports | None = None, driver: MediaDriver | None = None) -> Pool:
    source = RawKeyFile(tmp_path / KEY_NAME)
    return await Pool.open(tmp_path / "pool", source, ports=the_ports or ports(), driver=driver)


def kill(pool: Pool) -> None:
    """Leave the pool as a killed process would: nothing is written, nothing marked clean."""
    pool.catalog.database.abandon()
    pool._lock.release()


@contextlib.asynccontextmanager
async def serving(pool: Pool, options: ServiceOptions = TEST_OPTIONS) -> AsyncIterator[Service]:
    """A service on `pool`, both closed in order at the end."""
    async with Service.open(pool, options) as service:
        yield service
    await pool.aclose()


@contextlib.asynccontextmanager
async def killed_at_end(pool: Pool, options: ServiceOptions = TEST_OPTIONS) -> AsyncIterator[Service]:
    """A service whose process is killed when the block ends."""
    service = Service(pool, options)
    await service.metadata_log.drain()
    try:
        yield service
    finally:
        with trio.CancelScope(shield=True):
            for one in pool.media.values():
                await one.medium.aclose()
        kill(pool)


TRANSPORTS: dict[str, Callable[..., InProcessQueuePair]] = {"direct": InProcessQueuePair, "codec": CodecQueuePair}
ALL_TRANSPORTS = [*sorted(TRANSPORTS), "socket", "stream"]
"""In process; over a socket with shared slots, and without any optional feature."""


@contextlib.asynccontextmanager
async def listening(service: Service, options: ServerOptions | None = None) -> AsyncIterator[tuple[Server, Path]]:
    """A server on a unix socket -> server and path; drained at the end."""
    with tempfile.TemporaryDirectory(prefix="kvfs-") as directory:  # pytest's own paths are too long for a socket
        path = Path(directory) / "socket"
        server = Server(service, options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run, [listen(path)])
            try:
                yield server, path
            finally:
                with trio.CancelScope(shield=True):
                    await server.drain()


@contextlib.asynccontextmanager
async def host_of(transport: str, service: Service, tenant: str = TENANT) -> AsyncIterator[Host]:
    """A host half at the other end of one of ALL_TRANSPORTS."""
    if transport in TRANSPORTS:
        yield Host(TRANSPORTS[transport](service.attach(tenant)))
        return
    async with (
        listening(service) as (_, path),
        attached(Target(path, tenant, features=FEATURES_KNOWN if transport == "socket" else 0)) as pair,
    ):
        yield Host(pair)


class Host:
    """What a host half does with a queue pair, in a few words."""

    def __init__(self, pair: QueuePair) -> None:
        self.pair = pair
        self.submit = pair.submit
        self.now_ns: Callable[[], int] = lambda: 3

    async def allocate(self) -> int:
        result = (await self.submit(AllocateIno())).result
        assert isinstance(result, Ino)
        return result.ino

    async def write_block(self, ino: int, block: int, data: Buffer) -> None:
        await self.submit(WriteBlock(ino, block), data)

    async def commit(
        self, ino: int, size: int, name: bytes | None = None, *, base: int = 0, parent: int = 1, keep_open: bool = False
    ) -> Attributes:
        entry = Placement(parent, name) if name is not None else None
        command = Commit(
            ino=ino,
            entry=entry,
            size=size,
            base_limit_bytes=base,
            mode=FILE_MODE,
            uid=1000,
            gid=1000,
            atime_ns=1,
            mtime_ns=2,
            ctime_ns=self.now_ns(),
            xattrs=(),
            keep_open=keep_open,
        )
        result = (await self.submit(command)).result
        assert isinstance(result, Found)
        return result.attributes

    async def store(self, name: bytes, data: bytes, parent: int = 1) -> Attributes:
        """A whole new file."""
        ino = await self.allocate()
        view = memoryview(data)
        for start in range(0, len(data), limits.BLOCK_BYTES):
            await self.write_block(ino, start // limits.BLOCK_BYTES, view[start : start + limits.BLOCK_BYTES])
        return await self.commit(ino, len(data), name, parent=parent)

    async def read_block(self, ino: int, block: int = 0, *, staged: bool = False) -> bytes:
        reply = await self.submit(ReadBlock(ino, block, staged))
        data = bytes(reply.payload)
        if reply.release is not None:
            reply.release()
        return data

    async def lookup(self, name: bytes, parent: int = 1) -> Attributes:
        result = (await self.submit(Lookup(parent, name))).result
        assert isinstance(result, Found)
        return result.attributes

    async def load(self, name: bytes) -> bytes:
        """A whole file by its name, as an engine reads it."""
        attributes = await self.lookup(name)
        await self.submit(OpenObject(attributes.ino))
        blocks = -(-attributes.size // limits.BLOCK_BYTES)
        return b"".join([await self.read_block(attributes.ino, block) for block in range(blocks)])

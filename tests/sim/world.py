"""The world around a simulated DPU half: seeded clock, randomness and faults, media in memory, a pool to start from."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
import trio._core._run
import trio.testing

from kvfs import limits
from kvfs.errors import FailsafeError, MediumUnavailableError, PoolFullError
from kvfsd.catalog.database import Hooks
from kvfsd.crypto.kek import RawKeyFile
from kvfsd.media.base import Medium
from kvfsd.media.memory import MemoryMedium
from kvfsd.pool.pool import CATALOG_NAME, Pool
from kvfsd.pool.poolmaking import PoolPlan, create_pool
from kvfsd.pool.poolmedia import MediumSpec
from kvfsd.pool.tenants import TenantChange
from kvfsd.ports import InlineOffload, Ports
from kvfsd.service.service import ServiceOptions
from tests.sim.trace import CatalogSynced, MediaFlushed, MediaTrim, MediaWrite, Trace

T = TypeVar("T")

TENANTS: Final = ("alpha", "beta")
EPOCH_NS: Final = 1_700_000_000_000_000_000
OPTIONS: Final = ServiceOptions(raise_internal_errors=True, medium_deadline_ms=200)


STEPS_MAX: Final = 50_000
"""Of all tasks of one simulation: a hundred times what the longest of 1,200 cases took."""


class EndlessError(Exception):
    """A simulation does not come to an end."""


class _StepLimit(trio.abc.Instrument):
    """Cancels `scope` after STEPS_MAX steps: simulated time stands still for a task that never sleeps."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.where = ""
        self._scope = scope
        self._steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps += 1
        if self._steps == STEPS_MAX:
            self.where = " > ".join(f"{frame.f_code.co_qualname}:{line}" for frame, line in task.iter_await_frames())
            self._scope.cancel()


def simulate(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` in simulated time; the same seed gives the same schedule of tasks. Raises EndlessError."""
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    trio._core._run._r.seed(seed)
    scope = trio.CancelScope()
    limit = _StepLimit(scope)

    async def limited() -> T:
        with scope:
            return await main()
        raise EndlessError(f"no end after {STEPS_MAX} steps, in {limit.where}")

    return trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[limit])


class SimClock:
    """Simulated time; no two readings are equal."""

    def __init__(self) -> None:
        self._readings = 0

    def wall_ns(self) -> int:
        return EPOCH_NS + self.monotonic_ns()

    def monotonic_ns(self) -> int:
        self._readings += 1
        return int(trio.current_time() * 1e9) + self._readings


class SimRandomness:
    """Keys, salts and identifiers from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self, length_bytes: int) -> bytes:
        return self._random.randbytes(length_bytes)


@dataclass(slots=True)
class FaultPlan:
    """The operations with these numbers fail (media, commits, syncs, counted together from 1)."""

    numbers: range = range(0)
    full: bool = False
    """Writes and commits say that there is no room, in place of an I/O error."""
    armed: bool = False
    """Nothing is counted before this is set."""
    count: int = 0
    failed: list[str] = field(default_factory=list)

    def strike(self, operation: str) -> None:
        """Count an operation, and raise if it is one that fails."""
        if not self.armed:
            return
        self.count += 1
        if self.count not in self.numbers:
            return
        self.failed.append(operation)
        if self.full and operation in ("write", "commit"):
            raise PoolFullError(f"injected: no room at operation {self.count}, {operation}")
        if operation in ("commit", "sync"):
            raise FailsafeError(f"injected: operation {self.count}, {operation}")
        raise MediumUnavailableError(f"injected: operation {self.count}, {operation}")


class SimOffload:
    """Runs calls in place, after a while; a sync of the catalog is noted."""

    def __init__(self, trace: Trace | None, plan: FaultPlan, delays: random.Random | None) -> None:
        self._inline = InlineOffload()
        self._trace = trace
        self._plan = plan
        self._delays = delays

    async def run(self, call: Callable[[], T]) -> T:
        if getattr(call, "__qualname__", "") != "WriteAheadLog.sync_call.<locals>.sync":
            return await self._inline.run(call)
        await pause(self._delays)
        self._plan.strike("sync")
        result = await self._inline.run(call)
        if self._trace is not None:
            self._trace.note(CatalogSynced(self._trace.wal_bytes()))
        await pause(self._delays)
        return result


async def pause(delays: random.Random | None) -> None:
    """Let others run: a few milliseconds, a moment, or nothing at all."""
    if delays is None:
        return
    choice = delays.random()
    if choice < 0.2:
        await trio.sleep(delays.random() / 100)
    elif choice < 0.5:
        await trio.lowlevel.checkpoint()


class SimMedium:
    """A medium in memory that takes its time, notes what happens to it, and fails by plan."""

    def __init__(self, inner: MemoryMedium, trace: Trace | None, plan: FaultPlan, delays: random.Random | None) -> None:
        self.name = inner.name
        self.size_bytes = inner.size_bytes
        self.capabilities = inner.capabilities
        self.inner = inner
        self._trace = trace
        self._plan = plan
        self._delays = delays

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await pause(self._delays)
        self._plan.strike("read")
        await self.inner.read_into(offset, buffer)
        await pause(self._delays)

    async def write(self, offset: int, data: memoryview) -> None:
        await pause(self._delays)
        self._plan.strike("write")
        await self.inner.write(offset, data)
        self._note(MediaWrite(self.name, offset, bytes(data)))
        await pause(self._delays)

    async def reserve(self, offset: int, length: int) -> None:
        self._plan.strike("reserve")
        await self.inner.reserve(offset, length)

    async def flush(self) -> None:
        through = len(self._trace.events) if self._trace is not None else 0
        await pause(self._delays)
        self._plan.strike("flush")
        await self.inner.flush()
        self._note(MediaFlushed(self.name, through))
        await pause(self._delays)

    async def trim(self, offset: int, length: int) -> None:
        await pause(self._delays)
        self._plan.strike("trim")
        await self.inner.trim(offset, length)
        self._note(MediaTrim(self.name, offset, length))
        await pause(self._delays)

    async def aclose(self) -> None:
        await self.inner.aclose()

    def _note(self, happening: Any) -> None:
        if self._trace is not None:
            self._trace.note(happening)


class SimDriver:
    """`MediaDriver` over media in memory, by the name of their file."""

    def __init__(self, wrap: Callable[[MemoryMedium], Medium]) -> None:
        self.contents: dict[str, MemoryMedium] = {}
        self._wrap = wrap

    def create(self, path: Path, size_bytes: int) -> Medium:
        self.contents[path.name] = MemoryMedium(path.name, size_bytes)
        return self._wrap(self.contents[path.name])

    def open(self, path: Path, *, read_only: bool) -> Medium:
        medium = self.contents[path.name]
        medium.reopen()
        return self._wrap(medium)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a scenario's pool is like."""

    media: int = 1
    replicas: int = 1
    medium_bytes: int = 48 * limits.MIB


@dataclass(slots=True)
class Ground:
    """One pool on a temporary directory; its state directory and media are replaced for every case."""

    root: Path
    shape: Shape
    seed: int
    driver: SimDriver
    ports: Ports
    plan: FaultPlan

    @property
    def pool_directory(self) -> Path:
        """Where the pool's state is."""
        return self.root / "pool"

    @property
    def catalog_path(self) -> Path:
        """The catalog's database."""
        return self.pool_directory / CATALOG_NAME

    async def make(self) -> None:
        """Make the pool, with its tenants, and close it."""
        source = RawKeyFile.create(self.root / "kek", self.ports.randomness)
        specs = [
            MediumSpec(path=self.root / f"medium-{index}", size_bytes=self.shape.medium_bytes)
            for index in range(self.shape.media)
        ]
        plan = PoolPlan(
            media=specs,
            replicas=self.shape.replicas,
            segment_bytes=limits.SEGMENT_MIN_BYTES,
            key_directory=self.root / "keys",
        )
        pool = await create_pool(self.pool_directory, plan, source, ports=self.ports, driver=self.driver)
        for name in TENANTS:
            pool.tenants.create(name)
            pool.tenants.change(name, TenantChange(eviction=False))  # the model knows of no block that goes by itself
        await pool.aclose()

    async def open(self) -> Pool:
        """Open the pool; its commits fail by the same plan as its media."""
        pool = await Pool.open(self.pool_directory, RawKeyFile(self.root / "kek"), ports=self.ports, driver=self.driver)
        pool.catalog.database._hooks = Hooks(before_commit=lambda: self.plan.strike("commit"))
        return pool

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Pool]:
        """An open pool whose process is killed at the end."""
        pool = await self.open()
        try:
            yield pool
        finally:
            kill(pool)

    def place_catalog(self, database: bytes, log: bytes) -> None:
        """Replace the catalog's files; the index of the log goes, as SQLite makes it anew."""
        remove_catalog(self.catalog_path)
        self.catalog_path.write_bytes(database)
        if log:
            Path(f"{self.catalog_path}-wal").write_bytes(log)


def remove_catalog(path: Path) -> None:
    """Remove a catalog's files, whichever there are."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@contextlib.contextmanager
def ground(
    shape: Shape, seed: int, trace: Trace | None = None, plan: FaultPlan | None = None, *, delayed: bool = False
) -> Iterator[Ground]:
    """A place for a pool, gone afterwards. `delayed`: media take their time, so that tasks overlap."""
    plan = plan or FaultPlan()
    delays = random.Random(seed ^ 0xDE1A) if delayed else None
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="kvfs-sim-", dir=memory if memory.is_dir() else None))
    try:
        driver = SimDriver(lambda medium: SimMedium(medium, trace, plan, delays))
        ports = Ports(SimClock(), SimRandomness(seed), SimOffload(trace, plan, delays))
        yield Ground(root, shape, seed, driver, ports, plan)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def kill(pool: Pool) -> None:
    """Leave the pool as a killed process would: nothing is written, nothing marked clean."""
    pool.catalog.database.abandon()
    pool._lock.release()

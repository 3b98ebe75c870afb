"""Scenarios: what clients and housekeeping do, and the recording of a run."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final

import trio
import trio.lowlevel

from kvfs.commands import AllocateIno, Ino, WriteBlock
from kvfs.errors import FailsafeError, KvfsError, PoolFullError
from kvfsd.media.memory import MemoryMedium
from kvfsd.ondisk.segment import SegmentKind
from kvfsd.pool.pool import Pool
from kvfsd.service import background
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.sim import file_steps, name_steps
from tests.sim.client import Client, Handle
from tests.sim.trace import Trace
from tests.sim.world import OPTIONS, TENANTS, FaultPlan, Ground, Shape, ground, kill, simulate


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who does what: weights of client steps and of housekeeping, in a pool of some shape."""

    steps: dict[str, int]
    chores: dict[str, int] = field(default_factory=dict)
    shape: Shape = field(default_factory=Shape)
    tenants: tuple[str, ...] = (TENANTS[0],)
    """One client for each."""
    length: int = 40
    """Steps of each client."""
    chore_share: float = 0.35
    """How often a step is followed by a chore."""
    in_background: bool = False
    """The service's own tasks run, and media take their time."""


_STEPS: Final = {**file_steps.STEPS, **name_steps.STEPS}
_WRITES: Final = {"store": 4, "create": 3, "overwrite": 3, "append": 2, "truncate": 2, "unlink": 2, "read": 1}
_NAMES: Final = {"rename": 3, "exchange": 1, "link": 2, "mkdir": 2, "rmdir": 1, "symlink": 1, "chmod": 1, "xattr": 2}
_CHORES: Final = {"sync": 3, "drain": 3, "collect": 2, "close_streams": 1, "sleep": 2}

SCENARIOS: Final[dict[str, Scenario]] = {
    "store": Scenario({"store": 5, "create": 2, "unlink": 1, "abandon": 1}, {"sync": 2, "drain": 1}, length=25),
    "rewrite": Scenario(_WRITES, {"sync": 2, "drain": 1}, length=35),
    "names": Scenario({"create": 3, "unlink": 1, "store": 1, **_NAMES}, {"sync": 2, "drain": 2}),
    "collect": Scenario(
        _WRITES, {"sync": 2, "drain": 1, "close_streams": 1, "collect": 2, "move": 4}, length=30, chore_share=0.6
    ),
    "log": Scenario({**_WRITES, **_NAMES}, {"drain": 5, "compact": 4, "sync": 2, "checkpoint": 1}, length=35),
    "replicas": Scenario({**_WRITES, **_NAMES}, {**_CHORES, "move": 2}, Shape(media=3, replicas=2)),
    "together": Scenario(
        {**_WRITES, **_NAMES, "abandon": 1},
        {**_CHORES, "close_streams": 3, "checkpoint": 1, "detach": 1},
        tenants=(TENANTS[0], TENANTS[0], TENANTS[1]),
        length=18,
        in_background=True,
    ),
}


@dataclass(slots=True)
class Recorded:
    """A run and what it started from; `place` is where its crash states can be put and opened."""

    place: Ground
    scenario: Scenario
    trace: Trace
    start: dict[str, MemoryMedium]
    clients: list[Client]

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenant of each client."""
        return self.scenario.tenants


class Run:
    """One run of a scenario on an open pool."""

    def __init__(self, scenario: Scenario, pool: Pool, trace: Trace, seed: int) -> None:
        self.clients: list[Client] = []
        self.chore_errors: list[KvfsError] = []
        self.refused_at_end: list[KvfsError] = []
        self._scenario = scenario
        self._pool = pool
        self._trace = trace
        self._random = random.Random(seed)
        self._seed = seed

    async def play(self, plan: FaultPlan | None = None) -> None:
        """All clients' steps, with chores between them; `plan` is armed once the clients have begun.

        At the end each client stores one more file: `refused_at_end` says why it could not.
        """
        async with self._service() as service, trio.open_nursery() as sends:
            handle = Handle(lambda: self._pool.catalog.database.last_sequence, self._trace)
            for number, tenant in enumerate(self._scenario.tenants):
                pair = InProcessQueuePair(service.attach(tenant))
                client = Client(number, pair, sends, handle, random.Random(self._seed * 1000 + number))
                await client.start()
                self.clients.append(client)
                self._trace.histories.append(client.history)
            await self.clients[0].sync(self.clients)
            if plan is not None:
                plan.armed = True
            async with trio.open_nursery() as nursery:
                for client in self.clients:
                    nursery.start_soon(self._steps, service, client)
            if plan is not None:
                plan.armed = False
                self.refused_at_end = [error for client in self.clients for error in await file_steps.try_store(client)]
            sends.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def _service(self) -> AsyncIterator[Service]:
        if self._scenario.in_background:
            async with Service.open(self._pool, OPTIONS) as service:
                yield service
            return
        service = Service(self._pool, OPTIONS)
        await service.metadata_log.drain()
        yield service

    async def _steps(self, service: Service, client: Client) -> None:
        names, weights = list(self._scenario.steps), list(self._scenario.steps.values())
        chores, chore_weights = list(self._scenario.chores), list(self._scenario.chores.values())
        choice = random.Random(self._seed * 77 + client.number)
        for _ in range(self._scenario.length):
            try:
                client.tick += 1_000_000
                await _STEPS[choice.choices(names, weights)[0]](client)
            except KvfsError as error:
                client.errors.append(error)
            if chores and choice.random() < self._scenario.chore_share:
                chore = choice.choices(chores, chore_weights)[0]
                try:
                    await self._chore(chore, service, client)
                except KvfsError as error:
                    self.chore_errors.append(error)
                    if isinstance(error, FailsafeError):
                        service.enter_failsafe(str(error))

    async def _chore(self, chore: str, service: Service, client: Client) -> None:
        tenant = self._pool.tenants.show(self._scenario.tenants[client.number]).number
        if chore == "sync":
            await client.sync(self.clients)
        elif chore == "drain":
            await service.metadata_log.drain()
        elif chore == "compact":
            await service.metadata_log.compact(tenant)
        elif chore == "close_streams":
            close_data_segments(service, tenant)
        elif chore == "collect":
            if self._scenario.in_background:
                service.collector.wake()  # its task does it: there is one
            else:
                await service.collector.collect()
        elif chore == "move":
            await self._move(service, tenant)
        elif chore == "sleep":
            await trio.sleep(client_pause_s(self._random))
        elif chore == "checkpoint":
            self._checkpoint(service)
        elif chore == "detach":
            await self._detach(service, client, tenant)
        background._reap_some(service)

    async def _move(self, service: Service, tenant: int) -> None:
        """Have the collector empty segments of the tenant on each medium, worth it or not, and give back what is."""
        close_data_segments(service, tenant)
        for space in service.store.spaces.values():
            closed = [one for one in space.in_use.values() if one.closed and not one.freed]
            of_data = [one for one in closed if one.stream.kind is SegmentKind.DATA]
            if of_data:
                await service.collector._empty_some(space, of_data[:2], [])
        if self._random.random() < 0.7:
            await service.store.release_empty()

    def _checkpoint(self, service: Service) -> None:
        """The catalog's log is copied into its database and emptied: nothing before it can be lost any more."""
        self._trace.end_epoch()
        service.catalog.database.wal.checkpoint_call(empty=True)()
        self._trace.begin_epoch()

    async def _detach(self, service: Service, client: Client, tenant: int) -> None:
        """Another mount of the tenant comes, writes, and goes without a commit."""
        session = service.attach(self._scenario.tenants[client.number])
        pair = InProcessQueuePair(session)
        result = (await pair.submit(AllocateIno())).result
        assert isinstance(result, Ino)
        await pair.submit(WriteBlock(result.ino, 0), b"never")
        await pair.aclose()


def close_data_segments(service: Service, tenant: int) -> None:
    """Close the tenant's open data segments, as if they were full: the collector looks at no others."""
    for space in service.store.spaces.values():
        for stream, streaming in space.streams.items():
            segment = streaming.segment
            if stream.tenant == tenant and stream.kind is SegmentKind.DATA and segment and not streaming.lock.locked():
                service.store._appender.close(space, segment)


def client_pause_s(choice: random.Random) -> float:
    """A pause in which the tasks of the background have their turn."""
    return choice.choice((0.05, 0.3, 1.2))


@contextlib.contextmanager
def recorded(name: str, seed: int) -> Iterator[Recorded]:
    """Run a scenario to its end and keep everything that it did."""
    scenario, trace = SCENARIOS[name], Trace()
    with ground(scenario.shape, seed, trace, FaultPlan(), delayed=scenario.in_background) as place:
        trace.bind(place.catalog_path)
        yield simulate(seed, lambda: _record(scenario, place, trace))


async def _record(scenario: Scenario, place: Ground, trace: Trace) -> Recorded:
    await place.make()
    start = {name: medium.clone() for name, medium in place.driver.contents.items()}
    trace.recording = True
    trace.begin_epoch()
    pool = await place.open()
    run = Run(scenario, pool, trace, place.seed)
    await run.play()
    trace.end_epoch()
    trace.recording = False
    kill(pool)
    for client in run.clients:
        assert not client.wrong, client.wrong
        assert all(isinstance(error, PoolFullError) for error in client.errors), client.errors
    assert all(isinstance(error, PoolFullError) for error in run.chore_errors), run.chore_errors
    return Recorded(place, scenario, trace, start, run.clients)

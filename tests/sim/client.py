"""One client of a simulated pool: has a directory of its own there, and notes what it was told.

It uses the host half's staging over the in-process queue pair, as a mount does, without the kernel between. What it
does is in `file_steps` and `name_steps`.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from kvfs import limits
from kvfs.blockreads import BlockReads
from kvfs.commands import (
    Attributes,
    Command,
    Discard,
    Found,
    GetAttributes,
    Lookup,
    MakeNode,
    Sync,
)
from kvfs.errors import KvfsError
from kvfs.queuepair import QueuePair, Reply
from kvfs.staging import Staging
from tests.sim.model import Kind, Path, State
from tests.sim.trace import Began, Ended, Synced, Trace

NAMES: Final = tuple(b"n%d" % number for number in range(7))
SIZES: Final = (0, 1, 700, 4096, 5000, 20_000, 70_000, limits.BLOCK_BYTES, limits.BLOCK_BYTES + 3000)
SIZE_WEIGHTS: Final = (2, 2, 4, 4, 6, 6, 4, 1, 1)
DIRECTORIES_MAX: Final = 6


@dataclass(frozen=True, slots=True)
class Handle:
    """What it takes to know where the clock of sequences is: the catalog's, asked after each answer."""

    sequence: Callable[[], int]
    trace: Trace


class Client:
    """Client number `number`; its directory `c<number>` is made by `start`."""

    def __init__(self, number: int, pair: QueuePair, nursery: trio.Nursery, handle: Handle, choice: random.Random):
        self.number = number
        self.history = [State()]
        self.errors: list[KvfsError] = []
        self.wrong: list[str] = []
        """What a read gave that was neither right nor an error."""
        self._pair = pair
        self._handle = handle
        self.random = choice
        self.tick = 0
        self.reads = BlockReads(pair, nursery)
        self.staging = Staging(pair, nursery, self.reads, memory_bytes=4 * limits.MIB, now_ns=lambda: self.tick)
        self._inos: dict[Path, int] = {}
        self.idents = 0
        self._versions = 0

    @property
    def state(self) -> State:
        """What was acknowledged."""
        return self.history[-1]

    @property
    def directory(self) -> bytes:
        """Its directory's name."""
        return b"c%d" % self.number

    async def start(self) -> None:
        """Make the client's directory."""
        result = (await self._pair.submit(MakeNode(1, self.directory, stat.S_IFDIR | 0o700, 1, 1, b""))).result
        assert isinstance(result, Found)
        self._inos = {(): result.attributes.ino}
        self.history = [State(sequence=self._handle.sequence())]

    async def sync(self, all_clients: list[Client]) -> None:
        """Sync the pool: what every client was told before is safe from a power loss afterwards."""
        acked = tuple(len(client.history) - 1 for client in all_clients)
        try:
            await self._pair.submit(Sync())
        except KvfsError as error:
            self.errors.append(error)
        else:
            self._handle.trace.note(Synced(acked))

    # --- choosing and asking ---------------------------------------------------------------------------

    async def change(self, after: State, call: Callable[[], Awaitable[None]]) -> bool:
        """Ask for a change -> whether it happened. An error means that it did not."""
        trace = self._handle.trace
        trace.note(Began(self.number, after))
        try:
            await call()
        except KvfsError as error:
            self.errors.append(error)
        else:
            self.history.append(after.with_sequence(self._handle.sequence()))
        trace.note(Ended(self.number, len(self.history) - 1))
        return self.history[-1].nodes is after.nodes

    async def submit(self, command: Command, payload: bytes = b"") -> Reply:
        """Submit a command."""
        return await self._pair.submit(command, payload)

    async def discard(self, path: Path) -> None:
        await self.submit(Discard((await self.attributes_of(path)).ino, 0))

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        result = (await self.submit(Lookup(parent, name))).result
        assert isinstance(result, Found)
        return result.attributes

    async def ino_of(self, path: Path) -> int:
        ino = self._inos[()]
        for name in path:
            ino = (await self.lookup(ino, name)).ino
        return ino

    async def attributes_of(self, path: Path) -> Attributes:
        result = (await self.submit(GetAttributes(await self.ino_of(path)))).result
        assert isinstance(result, Found)
        return result.attributes

    def kind_at(self, path: Path) -> Kind | None:
        node = self.state.nodes.get(path)
        return node.kind if node else None

    def some(self, kind: Kind) -> Path | None:
        paths = self.state.paths(kind)
        return self.random.choice(paths) if paths else None

    def some_file(self) -> Path | None:
        return self.some(Kind.FILE)

    def some_directory(self) -> Path:
        return self.random.choice([(), *self.state.paths(Kind.DIRECTORY)])

    def new_content(self) -> bytes:
        return self.random.randbytes(self.random.choices(SIZES, SIZE_WEIGHTS)[0])

    def new_version(self) -> int:
        self._versions += 1
        return self._versions

    def in_pieces(self, content: bytes) -> list[tuple[int, bytes]]:
        """A file's content in the pieces in which it is written."""
        step = self.random.choice((4096, 128 * 1024, limits.BLOCK_BYTES))
        return [(start, content[start : start + step]) for start in range(0, len(content), step)]

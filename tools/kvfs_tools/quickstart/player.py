"""The replaying engine: a process of its own, so that it can be killed with the mount and never hangs its parent.

`python -m kvfs_tools.quickstart.player` reads one Job in JSON from stdin and writes one event per line to stdout as it
goes. A block is acknowledged only after its store returned, so whoever reads the events knows what must survive.
"""

from __future__ import annotations

import enum
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from kvfs_tools.quickstart.blocks import BlockSource
from kvfs_tools.quickstart.protocol import FileTier
from kvfs_tools.quickstart.trace import leading_hits

BATCH_BLOCKS = 16
"""Blocks prepared, then stored or loaded together: as many as vLLM's tier has threads for each direction."""


class Mode(enum.StrEnum):
    """What a job does with its chains."""

    REPLAY = "replay"
    """Serve each chain as a request: look up, load the leading hits, store the rest."""
    LOAD = "load"
    """Load every block; one that is absent is reported as such."""


class Job(msgspec.Struct, frozen=True):
    """What to replay where. `verify` off is for filesystems that keep no data."""

    mode: Mode
    root: str
    model: str
    seed: bytes
    block_bytes: int
    threads: int
    chains: list[list[int]]
    verify: bool = True


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """The store of `block` returned without an error."""

    block: int


class Batch(msgspec.Struct, frozen=True, tag=True):
    """A batch of stores or loads: wall time of all, and of each. Making and checking contents is not in it."""

    kind: str
    wall_ms: float
    each_ms: list[float]


class Lookups(msgspec.Struct, frozen=True, tag=True):
    """Answers to one request's lookups; `hits` is the leading run of present blocks."""

    count: int
    hits: int
    wall_ms: float


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """What came back in LOAD mode: `exact`, `absent` or an error's text per block."""

    block: int
    outcome: str


class Wrong(msgspec.Struct, frozen=True, tag=True):
    """`block` had the right length and wrong bytes, or a store or load of a present block failed: never acceptable."""

    block: int
    what: str


class End(msgspec.Struct, frozen=True, tag=True):
    """The job is done; `direct_io` says what the probe chose."""

    direct_io: bool


Event = Acknowledged | Batch | Lookups | Loaded | Wrong | End

EXACT, ABSENT = "exact", "absent"


def _emit(event: Event) -> None:
    # one write(2) below PIPE_BUF or by one thread at a time; a lost parent ends the player
    os.write(sys.stdout.fileno(), msgspec.json.encode(event) + b"\n")


class Player:
    """Runs one job: batches of prepared buffers, so that only file calls are inside the measured time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._source = BlockSource(job.seed, job.block_bytes)
        self._tier = FileTier(Path(job.root), job.model, job.block_bytes)
        self._threads = ThreadPoolExecutor(job.threads)
        # page aligned, as O_DIRECT needs
        self._buffers = [memoryview(mmap.mmap(-1, job.block_bytes)) for _ in range(BATCH_BLOCKS)]

    def run(self) -> None:
        """Do the whole job."""
        self._tier.start()
        for chain in self._job.chains:
            if self._job.mode is Mode.REPLAY:
                self._serve(chain)
            else:
                self._load(chain, must_exist=False)
        _emit(End(direct_io=bool(self._tier.direct_io)))

    def _serve(self, chain: Sequence[int]) -> None:
        started = time.perf_counter_ns()
        present = self._tier.lookup([self._source.digest(block) for block in chain])
        hits = leading_hits(present)
        _emit(Lookups(len(chain), hits, (time.perf_counter_ns() - started) / 1e6))
        self._load(chain[:hits], must_exist=True)
        self._store([block for block, there in zip(chain, present, strict=True) if not there])

    def _batches(self, blocks: Sequence[int]) -> Iterator[Sequence[int]]:
        return (blocks[i : i + BATCH_BLOCKS] for i in range(0, len(blocks), BATCH_BLOCKS))

    def _timed(
        self, kind: str, call: Callable[[int, memoryview], None], blocks: Sequence[int]
    ) -> list[Exception | None]:
        """Run `call` for each block with its buffer in the threads; emit the batch, return each one's error."""

        def one(block: int, buffer: memoryview) -> tuple[float, Exception | None]:
            started = time.perf_counter_ns()
            error = None
            try:
                call(block, buffer)
            except OSError as raised:
                error = raised
            return (time.perf_counter_ns() - started) / 1e6, error

        started = time.perf_counter_ns()
        results = list(self._threads.map(one, blocks, self._buffers))
        wall_ms = (time.perf_counter_ns() - started) / 1e6
        _emit(Batch(kind, wall_ms, [each for each, error in results if error is None]))
        return [error for _, error in results]

    def _store(self, blocks: Sequence[int]) -> None:
        def store(block: int, buffer: memoryview) -> None:
            self._tier.store(self._source.digest(block), buffer)
            _emit(Acknowledged(block))

        for batch in self._batches(blocks):
            for block, buffer in zip(batch, self._buffers, strict=False):
                buffer[:] = self._source.content(block)
            for block, error in zip(batch, self._timed("store", store, batch), strict=True):
                if error is not None:
                    _emit(Wrong(block, f"store failed: {error}"))

    def _load(self, blocks: Sequence[int], must_exist: bool) -> None:
        def load(block: int, buffer: memoryview) -> None:
            self._tier.load(self._source.digest(block), buffer)

        for batch in self._batches(blocks):
            errors = self._timed("load", load, batch)
            for block, buffer, error in zip(batch, self._buffers, errors, strict=False):
                self._judge(block, buffer, error, must_exist)

    def _judge(self, block: int, buffer: memoryview, error: Exception | None, must_exist: bool) -> None:
        if isinstance(error, FileNotFoundError) and not must_exist:
            _emit(Loaded(block, ABSENT))
        elif error is not None:
            _emit(Wrong(block, f"load failed: {error}"))
        elif self._job.verify and bytes(buffer) != self._source.content(block):
            _emit(Wrong(block, "wrong bytes of the right length"))
        elif not must_exist:
            _emit(Loaded(block, EXACT))


def main() -> None:
    """Read the job from stdin and run it."""
    Player(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)).run()
    sys.stdout.flush()
    # the pool's threads may sit in calls on a dead mount; nothing is pending
    os._exit(0)


if __name__ == "__main__":
    main()

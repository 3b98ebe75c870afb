"""The one port to the outside world: clock, randomness and blocking calls of the DPU half are injected here.

Media (:mod:`kvfsd.media.base`) and the catalog's database are the other two effects; all four together let a
whole stack run in one process from a seed, with crashes between any two operations.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")


class Clock(Protocol):
    """Wall time and monotonic time, both in nanoseconds."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch; may jump."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds of a clock that never goes back."""
        ...


class Randomness(Protocol):
    """Source of keys, salts and identifiers."""

    def token(self, length_bytes: int) -> bytes:
        """`length_bytes` unpredictable bytes."""
        ...


class Offload(Protocol):
    """Runs a blocking call where it does not hold up the event loop."""

    async def run(self, call: Callable[[], T]) -> T:
        """The result of `call()`; its exception propagates. Not cancellable once started."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC."""
        return time.monotonic_ns()


class SystemRandomness:
    """The kernel's generator."""

    def token(self, length_bytes: int) -> bytes:
        """`length_bytes` from getrandom(2)."""
        return os.urandom(length_bytes)


class ThreadOffload:
    """Worker threads, bounded: a hop costs about 58 us (measured), so callers use it for calls that cost more."""

    def __init__(self, threads: int = 8) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` in a worker thread."""
        return await trio.to_thread.run_sync(call, limiter=self._limiter)


class InlineOffload:
    """Runs calls in place: deterministic, for simulation and tests."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` now."""
        return call()


@dataclass(frozen=True, slots=True)
class Ports:
    """The injected effects of one pool."""

    clock: Clock = field(default_factory=SystemClock)
    randomness: Randomness = field(default_factory=SystemRandomness)
    offload: Offload = field(default_factory=ThreadOffload)

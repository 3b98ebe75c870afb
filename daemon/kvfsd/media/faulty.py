"""A medium with seeded faults, to see what the rest does: errors, delays, torn, lost, misdirected and corrupt I/O.

It wraps any medium, in tests and in a running daemon alike. Power losses are `kvfsd.media.volatile`.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from kvfs import limits
from kvfs.errors import InvalidArgumentError, MediumUnavailableError
from kvfsd.media.base import Medium, check_extent


class Operation(enum.Flag):
    """Operations of a medium that faults can strike."""

    READ = enum.auto()
    WRITE = enum.auto()
    FLUSH = enum.auto()
    TRIM = enum.auto()
    ALL = READ | WRITE | FLUSH | TRIM


class FaultKind(enum.Enum):
    """What goes wrong. All but ERROR and DELAY are silent: the operation reports success."""

    ERROR = "error"
    """MediumUnavailableError; nothing is read or written."""
    DELAY = "delay"
    """The operation happens `delay_ms` later."""
    TORN = "torn"
    """Write: only a prefix of `tear_bytes` units arrives. Read: the rest of the buffer is zeros."""
    LOST = "lost"
    """Write, flush, trim: nothing happens. Read: zeros."""
    MISDIRECTED = "misdirected"
    """Write, read, trim: another extent of the same length."""
    CORRUPT = "corrupt"
    """Write, read: one bit is wrong."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault strikes the `operations` it is for, at the counts in `at` (the first is 1) or with `probability` each."""

    kind: FaultKind
    operations: Operation = Operation.ALL
    at: frozenset[int] = frozenset()
    probability: float = 0.0
    delay_ms: int = 0
    tear_bytes: int = limits.RECORD_ALIGN_BYTES


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that happened: which one, to what, at which count of its operations."""

    fault: Fault
    operation: Operation
    count: int
    offset: int
    length: int


class FaultyMedium:
    """`inner` with `faults` drawn from `seed`: the same operations in the same order see the same faults.

    At most one fault besides delays strikes an operation, the first of the list. `strikes` tells what happened.
    """

    def __init__(self, inner: Medium, seed: int, faults: Sequence[Fault] = ()) -> None:
        self.name = inner.name
        self.size_bytes = inner.size_bytes
        self.capabilities = inner.capabilities
        self.strikes: list[Strike] = []
        self._inner = inner
        self._random = random.Random(seed)  # repeatable on purpose
        self._faults: list[Fault] = []
        self._counts: list[int] = []
        self.set_faults(faults)

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Replace the faults; their counts start at 0. An empty sequence heals the medium."""
        self._faults = list(faults)
        self._counts = [0] * len(faults)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`, or so it seems."""
        fault = await self._struck(Operation.READ, offset, len(buffer))
        if fault is None:
            await self._inner.read_into(offset, buffer)
        elif fault.kind is FaultKind.LOST:
            buffer[:] = bytes(len(buffer))
        elif fault.kind is FaultKind.MISDIRECTED:
            await self._inner.read_into(self._elsewhere(offset, len(buffer)), buffer)
        else:
            await self._inner.read_into(offset, buffer)
            if fault.kind is FaultKind.TORN:
                kept = self._prefix(fault, len(buffer))
                buffer[kept:] = bytes(len(buffer) - kept)
            else:
                self._flip(buffer)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`, or so it seems."""
        fault = await self._struck(Operation.WRITE, offset, len(data))
        if fault is None:
            await self._inner.write(offset, data)
        elif fault.kind is FaultKind.MISDIRECTED:
            await self._inner.write(self._elsewhere(offset, len(data)), data)
        elif fault.kind is FaultKind.CORRUPT:
            changed = bytearray(data)
            self._flip(memoryview(changed))
            await self._inner.write(offset, memoryview(changed))
        elif fault.kind is FaultKind.TORN:
            await self._write_torn(fault, offset, data)

    async def reserve(self, offset: int, length: int) -> None:
        """As the medium behind it."""
        await self._inner.reserve(offset, length)

    async def flush(self) -> None:
        """Flush, or so it seems."""
        if await self._struck(Operation.FLUSH, 0, 0) is None:
            await self._inner.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Trim, or so it seems."""
        fault = await self._struck(Operation.TRIM, offset, length)
        if fault is None:
            await self._inner.trim(offset, length)
        elif fault.kind is FaultKind.MISDIRECTED:
            await self._inner.trim(self._elsewhere(offset, length), length)

    async def aclose(self) -> None:
        """As the medium behind it."""
        await self._inner.aclose()

    async def _struck(self, operation: Operation, offset: int, length: int) -> Fault | None:
        """Wait for delays, raise for an error, and return the silent fault of this operation, if one strikes."""
        if length:
            check_extent(self.name, self.size_bytes, offset, length)
        chosen: Fault | None = None
        delay_ms = 0
        for index, fault in enumerate(self._faults):
            if not fault.operations & operation:
                continue
            self._counts[index] += 1
            count = self._counts[index]
            strikes = count in fault.at or (fault.probability > 0 and self._random.random() < fault.probability)
            if not strikes or (chosen is not None and fault.kind is not FaultKind.DELAY):
                continue
            self.strikes.append(Strike(fault, operation, count, offset, length))
            if fault.kind is FaultKind.DELAY:
                delay_ms += fault.delay_ms
            else:
                chosen = fault
        if delay_ms:
            await trio.sleep(delay_ms / 1000)
        if chosen is not None and chosen.kind is FaultKind.ERROR:
            raise MediumUnavailableError(f"medium {self.name}: {operation.name} at {offset}: injected error")
        return chosen

    async def _write_torn(self, fault: Fault, offset: int, data: memoryview) -> None:
        """Write a prefix; a unit torn at less than 4 KiB keeps its old end."""
        unit = limits.RECORD_ALIGN_BYTES
        kept = self._prefix(fault, len(data))
        whole = kept - kept % unit
        if whole:
            await self._inner.write(offset, data[:whole])
        if kept > whole:
            mixed = bytearray(unit)
            await self._inner.read_into(offset + whole, memoryview(mixed))
            mixed[: kept - whole] = data[whole:kept]
            await self._inner.write(offset + whole, memoryview(mixed))

    def _prefix(self, fault: Fault, length: int) -> int:
        """Length of what arrives: whole `tear_bytes` units, never all of them."""
        if fault.tear_bytes <= 0 or limits.RECORD_ALIGN_BYTES % fault.tear_bytes:
            raise InvalidArgumentError(f"fault: tear_bytes: want a divisor of 4096, have {fault.tear_bytes}")
        return self._random.randrange(length // fault.tear_bytes) * fault.tear_bytes

    def _elsewhere(self, offset: int, length: int) -> int:
        """Another aligned offset where `length` fits; the same one only if there is no other."""
        unit = limits.RECORD_ALIGN_BYTES
        others = (self.size_bytes - length) // unit
        if others < 1:
            return offset
        return (offset // unit + self._random.randint(1, others)) % (others + 1) * unit

    def _flip(self, buffer: memoryview) -> None:
        """Flip one bit."""
        bit = self._random.randrange(len(buffer) * 8)
        buffer[bit // 8] ^= 1 << bit % 8

"""A medium with a write cache that a power loss empties: for crash simulation, and nothing else.

Writes and trims reach the medium behind it at `flush`. `crash` leaves there what a drive might have: an arbitrary part
of what was not flushed, in another order, torn at the given unit.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import trio

from kvfs import limits
from kvfsd.media.base import Medium, check_extent

CACHE_MAX_BYTES: Final = 256 * limits.MIB
"""Past this the oldest writes go through, as in a real cache."""
_UNIT: Final = limits.RECORD_ALIGN_BYTES


class CrashMode(enum.Enum):
    """What of the unflushed operations survives."""

    NOTHING = "nothing"
    PREFIX = "prefix"
    """The first few, in order, the last of them torn."""
    ANY = "any"
    """Any of them, in any order, any of them torn."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A write of `data`, or a trim if it is None."""

    offset: int
    length: int
    data: bytes | None

    @property
    def cached_bytes(self) -> int:
        """Memory that it takes."""
        return 0 if self.data is None else self.length


class VolatileMedium:
    """`inner` behind a write cache."""

    def __init__(self, inner: Medium) -> None:
        self.name = inner.name
        self.size_bytes = inner.size_bytes
        self.capabilities = inner.capabilities
        self._inner = inner
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._draining = trio.Lock()

    @property
    def unflushed(self) -> int:
        """Operations that a power loss may take."""
        return len(self._pending)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`, cached writes included."""
        cached = list(self._pending)  # before the read: a flush may pass these on meanwhile
        await self._inner.read_into(offset, buffer)
        for pending in cached:
            start, end = max(offset, pending.offset), min(offset + len(buffer), pending.offset + pending.length)
            if start < end:
                piece = bytes(end - start)
                if pending.data is not None:
                    piece = pending.data[start - pending.offset : end - pending.offset]
                buffer[start - offset : end - offset] = piece

    async def write(self, offset: int, data: memoryview) -> None:
        """Keep `data` for the next flush."""
        check_extent(self.name, self.size_bytes, offset, len(data))
        await self._keep(_Pending(offset, len(data), bytes(data)))

    async def reserve(self, offset: int, length: int) -> None:
        """As the medium behind it."""
        await self._inner.reserve(offset, length)

    async def flush(self) -> None:
        """Pass on what is cached, then flush the medium behind."""
        await self._drain(0)
        await self._inner.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Keep the trim for the next flush."""
        check_extent(self.name, self.size_bytes, offset, length)
        await self._keep(_Pending(offset, length, None))

    async def aclose(self) -> None:
        """Pass on what is cached (the machine stays up), then close the medium behind."""
        await self._drain(0)
        await self._inner.aclose()

    async def crash(self, choice: random.Random, mode: CrashMode, *, tear_bytes: int = 512) -> None:
        """Lose power: `choice` decides what of the cache reaches the medium behind, in units of `tear_bytes`."""
        pending = list(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        for operation in _survivors(pending, choice, mode):
            torn = mode is CrashMode.ANY and choice.random() < 0.5
            if mode is CrashMode.PREFIX and operation is not pending[0]:
                torn = torn or choice.random() < 0.25
            if torn and operation.data is not None:
                await self._apply_torn(operation, choice, tear_bytes)
            else:
                await self._apply(operation)
        await self._inner.flush()

    async def _keep(self, operation: _Pending) -> None:
        self._pending.append(operation)
        self._pending_bytes += operation.cached_bytes
        await self._drain(CACHE_MAX_BYTES)

    async def _drain(self, keep_bytes: int) -> None:
        """Pass on the oldest operations until at most `keep_bytes` are cached; 0 = all that are cached now."""
        async with self._draining:
            last = self._pending[-1] if self._pending and not keep_bytes else None
            while self._pending and (keep_bytes == 0 or self._pending_bytes > keep_bytes):
                oldest = self._pending[0]
                await self._apply(oldest)
                self._pending.popleft()
                self._pending_bytes -= oldest.cached_bytes
                if oldest is last:
                    return

    async def _apply(self, operation: _Pending) -> None:
        if operation.data is None:
            await self._inner.trim(operation.offset, operation.length)
        else:
            await self._inner.write(operation.offset, memoryview(operation.data))

    async def _apply_torn(self, operation: _Pending, choice: random.Random, tear_bytes: int) -> None:
        """Write some of the `tear_bytes` units of a write; the others keep what was there."""
        assert operation.data is not None
        for start in range(0, operation.length, _UNIT):
            mixed = bytearray(_UNIT)
            await self._inner.read_into(operation.offset + start, memoryview(mixed))
            for piece in range(0, _UNIT, tear_bytes):
                if choice.random() < 0.5:
                    mixed[piece : piece + tear_bytes] = operation.data[start + piece : start + piece + tear_bytes]
            await self._inner.write(operation.offset + start, memoryview(mixed))


def _survivors(pending: list[_Pending], choice: random.Random, mode: CrashMode) -> Iterable[_Pending]:
    """The operations that reach the medium, in the order in which they do."""
    if mode is CrashMode.NOTHING:
        return []
    if mode is CrashMode.PREFIX:
        return pending[: choice.randint(0, len(pending))]
    kept = [operation for operation in pending if choice.random() < 0.5]
    choice.shuffle(kept)
    return kept

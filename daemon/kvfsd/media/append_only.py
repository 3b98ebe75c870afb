"""A medium that takes nothing but what every medium must take: the contract of `Medium` with teeth.

Object stores and zoned drives are like this. It wraps another medium and refuses with InvalidArgumentError whatever is
not a superblock slot, an append at the end of a segment, a whole segment put, or a trim of whole segments.
"""

from __future__ import annotations

from kvfs.errors import InvalidArgumentError
from kvfsd.media.base import Capability, Medium, check_extent
from kvfsd.ondisk.superblock import DATA_OFFSET_BYTES, SLOT_BYTES, SLOT_OFFSETS


class AppendOnlyMedium:
    """`inner` seen as superblock slots and segments of `segment_bytes`; the ends of segments live in memory only."""

    def __init__(self, inner: Medium, segment_bytes: int, *, data_offset: int = DATA_OFFSET_BYTES) -> None:
        self.name = inner.name
        self.size_bytes = inner.size_bytes
        self.capabilities = inner.capabilities & Capability.TRIM
        self._inner = inner
        self._segment_bytes = segment_bytes
        self._data_offset = data_offset
        self._ends: dict[int, int] = {}

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        await self._inner.read_into(offset, buffer)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write a superblock slot, append to a segment, or put a whole one."""
        check_extent(self.name, self.size_bytes, offset, len(data))
        if offset < self._data_offset:
            if offset not in SLOT_OFFSETS or len(data) != SLOT_BYTES:
                raise self._refusal("write", offset, len(data), "only superblock slots are written before the data")
        else:
            segment, within = divmod(offset - self._data_offset, self._segment_bytes)
            end = self._ends.get(segment, 0)
            if within != end:
                raise self._refusal("write", offset, len(data), f"segment {segment} ends at {end}, not at {within}")
            if within + len(data) > self._segment_bytes:
                raise self._refusal("write", offset, len(data), f"over the end of segment {segment}")
            self._ends[segment] = within + len(data)
        await self._inner.write(offset, data)

    async def reserve(self, offset: int, length: int) -> None:
        """As the medium behind it."""
        await self._inner.reserve(offset, length)

    async def flush(self) -> None:
        """As the medium behind it."""
        await self._inner.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Trim whole segments, which may then be appended to from their start."""
        check_extent(self.name, self.size_bytes, offset, length)
        first, before = divmod(offset - self._data_offset, self._segment_bytes)
        count, rest = divmod(length, self._segment_bytes)
        if offset < self._data_offset or before or rest:
            raise self._refusal("trim", offset, length, "only whole segments are trimmed")
        await self._inner.trim(offset, length)
        for segment in range(first, first + count):
            self._ends.pop(segment, None)

    async def aclose(self) -> None:
        """As the medium behind it."""
        await self._inner.aclose()

    def _refusal(self, operation: str, offset: int, length: int, why: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"medium {self.name}: {operation} of {length} bytes at {offset}: {why}")

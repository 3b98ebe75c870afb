"""A medium in memory, for simulation: sparse, deterministic, gone with the process."""

from __future__ import annotations

from typing import Final

from kvfs import limits
from kvfs.errors import MediumUnavailableError
from kvfsd.media.base import Capability, check_extent

_UNIT: Final = limits.RECORD_ALIGN_BYTES
_ZERO_UNIT: Final = bytes(_UNIT)


class MemoryMedium:
    """Keeps the 4 KiB units that were written; everything else reads as zeros."""

    def __init__(self, name: str, size_bytes: int) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.capabilities = Capability.PARALLEL_APPEND | Capability.TRIM
        self._units: dict[int, bytes] = {}
        self._open = True

    def clone(self) -> MemoryMedium:
        """An open medium of the same name and content, independent of this one."""
        copy = MemoryMedium(self.name, self.size_bytes)
        copy._units = dict(self._units)
        return copy

    @property
    def stored_extents(self) -> list[int]:
        """Offsets of the 4 KiB units that were written, in order."""
        return sorted(unit * _UNIT for unit in self._units)

    @property
    def stored_bytes(self) -> int:
        """Bytes that take memory."""
        return len(self._units) * _UNIT

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        self._check("read", offset, len(buffer))
        for start in range(0, len(buffer), _UNIT):
            buffer[start : start + _UNIT] = self._units.get((offset + start) // _UNIT, _ZERO_UNIT)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`."""
        self._check("write", offset, len(data))
        for start in range(0, len(data), _UNIT):
            self._units[(offset + start) // _UNIT] = bytes(data[start : start + _UNIT])

    async def reserve(self, offset: int, length: int) -> None:
        """Nothing to do: memory is found at each write."""
        self._check("reserve", offset, length)

    async def flush(self) -> None:
        """Nothing to do: see `VolatileMedium` for writes that are not safe yet."""
        self._check("flush", 0, _UNIT)

    async def trim(self, offset: int, length: int) -> None:
        """Forget the range."""
        self._check("trim", offset, length)
        for unit in range(offset // _UNIT, (offset + length) // _UNIT):
            self._units.pop(unit, None)

    async def aclose(self) -> None:
        """Refuse what comes later; the content stays until `reopen`."""
        self._open = False

    def reopen(self) -> None:
        """Take operations again after `aclose`, content as it was."""
        self._open = True

    def _check(self, operation: str, offset: int, length: int) -> None:
        check_extent(self.name, self.size_bytes, offset, length)
        if not self._open:
            raise MediumUnavailableError(f"medium {self.name}: {operation} at {offset}: closed")

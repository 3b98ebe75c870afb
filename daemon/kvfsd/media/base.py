"""What a medium is: an extent space with a few capabilities, whatever lies behind it.

A medium is written in two ways only: superblock slots are overwritten in place, segments are appended to, or put
whole, and trimmed whole before they are used again. A driver may rely on that; `AppendOnlyMedium` enforces it.
"""

from __future__ import annotations

import enum
from typing import Protocol

from kvfs import limits
from kvfs.errors import InvalidArgumentError


class Capability(enum.Flag):
    """What a medium can do beyond the minimum."""

    NONE = 0
    PARALLEL_APPEND = enum.auto()
    """Appends to one segment may be issued out of order (files, drives); without it they must be in order."""
    TRIM = enum.auto()
    """`trim` gives the space back to whoever owns the medium; reads of it then return zeros."""


class Medium(Protocol):
    """One medium of a pool. Offsets and lengths are bytes, multiples of 4 KiB (RECORD_ALIGN_BYTES).

    Every method raises `kvfs.errors.MediumUnavailableError` for an I/O error, naming medium, operation, offset and
    the system's text; `write` raises `PoolFullError` if whatever holds the medium is out of space. A driver retries
    nothing: callers own deadlines. Extents outside the medium or not aligned are an InvalidArgumentError.
    """

    name: str
    """How people and logs call it: its path or address."""
    size_bytes: int
    capabilities: Capability

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; space never written reads as zeros. No short reads."""
        ...

    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. It survives the process, not yet a power loss."""
        ...

    async def reserve(self, offset: int, length: int) -> None:
        """The range is about to be written piece by piece: find room for all of it now, if the medium can.

        Raises `PoolFullError` if there is none. Content of the range is undefined until it is written, or zeros.
        """
        ...

    async def flush(self) -> None:
        """Everything written before survives a power loss once this returns."""
        ...

    async def trim(self, offset: int, length: int) -> None:
        """The range's content is no longer needed; with TRIM it reads as zeros (until the next flush: or as before)."""
        ...

    async def aclose(self) -> None:
        """Release descriptors and locks; errors are raised."""
        ...


def check_extent(name: str, size_bytes: int, offset: int, length: int) -> None:
    """InvalidArgumentError unless `length` bytes at `offset` are aligned to 4 KiB and inside medium `name`."""
    unit = limits.RECORD_ALIGN_BYTES
    if offset % unit or length % unit:
        raise InvalidArgumentError(f"medium {name}: {length} bytes at {offset}: want multiples of {unit}")
    if not (0 <= offset <= size_bytes and 0 < length <= size_bytes - offset):
        raise InvalidArgumentError(
            f"medium {name}: {length} bytes at {offset}: want an extent within {size_bytes} bytes"
        )

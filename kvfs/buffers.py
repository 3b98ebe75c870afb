"""A pool of block-sized buffers: page-faulting a fresh 1 MiB costs as much as the cipher (docs/ARCHITECTURE.md)."""

from __future__ import annotations

import contextlib
import mmap
from typing import Final

BATCH: Final = 8
"""Buffers that are mapped at once: private mappings side by side become one to the kernel, with room for huge pages."""


class BufferPool:
    """Hands out buffers of one size and takes them back; keeps at most `keep` idle ones.

    They are private anonymous mappings: they begin on a page, so a medium can write them past the page cache, and
    they take memory only once they are used.
    """

    def __init__(self, buffer_bytes: int, keep: int) -> None:
        self.buffer_bytes = buffer_bytes
        self._keep = keep
        self.mapped = 0
        """Buffers that were ever made: does not grow while they come back."""
        self._idle: list[mmap.mmap] = []

    def acquire(self) -> mmap.mmap:
        """A buffer of `buffer_bytes` with undefined content."""
        if not self._idle:
            self._idle += [_map(self.buffer_bytes) for _ in range(BATCH)]
            self.mapped += BATCH
        return self._idle.pop()

    def release(self, buffer: mmap.mmap) -> None:
        """Give a buffer back; the caller keeps no view of it."""
        if len(self._idle) < self._keep:
            self._idle.append(buffer)


def _map(length: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping

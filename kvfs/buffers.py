"""A pool of block-sized buffers: page-faulting a fresh 1 MiB costs as much as the cipher (docs/ARCHITECTURE.md)."""

from __future__ import annotations

import mmap


class BufferPool:
    """Hands out buffers of one size and takes them back; keeps at most `keep` idle ones.

    They are anonymous mappings, so they begin on a page: a medium can write them past the page cache.
    """

    def __init__(self, buffer_bytes: int, keep: int) -> None:
        self.buffer_bytes = buffer_bytes
        self._keep = keep
        self._idle: list[mmap.mmap] = []

    def acquire(self) -> mmap.mmap:
        """A buffer of `buffer_bytes` with undefined content."""
        return self._idle.pop() if self._idle else mmap.mmap(-1, self.buffer_bytes)

    def release(self, buffer: mmap.mmap) -> None:
        """Give a buffer back; the caller keeps no view of it."""
        if len(self._idle) < self._keep:
            self._idle.append(buffer)

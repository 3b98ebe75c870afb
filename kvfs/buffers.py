"""A pool of block-sized buffers: page-faulting a fresh 1 MiB costs as much as the cipher (docs/ARCHITECTURE.md)."""

from __future__ import annotations


class BufferPool:
    """Hands out `bytearray`s of one size and takes them back; keeps at most `keep` idle ones."""

    def __init__(self, buffer_bytes: int, keep: int) -> None:
        self.buffer_bytes = buffer_bytes
        self._keep = keep
        self._idle: list[bytearray] = []

    def acquire(self) -> bytearray:
        """A buffer of `buffer_bytes` with undefined content."""
        return self._idle.pop() if self._idle else bytearray(self.buffer_bytes)

    def release(self, buffer: bytearray) -> None:
        """Give a buffer back; the caller keeps no view of it."""
        if len(self._idle) < self._keep:
            self._idle.append(buffer)

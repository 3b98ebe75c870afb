"""The C allocator of a process that serves a mount: block-sized requests keep their memory, in huge pages."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Final

from kvfs.limits import MIB

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
"""mallopt(3)."""
_HEAP_FROM_BYTES: Final = 32 * MIB
"""glibc's largest value (HEAP_MAX_SIZE / 2 on 64-bit systems)."""
_KEPT_BYTES: Final = 64 * MIB
_HUGE_BYTES: Final = 2 * MIB


def keep_large_allocations() -> bool:
    """Serve requests of block size from the heap, and keep freed ones -> whether the C library can.

    pyfuse3 makes a `bytes` of up to 1 MiB for every write. By default each one is mapped, faulted in and unmapped
    again, which costs as much as the cipher. In huge pages the heap takes a tenth of the CPU of a store less (measured:
    3.5-3.7 instead of 4.0 ms for 2 MiB on a busy machine).
    """
    try:
        libc = ctypes.CDLL(None)
        kept = bool(libc.mallopt(_M_MMAP_THRESHOLD, _HEAP_FROM_BYTES)) and bool(
            libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        )
        if kept and libc.mallopt(_M_TOP_PAD, _KEPT_BYTES):
            _grow_heap(libc)
            _advise_huge(libc)
    except (AttributeError, OSError, ValueError):
        return False
    return kept


def _grow_heap(libc: ctypes.CDLL) -> None:
    """Let the heap grow once by what it keeps, so that all of it lies in the one mapping that is advised."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free(libc.malloc(_HEAP_FROM_BYTES - MIB))


def _advise_huge(libc: ctypes.CDLL) -> None:
    """Best effort: a kernel without huge pages refuses, and nothing else changes."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            first, last = -(-start // _HUGE_BYTES) * _HUGE_BYTES, end // _HUGE_BYTES * _HUGE_BYTES
            if last > first:
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE)

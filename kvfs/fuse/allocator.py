"""The C allocator of a process that serves a mount: block-sized requests keep their memory."""

from __future__ import annotations

import ctypes
from typing import Final

from kvfs.limits import MIB

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""mallopt(3)."""
_HEAP_FROM_BYTES: Final = 32 * MIB
"""glibc's largest value (HEAP_MAX_SIZE / 2 on 64-bit systems)."""
_KEPT_BYTES: Final = 64 * MIB


def keep_large_allocations() -> bool:
    """Serve requests of block size from the heap, and keep freed ones -> whether the C library can.

    pyfuse3 makes a `bytes` of up to 1 MiB for every write. By default each one is mapped, faulted in and unmapped
    again, which costs as much as the cipher.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _HEAP_FROM_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))

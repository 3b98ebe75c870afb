"""Block-sized slots of memory that a mount and its daemon share: payloads that do not go through the socket.

The daemon makes them, sealed against another size, so that neither side can take pages away from under the other.
Whoever receives a payload copies it out before looking at it: the other side can write to a slot at any time.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

from kvfs.errors import ProtocolError
from kvfs.limits import BLOCK_BYTES
from kvfs.queuepair import Buffer

SLOTS_MAX: Final = 255
"""Slot numbers have a byte of a frame's header."""
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_SEALS: Final = 0x0001 | 0x0002 | 0x0004
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW (fcntl(2))."""


class SharedSlots:
    """`count` slots of BLOCK_BYTES each; see `create` and `adopt`. Memory is taken when a slot is first used."""

    def __init__(self, descriptor: int, count: int) -> None:
        self.descriptor = descriptor
        self.count = count
        self._memory = mmap.mmap(descriptor, count * BLOCK_BYTES)

    @classmethod
    def create(cls, count: int) -> SharedSlots:
        """Fresh slots. The caller sends `descriptor` to the other side and then calls `close_descriptor`."""
        descriptor = os.memfd_create("kvfs-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, count * BLOCK_BYTES)
            fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
            return cls(descriptor, count)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def adopt(cls, descriptor: int, count: int) -> SharedSlots:
        """The slots behind a descriptor that was received; closes it. ProtocolError if they are not as they must be."""
        try:
            size = os.fstat(descriptor).st_size
            if size != count * BLOCK_BYTES or fcntl.fcntl(descriptor, _F_GET_SEALS) & _SEALS != _SEALS:
                raise ProtocolError(f"shared slots of {size} bytes, or not sealed; want {count} of {BLOCK_BYTES}")
            slots = cls(descriptor, count)
        except OSError as error:
            raise ProtocolError(f"shared slots: {error.strerror}") from error
        finally:
            os.close(descriptor)
        slots.descriptor = -1
        return slots

    def close_descriptor(self) -> None:
        """The other side has its own."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def put(self, slot: int, payload: Buffer) -> None:
        """Copy a payload into a slot."""
        view = memoryview(payload).cast("B")
        start = slot * BLOCK_BYTES
        with memoryview(self._memory) as memory:
            memory[start : start + len(view)] = view

    def take(self, slot: int, into: memoryview) -> memoryview:
        """Fill `into` (at most BLOCK_BYTES) from a slot -> `into`."""
        start = slot * BLOCK_BYTES
        with memoryview(self._memory) as memory:
            into[:] = memory[start : start + len(into)]
        return into

"""The memory behind dirty blocks: one memory file per mount, cut into block-sized slots that are used again and again.

A memory file and not plain memory, so that a later version can hand it to a process that outlives this one; reused,
because the first touch of a fresh 1 MiB costs as much as the cipher. The number of blocks is a hard bound: who asks
for one more waits, and the least recently written partial block is sent early to make room.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import trio

from kvfs.limits import BLOCK_BYTES

Item = TypeVar("Item", bound=Hashable)


class MemorySlots:
    """Block-sized slots of one memory file; the last one given back is the next one handed out."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._memory: mmap.mmap | None = None
        self._free = list(range(count - 1, -1, -1))

    def take(self) -> tuple[int, memoryview]:
        """A slot's number and its BLOCK_BYTES bytes, of undefined content. There is one: the caller has a place."""
        if self._memory is None:
            self._memory = self._create()
        slot = self._free.pop()
        return slot, memoryview(self._memory)[slot * BLOCK_BYTES : (slot + 1) * BLOCK_BYTES]

    def give_back(self, slot: int) -> None:
        """The caller keeps no view of the slot."""
        self._free.append(slot)

    def _create(self) -> mmap.mmap:
        descriptor = os.memfd_create("kvfs-staging", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, self.count * BLOCK_BYTES)
            return mmap.mmap(descriptor, self.count * BLOCK_BYTES)
        finally:
            os.close(descriptor)


class StagingRoom(Generic[Item]):
    """Places for dirty blocks, bounded by `memory_bytes`; a block holds a place from its first byte until it was sent.

    `send_early` is called with the least recently written item when somebody waits for whom no place is on its way;
    it calls `depart` for that item.
    """

    def __init__(self, memory_bytes: int, send_early: Callable[[Item], None]) -> None:
        self.slots = MemorySlots(max(2, memory_bytes // BLOCK_BYTES))
        self._places = self.slots.count
        self._waiting = trio.lowlevel.ParkingLot()
        self._departing = 0
        self._sendable: OrderedDict[Item, None] = OrderedDict()
        self._send_early = send_early

    @property
    def used_places(self) -> int:
        """Places that are taken now."""
        return self.slots.count - self._places

    async def enter(self) -> None:
        """Take a place, waiting for one; without a checkpoint when there is one."""
        if self._places and not self._waiting:
            self._places -= 1
            return
        self._balance(arriving=1)
        await self._waiting.park()  # whoever leaves hands its place over

    def leave(self, *, departing: bool) -> None:
        """Give a place back; `departing`: `depart` was called for it."""
        self._departing -= departing
        if self._waiting:
            self._waiting.unpark()
        else:
            self._places += 1

    def touch(self, item: Item) -> None:
        """`item` was just written, and may be sent to make room."""
        self._sendable[item] = None
        self._sendable.move_to_end(item)
        if self._waiting:
            self._balance()

    def depart(self, item: Item) -> None:
        """`item` is being sent: its place will be free."""
        self._departing += 1
        self._sendable.pop(item, None)

    def withdraw(self, item: Item) -> bool:
        """`item` may not be sent (any more) -> whether it could be."""
        if item not in self._sendable:
            return False
        del self._sendable[item]
        return True

    def _balance(self, arriving: int = 0) -> None:
        """As many departures as there are waiters, as far as there is something to send."""
        while len(self._waiting) + arriving > self._departing and self._sendable:
            item = next(iter(self._sendable))
            self._send_early(item)

"""Reading blocks: fetched and verified before an open returns, ahead of a sequential reader, and kept for a while.

The views handed out are good until the caller's next checkpoint: the cache may give their buffer back to the queue
pair after that. A reply to the kernel copies them before.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from kvfs.commands import ReadBlock
from kvfs.errors import InternalError, KvfsError
from kvfs.limits import BLOCK_BYTES, INODE_HINTS_MAX, LOOK_AHEAD_BLOCKS, READ_CACHE_MAX_BYTES
from kvfs.queuepair import QueuePair
from kvfs.tracebacks import without_text

log = logging.getLogger(__name__)

Key: TypeAlias = tuple[int, int]
"""(ino, block number)"""

_EMPTY = memoryview(b"")
_SMALL_BYTES = BLOCK_BYTES // 4
"""Up to here a payload is copied out of its pooled buffer, which would otherwise hold a whole block for it."""
_ENTRY_MIN_BYTES = 4096
"""What a cached hole counts, so that their number is bounded too."""


@dataclass(slots=True, eq=False)
class _CachedBlock:
    view: memoryview
    release: Callable[[], None] | None
    charged_bytes: int


@dataclass(slots=True, eq=False)
class _Fetch:
    """A ReadBlock under way; whoever else needs the block waits for `done`."""

    done: trio.Event = field(default_factory=trio.Event)
    error: KvfsError | None = None


class BlockCache:
    """Plaintext blocks, least recently used first, bounded in bytes. Evicting is immediate."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._blocks: OrderedDict[Key, _CachedBlock] = OrderedDict()
        self._of_ino: dict[int, set[int]] = {}

    def get(self, key: Key) -> memoryview | None:
        """The block's plaintext, if it is here."""
        block = self._blocks.get(key)
        if block is None:
            return None
        self._blocks.move_to_end(key)
        return block.view

    def put(self, key: Key, view: memoryview, release: Callable[[], None] | None) -> memoryview:
        """Keep a block -> the view to use."""
        if release is not None and len(view) <= _SMALL_BYTES:
            view = memoryview(bytes(view))
            release()
            release = None
        charged = BLOCK_BYTES if release is not None else max(len(view), _ENTRY_MIN_BYTES)
        self.drop(key)
        while self._blocks and self.used_bytes + charged > self.max_bytes:
            self.drop(next(iter(self._blocks)))
        self._blocks[key] = _CachedBlock(view, release, charged)
        self._of_ino.setdefault(key[0], set()).add(key[1])
        self.used_bytes += charged
        return view

    def first_out(self, key: Key) -> None:
        """The block has been read to its end: it goes before all others."""
        if key in self._blocks:
            self._blocks.move_to_end(key, last=False)

    def drop(self, key: Key) -> None:
        """Forget one block."""
        block = self._blocks.pop(key, None)
        if block is None:
            return
        self.used_bytes -= block.charged_bytes
        siblings = self._of_ino[key[0]]
        siblings.discard(key[1])
        if not siblings:
            del self._of_ino[key[0]]
        if block.release is not None:
            block.release()

    def indices(self, ino: int) -> list[int]:
        """Block numbers of `ino` that are here."""
        return list(self._of_ino.get(ino, ()))

    def clear(self) -> None:
        """Forget everything."""
        for key in list(self._blocks):
            self.drop(key)


class BlockReads:
    """The one way a mount reads blocks. Fetches that run ahead belong to `nursery`."""

    def __init__(self, queue_pair: QueuePair, nursery: trio.Nursery, cache_bytes: int = READ_CACHE_MAX_BYTES) -> None:
        self._queue_pair = queue_pair
        self._nursery = nursery
        self.cache = BlockCache(cache_bytes)
        self._fetches: dict[Key, _Fetch] = {}
        self._generations: OrderedDict[int, int] = OrderedDict()

    def note_generation(self, ino: int, generation: int, *, same_content: bool = False) -> None:
        """The object's data is of `generation` now: blocks of another one are dropped.

        `same_content`: this mount's own commit made that generation, so what is cached is of it.
        """
        if self._generations.get(ino) != generation:
            if not same_content:
                self.drop(ino)
            self._generations[ino] = generation
            if len(self._generations) > INODE_HINTS_MAX:
                self.drop(self._generations.popitem(last=False)[0])

    async def fetch(self, ino: int, index: int, *, staged: bool) -> memoryview:
        """Plaintext of one block: at most BLOCK_BYTES, shorter or empty where zeros follow.

        `staged`: with what this mount wrote and has not committed. Raises what ReadBlock raises.
        """
        key = (ino, index)
        while True:
            view = self.cache.get(key)
            if view is not None:
                return view
            fetch = self._fetches.get(key)
            if fetch is None:
                fetch = self._fetches[key] = _Fetch()
                return await self._run(key, fetch, staged=staged)
            await fetch.done.wait()
            if fetch.error is not None:
                raise fetch.error
            # The block may have been evicted before this task ran again: look once more.

    async def verify(self, ino: int, size: int) -> None:
        """Fetch all blocks of a file at once; raises the first failure. What fits stays cached until it is read."""
        blocks = -(-size // BLOCK_BYTES)
        fetches = [fetch for index in range(1, blocks) if (fetch := self._ahead(ino, index))]
        if blocks:
            await self.fetch(ino, 0, staged=False)
        for fetch in fetches:
            await fetch.done.wait()
            if fetch.error is not None:
                raise fetch.error

    def look_ahead(self, ino: int, size: int, index: int) -> None:
        """A sequential reader of a large file is in block `index`: fetch the next ones in the background."""
        last = (size - 1) // BLOCK_BYTES
        for ahead in range(index + 1, min(index + LOOK_AHEAD_BLOCKS, last) + 1):
            self._ahead(ino, ahead)

    async def read(self, ino: int, size: int, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Bytes [offset, offset + length) of a clean file of `size` bytes, less at its end only."""
        stop = min(offset + length, size)
        if stop <= offset:
            return b""
        index, start = divmod(offset, BLOCK_BYTES)
        if stop - index * BLOCK_BYTES <= BLOCK_BYTES:
            view = (await self.fetch(ino, index, staged=False))[start : start + stop - offset]
            if (start + stop - offset) % BLOCK_BYTES == 0 or stop == size:
                self.cache.first_out((ino, index))
            return view if len(view) == stop - offset else padded(view, stop - offset)
        out = bytearray(stop - offset)
        position = offset
        while position < stop:
            index, start = divmod(position, BLOCK_BYTES)
            count = min(BLOCK_BYTES - start, stop - position)
            view = (await self.fetch(ino, index, staged=False))[start : start + count]
            out[position - offset : position - offset + len(view)] = view
            position += count
        return out

    def drop_block(self, ino: int, index: int) -> None:
        """The block's content changed: forget it, and what an older fetch is about to bring."""
        self.cache.drop((ino, index))
        self._fetches.pop((ino, index), None)

    def drop(self, ino: int, from_block: int = 0) -> None:
        """The object changed from `from_block` on, or is gone: forget those blocks."""
        for index in self.cache.indices(ino):
            if index >= from_block:
                self.cache.drop((ino, index))
        for key in [key for key in self._fetches if key[0] == ino and key[1] >= from_block]:
            del self._fetches[key]

    def drop_all(self) -> None:
        """Forget everything."""
        self.cache.clear()
        self._fetches.clear()
        self._generations.clear()

    def _ahead(self, ino: int, index: int) -> _Fetch | None:
        """The fetch of a block that is not cached, begun in the background if need be."""
        key = (ino, index)
        if self.cache.get(key) is not None:
            return None
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = self._fetches[key] = _Fetch()
            self._nursery.start_soon(self._run_ahead, key, fetch, name="fetch ahead")
        return fetch

    async def _run_ahead(self, key: Key, fetch: _Fetch) -> None:
        with contextlib.suppress(KvfsError):  # kept in fetch.error for whoever waits
            await self._run(key, fetch, staged=False)

    async def _run(self, key: Key, fetch: _Fetch, *, staged: bool) -> memoryview:
        """Run one ReadBlock -> a view good until the next checkpoint; wakes who waits for it."""
        try:
            reply = await self._queue_pair.submit(ReadBlock(ino=key[0], block=key[1], staged=staged))
            if self._fetches.get(key) is fetch:
                return self.cache.put(key, reply.payload or _EMPTY, reply.release)
            return reply.payload  # dropped meanwhile: good for this reader, not for later ones
        except KvfsError as error:
            fetch.error = error
            raise
        except Exception as error:
            log.error("ReadBlock failed unexpectedly: %s", without_text(error))  # noqa: TRY400 - see kvfs.tracebacks
            fetch.error = InternalError(f"ReadBlock: {type(error).__name__}")
            raise fetch.error from error
        finally:
            if self._fetches.get(key) is fetch:
                del self._fetches[key]
            fetch.done.set()


def padded(view: memoryview, length: int) -> bytes:
    """`view` followed by zeros, `length` bytes in all."""
    return bytes(view) + bytes(length - len(view))

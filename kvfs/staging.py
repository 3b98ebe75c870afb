"""Staging: what is written to open files on its way to the daemon.

Bytes go into block buffers; a full block is sent as a WriteBlock in the background; `commit` sends the rest and
publishes all of it in one command. Until then the committed content stays as it was. A file that lost a write is
poisoned and never published (docs/CONCURRENCY.md has the rules, `kvfs.openfile` the state).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio

from kvfs.blockbuffers import BlockBuffers
from kvfs.blockreads import BlockReads, padded
from kvfs.commands import Commit, Discard, Found, ReleaseUnlinked
from kvfs.errors import FileTooLargeError, InternalError, KvfsError
from kvfs.limits import BLOCK_BYTES, FILE_MAX_BYTES, STAGING_MAX_BYTES
from kvfs.locks import held
from kvfs.openfile import BlockState, OpenFile
from kvfs.queuepair import QueuePair
from kvfs.tracebacks import without_text

log = logging.getLogger(__name__)

_EMPTY = memoryview(b"")


class Staging:
    """Reads and writes open files. Background sends belong to `nursery`; `reads` fetches older content."""

    def __init__(
        self,
        queue_pair: QueuePair,
        nursery: trio.Nursery,
        reads: BlockReads,
        *,
        memory_bytes: int = STAGING_MAX_BYTES,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._queue_pair = queue_pair
        self._reads = reads
        self._now_ns = now_ns
        self._buffers = BlockBuffers(queue_pair, nursery, reads, memory_bytes)

    @property
    def used_blocks(self) -> int:
        """Dirty blocks held now, bounded by `memory_bytes` / BLOCK_BYTES."""
        return self._buffers.room.used_places

    # --- write -----------------------------------------------------------------------------------------

    async def write(self, file: OpenFile, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`. Any failure but FileTooLargeError poisons: there are no short writes.

        Raises FileTooLargeError (an argument that no file can satisfy, the file stays as it is), the cause of an
        earlier failure, or what ReadBlock raises for older content.
        """
        position, stop, view = offset, offset + len(data), memoryview(data)
        if stop > FILE_MAX_BYTES:
            raise FileTooLargeError(f"a write up to byte {stop}, files end at {FILE_MAX_BYTES}")
        try:
            while position < stop:
                index, start = divmod(position, BLOCK_BYTES)
                count = min(BLOCK_BYTES - start, stop - position)
                piece = view[position - offset : position - offset + count]
                await self._write_piece(file, index, start, piece)
                position += count
                file.check_poison()
                file.size = max(file.size, position)
                file.note_write(self._now_ns())
        except KvfsError as error:
            file.poison_with(error)
            raise

    async def _write_piece(self, file: OpenFile, index: int, start: int, piece: memoryview) -> None:
        while True:
            file.check_poison()  # lost meanwhile: nothing staged of it is to be fetched, no block to be added
            block = file.blocks.get(index)
            if block is None:
                if len(piece) == BLOCK_BYTES:
                    if await self._buffers.send_whole(file, index, piece):
                        return
                else:
                    await self._buffers.new_block(file, index)
            elif block.state is not BlockState.OPEN:
                await block.wait_settled()
            elif start > block.length and block.needs_base:
                await self._buffers.load_base(block)
            else:
                break
        block.put(start, piece)
        if block.is_full:
            self._buffers.start_sending(block)
        else:
            self._buffers.room.touch(block)

    # --- read ------------------------------------------------------------------------------------------

    async def read(self, file: OpenFile, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Bytes of the file as this mount sees it, less at its end only; a view is good until the next checkpoint."""
        file.check_poison()
        stop = min(offset + length, file.size)
        if stop <= offset:
            return b""
        index, start = divmod(offset, BLOCK_BYTES)
        count = stop - offset
        if start + count <= BLOCK_BYTES:
            view = await self._view(file, index, start, start + count)
            return view if len(view) == count else padded(view, count)
        out = bytearray(count)
        position = offset
        while position < stop:
            index, start = divmod(position, BLOCK_BYTES)
            count = min(BLOCK_BYTES - start, stop - position)
            view = await self._view(file, index, start, start + count)
            out[position - offset : position - offset + len(view)] = view
            position += count
        return out

    async def _view(self, file: OpenFile, index: int, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of a block; what is missing at its end is zeros."""
        while (block := file.blocks.get(index)) is not None:
            if stop <= block.length or (block.state is not BlockState.LOADING and not block.needs_base):
                return block.memory[start : min(stop, block.length)]
            if block.state is BlockState.OPEN:
                await self._buffers.load_base(block)
            else:
                await block.wait_settled()
            file.check_poison()
        available = file.base_bytes(index)
        if start >= available:
            return _EMPTY
        view = (await self._reads.fetch(file.ino, index, staged=True))[start : min(stop, available)]
        file.check_poison()  # what was staged may have been discarded before this was read
        return view

    # --- truncate --------------------------------------------------------------------------------------

    async def truncate(self, file: OpenFile, size: int) -> None:
        """Set the size; what lies beyond is gone, what is added reads as zeros. Takes effect with the commit."""
        if size > FILE_MAX_BYTES:
            raise FileTooLargeError(f"a size of {size} bytes, files end at {FILE_MAX_BYTES}")
        async with held(file.commit_lock):
            file.check_poison()
            try:
                if size < file.size:
                    await self._cut(file, size)
                else:
                    file.size = size
            except KvfsError as error:
                file.poison_with(error)
                raise
            file.note_write(self._now_ns())

    async def _cut(self, file: OpenFile, size: int) -> None:
        index, length = divmod(size, BLOCK_BYTES)
        first_gone = index + 1 if length else index
        await self._buffers.settle(file, index, length)
        # No block of the file is LOADING or SENDING from here to the next checkpoint, so the gate closes at once.
        await file.close_gate()
        try:
            for block in file.buffers_from(first_gone):
                self._buffers.remove(block, departing=False)
            if length and index in file.blocks:
                file.blocks[index].cut(length)
                self._buffers.room.touch(file.blocks[index])
            file.size = size
            file.base_limit_bytes = min(file.base_limit_bytes, size)
            self._reads.drop(file.ino, first_gone)
            if file.cut_sent(first_gone):
                await self._queue_pair.submit(Discard(ino=file.ino, from_block=first_gone))
        finally:
            file.open_gate()

    # --- commit and discard ------------------------------------------------------------------------------

    async def commit(self, file: OpenFile) -> Commit | None:
        """Publish everything written so far -> the Commit, None if there was nothing (an unlinked file has nothing).

        Raises the cause of a lost write, or what Commit raises; either way the file is poisoned.
        """
        file.check_poison()
        if not file.dirty or file.unlinked:
            return None
        async with held(file.commit_lock):
            await self._buffers.send_all(file)
            file.check_poison()
            if not file.dirty or file.unlinked:
                return None
            await file.close_gate()
            try:
                file.check_poison()
                command = file.commit_command()
                result = (await self._queue_pair.submit(command)).result
                assert isinstance(result, Found)
                file.note_commit(command, result.attributes)
            except KvfsError as error:
                file.poison_with(error)
                raise
            except Exception as error:
                raise _poisoned_by_bug(file, error) from error
            finally:
                file.open_gate()
            return command

    async def discard(self, file: OpenFile) -> None:
        """The file will not be published, because it is poisoned or has no name: drop what was written.

        Once for a poisoned file: a later call drops what writers added that had not noticed, and leaves alone what
        another staging of the object has sent.
        """
        async with held(file.commit_lock):
            while busy := [block for block in file.blocks.values() if block.state is not BlockState.OPEN]:
                await busy[0].wait_settled()
            # Asked for after a failure, too: a WriteBlock that timed out may still have taken effect.
            had_blocks = bool(file.sent) or (file.poison is not None and not file.discarded)
            for block in list(file.blocks.values()):
                self._buffers.remove(block, departing=False)
            file.sent.clear()
            file.changed = False
            self._reads.drop(file.ino)
            if not file.published:  # its number counts as an object until it is given back
                if not file.discarded:
                    await self._queue_pair.submit(ReleaseUnlinked(ino=file.ino))
            elif had_blocks:
                await self._queue_pair.submit(Discard(ino=file.ino, from_block=0))
            file.discarded = file.poison is not None


def _poisoned_by_bug(file: OpenFile, error: Exception) -> InternalError:
    """Poison the file of a Commit that failed in a way that no command should -> what to raise."""
    log.error("Commit failed unexpectedly: %s", without_text(error))
    failure = InternalError(f"Commit: {type(error).__name__}")
    file.poison_with(failure)
    return failure

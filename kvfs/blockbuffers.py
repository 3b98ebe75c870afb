"""Block buffers of a mount: how one comes to be, gets older content under it, and is sent.

Each buffer is touched by one task at a time while it is LOADING or SENDING (`kvfs.openfile.BlockState`).
"""

from __future__ import annotations

import logging

import trio

from kvfs.blockreads import BlockReads
from kvfs.commands import WriteBlock
from kvfs.errors import InternalError, KvfsError
from kvfs.limits import BLOCK_BYTES
from kvfs.openfile import BlockBuffer, BlockState, OpenFile
from kvfs.queuepair import QueuePair
from kvfs.staging_memory import StagingRoom
from kvfs.tracebacks import without_text

log = logging.getLogger(__name__)

_EMPTY = memoryview(b"")


class BlockBuffers:
    """Makes, fills and sends the block buffers of all open files, in at most `memory_bytes`."""

    def __init__(self, queue_pair: QueuePair, nursery: trio.Nursery, reads: BlockReads, memory_bytes: int) -> None:
        self._queue_pair = queue_pair
        self._nursery = nursery
        self._reads = reads
        self.room: StagingRoom[BlockBuffer] = StagingRoom(memory_bytes, self.start_sending)

    async def new_block(self, file: OpenFile, index: int) -> None:
        """Make a buffer for block `index`, unless another task does so while this one waits for room."""
        await self.room.enter()
        if index in file.blocks:
            self.room.leave(departing=False)
            return
        slot, memory = self.room.slots.take()
        file.blocks[index] = BlockBuffer(file, index, memory, slot, base_bytes=file.base_bytes(index))

    async def send_whole(self, file: OpenFile, index: int, piece: memoryview) -> bool:
        """Send the writer's own bytes of a whole block, without a copy -> False if a buffer appeared meanwhile."""
        await self.room.enter()
        if index in file.blocks:
            self.room.leave(departing=False)
            return False
        block = BlockBuffer(file, index, piece, length=BLOCK_BYTES)
        file.blocks[index] = block
        self.start_sending(block)
        return True

    def start_sending(self, block: BlockBuffer) -> None:
        """Send an OPEN block in the background."""
        self.begin_sending(block)
        self._nursery.start_soon(self.send, block, name="send block")

    def begin_sending(self, block: BlockBuffer) -> None:
        """OPEN -> SENDING; `send` must follow."""
        block.begin(BlockState.SENDING)
        self.room.depart(block)

    async def send(self, block: BlockBuffer) -> None:
        """Send a block that is SENDING. A failure poisons its file; the block is gone afterwards either way."""
        file = block.file
        try:
            await file.enter_gate()
            try:
                if file.poison is None:
                    await self._submit_block(file, block)
            finally:
                file.leave_gate()
        except KvfsError as error:
            file.poison_with(error)
        except Exception as error:
            log.error("WriteBlock failed unexpectedly: %s", without_text(error))  # noqa: TRY400 - see kvfs.tracebacks
            file.poison_with(InternalError(f"WriteBlock: {type(error).__name__}"))
        finally:
            self.remove(block, departing=True)

    async def _submit_block(self, file: OpenFile, block: BlockBuffer) -> None:
        if block.needs_base:
            block.merge_base(await self._reads.fetch(file.ino, block.index, staged=True))
        if block.length:
            await self._queue_pair.submit(WriteBlock(ino=file.ino, block=block.index), block.memory[: block.length])
            file.sent[block.index] = block.length
        self._reads.drop_block(file.ino, block.index)

    def remove(self, block: BlockBuffer, *, departing: bool) -> None:
        """Take the block out of its file and free its memory; `departing`: it was SENDING."""
        del block.file.blocks[block.index]
        block.memory = _EMPTY
        if block.slot is not None:
            self.room.slots.give_back(block.slot)
        self.room.withdraw(block)
        self.room.leave(departing=departing)
        block.end()

    async def load_base(self, block: BlockBuffer) -> None:
        """Fetch older content under an OPEN block."""
        sendable = self.room.withdraw(block)
        block.begin(BlockState.LOADING)
        try:
            block.merge_base(await self._reads.fetch(block.file.ino, block.index, staged=True))
        except BaseException:
            block.end()
            self.room.touch(block)
            raise
        block.end()
        # A writer's block becomes sendable when it has put its bytes; sooner, it would be sent under its hands.
        if sendable:
            self.room.touch(block)

    async def send_all(self, file: OpenFile) -> None:
        """Send the blocks that are dirty now, one of them in this task, and wait for all."""
        blocks = list(file.blocks.values())
        inline = next((block for block in blocks if block.state is BlockState.OPEN), None)
        for block in blocks:
            if block.state is BlockState.OPEN and block is not inline:
                self.start_sending(block)
        if inline is not None:
            self.begin_sending(inline)
            await self.send(inline)
        for block in blocks:
            while file.blocks.get(block.index) is block:
                if block.state is BlockState.OPEN:
                    self.start_sending(block)
                await block.wait_settled()

    async def settle(self, file: OpenFile, index: int, length: int) -> None:
        """Wait until all buffers of the file are OPEN, and block `index` has one if its content is to be cut."""
        while True:
            busy = next((block for block in file.blocks.values() if block.state is not BlockState.OPEN), None)
            if busy is not None:
                await busy.wait_settled()
                file.check_poison()
            elif length and index not in file.blocks and file.base_bytes(index) > length:
                await self.new_block(file, index)
            else:
                return

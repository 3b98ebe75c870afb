"""The bound of the catalog's write-ahead log: past it, changes wait for the checkpoint that empties it.

A flood of changes never lets the checkpoint's task run, and while it runs adds more than is copied: 25 KiB for each
file that is made. So whoever adds waits for it. A reader in another process can keep a checkpoint from emptying the
log; then changes go on after it, and wait again when as much has been added once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from kvfsd.catalog import wal

ASK_EVERY: Final = 64
"""Commands between two looks at the file: 0.5 us each, and 64 of them add 2 MiB."""


def _nothing() -> None:
    """Nobody waits."""


class WalBound:
    """Whether the log, `size_bytes` long, has to be checkpointed before anything more is added."""

    def __init__(self, size_bytes: Callable[[], int]) -> None:
        self.on_progress: Callable[[], None] = _nothing
        """Called when a checkpoint has ended."""
        self._size_bytes = size_bytes
        self._limit_bytes = wal.WAL_HARD_BYTES
        self._asked = 0
        self._held = self._served = False
        self._wanted = trio.Event()

    def is_over(self) -> bool:
        """Whether commands have to wait: until the next checkpoint has ended. Wakes it."""
        self._asked += 1
        if self._held or self._asked % ASK_EVERY:
            return self._held
        if self._size_bytes() >= self._limit_bytes:
            self._held = True
            self._wanted.set()
        return self._held

    async def wait_wanted(self) -> None:
        """Return when commands begin to wait; at once if they did since the last call."""
        await self._wanted.wait()
        self._wanted = trio.Event()

    def begin(self) -> None:
        """A checkpoint begins; one that began before commands waited is not the one they wait for."""
        self._served = self._held

    def checkpointed(self) -> None:
        """It has ended, well or not."""
        if not self._served:
            return
        left = self._size_bytes()
        self._limit_bytes = wal.WAL_HARD_BYTES if left < wal.WAL_HARD_BYTES else left + wal.WAL_HARD_BYTES
        self._held = False
        self.on_progress()

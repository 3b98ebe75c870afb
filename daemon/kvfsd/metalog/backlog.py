"""How far the metadata log is behind, and the bound of it: past it, whoever changes the catalog waits for the log.

Nothing but the bound keeps the outbox small: a command that needs no medium completes without a checkpoint, so a
flood of them would never let the log's task run. The outbox holds at most METADATA_LOG_BACKLOG_MAX entries and
METADATA_LOG_BACKLOG_MAX_BYTES, and what the last commands below that queue: an entry or two each, or for a Commit
about 50 bytes a block. While media answer, nothing waits much longer than LATE_MS.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

import trio

from kvfs import limits
from kvfs.errors import KvfsError
from kvfsd.catalog.outbox import OutboxSize

log = logging.getLogger(__name__)

LOW_ENTRIES: Final = limits.METADATA_LOG_BACKLOG_MAX // 2
LOW_BYTES: Final = limits.METADATA_LOG_BACKLOG_MAX_BYTES // 2
"""Commands that wait go on below both: not at the bound, where they would soon stop again."""
LATE_MS: Final = limits.METADATA_LOG_LAG_MS // 2
"""Commands also wait when the log has not caught up for so long; the rest of the lag is for the writing itself."""


def _nothing() -> None:
    """Nobody waits."""


class Backlog:
    """What waits for the log, as `size` counts it, and since when; the log tells of each drain."""

    def __init__(self, size: OutboxSize) -> None:
        self.on_progress: Callable[[], None] = _nothing
        """Called when waiting may be over: there is room, or there was an error."""
        self.last_error: KvfsError | None = None
        """Why the log is behind: what the last drain raised, None while it is not."""
        self.attended = False
        """Whether a task drains the log regularly; only then can it be late."""
        self.size = size
        """What the table holds."""
        self._held = False
        self._wanted = trio.Event()
        self._caught_up = math.nan

    # --- for commands ----------------------------------------------------------------------------------

    @property
    def lag_s(self) -> float:
        """How old the oldest entry that waits may be, in seconds; 0 if none does, or nobody has drained yet."""
        if not self.size.rows or math.isnan(self._caught_up):
            return 0.0
        return trio.current_time() - self._caught_up

    def is_over(self) -> bool:
        """Whether commands have to wait: from the bound up until the low mark is reached. Wakes the log."""
        if self._held:
            return True
        size = self.size
        full = size.rows >= limits.METADATA_LOG_BACKLOG_MAX or size.bytes >= limits.METADATA_LOG_BACKLOG_MAX_BYTES
        if not full and not (size.rows and self._is_late()):
            return False
        self._held = True
        self._wanted.set()
        return True

    def _is_late(self) -> bool:
        # Not if the media fail: commands go on then until the backlog is full.
        return self.attended and self.last_error is None and self.lag_s * 1000 > LATE_MS

    # --- for the log -----------------------------------------------------------------------------------

    async def wait_wanted(self) -> None:
        """Return when commands begin to wait; at once if they did since the last call."""
        await self._wanted.wait()
        self._wanted = trio.Event()

    def begin(self) -> float:
        """A drain begins -> its time, for `caught_up`."""
        now = trio.current_time()
        if math.isnan(self._caught_up):
            self._caught_up = now
        return now

    def progressed(self) -> None:
        """Something was written: commands that wait look again."""
        if self._held:
            self._held = self.size.rows > LOW_ENTRIES or self.size.bytes > LOW_BYTES
            self.on_progress()

    def caught_up(self, began: float) -> None:
        """A drain has ended well: what waits now was queued since it began."""
        self._caught_up = began
        self.last_error = None
        self.progressed()

    def failed(self, error: KvfsError) -> None:
        """A drain has failed; said in the log once until one succeeds."""
        if self.last_error is None:
            log.warning("the metadata log is behind: %s", error)
        self.last_error = error
        self.progressed()

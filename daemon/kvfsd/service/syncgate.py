"""One sync serves all who asked before it began."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class SyncGate:
    """Runs `sync_now` so that each caller's call begins after it asked, and at most one runs at a time."""

    def __init__(self, sync_now: Callable[[], Awaitable[None]]) -> None:
        self._sync_now = sync_now
        self._lock = trio.Lock()
        self._asked = 0
        self._served = 0

    async def sync(self) -> None:
        """Return once a sync that began after this call has succeeded; raises what it raises."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._served >= mine:
                return
            serving = self._asked
            await self._sync_now()
            self._served = serving

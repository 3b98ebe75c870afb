"""Commands that are being carried out and may wait: detaching waits for them."""

from __future__ import annotations

import trio


class InFlight:
    """`with inflight:` around each of them; `idle` returns when there is none."""

    __slots__ = ("_count", "_idle")

    def __init__(self) -> None:
        self._count = 0
        self._idle = trio.Event()

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing is in flight; the caller has the deadline."""
        while self._count:
            self._idle = trio.Event()
            await self._idle.wait()

"""Pauses between attempts at media that do not answer."""

from __future__ import annotations

from typing import Final

import trio

from kvfs.errors import MediumUnavailableError
from kvfsd.metrics import Metrics

BACKOFF_FIRST_MS: Final = 10
BACKOFF_MAX_MS: Final = 250
"""Pauses before a medium is asked again: doubled each time."""


class Backoff:
    """Back-off between attempts, for `deadline_ms` from now on; each one is counted."""

    def __init__(self, metrics: Metrics, deadline_ms: int) -> None:
        self._metrics = metrics
        self._deadline_ms = deadline_ms
        self._next_ms = BACKOFF_FIRST_MS
        self._ends_at = trio.current_time() + deadline_ms / 1000

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return trio.current_time() >= self._ends_at

    async def wait(self, what: object, error: Exception) -> None:
        """Sleep a little longer than last time; MediumUnavailableError, saying `what`, once the deadline has passed."""
        if self.is_over:
            raise MediumUnavailableError(f"{what} gave up after {self._deadline_ms} ms: {error}") from error
        self._metrics.counters.medium_retries += 1
        await trio.sleep(self._next_ms / 1000)
        self._next_ms = min(2 * self._next_ms, BACKOFF_MAX_MS)

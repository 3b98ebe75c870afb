"""What commands that change something wait for: the metadata log, if too far behind, and the catalog's checkpoint.

The wait comes before the command's transaction, so it holds nothing: reads go on, and so do the tasks it waits for.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from kvfs.errors import PoolFullError
from kvfsd.metalog.backlog import Backlog
from kvfsd.metrics import Metrics
from kvfsd.service.walbound import WalBound


class Backpressure:
    """Commands of all sessions ask `holds`, and if so `wait`."""

    def __init__(self, backlog: Backlog, wal: WalBound, metrics: Metrics) -> None:
        self._backlog = backlog
        self._wal = wal
        self._metrics = metrics
        self._changed = trio.Event()
        backlog.on_progress = wal.on_progress = self.wake
        metrics.gauges.update(
            metadata_log_backlog_entries=lambda: backlog.size.rows,
            metadata_log_backlog_bytes=lambda: backlog.size.bytes,
            metadata_log_lag_seconds=lambda: backlog.lag_s,
        )

    def holds(self) -> bool:
        """Whether a command that changes something would have to wait now; no checkpoint."""
        return self._backlog.is_over() or self._wal.is_over()

    def wake(self) -> None:
        """Commands that wait look again: there is room, an error, or no use in waiting."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait(self, frees_space: bool, given_up: Callable[[], bool]) -> None:
        """Return once there is room, or it is `given_up`; the caller has the deadline.

        When the metadata log has no room on the media, waiting would not help: a command that `frees_space` goes on
        (else nothing could ever be removed from a full pool), any other one is refused with PoolFullError.
        """
        if self._backlog.is_over():
            self._metrics.counters.metadata_log_waits += 1
        else:
            self._metrics.counters.checkpoint_waits += 1
        while self.holds() and not given_up():
            if self._backlog.is_over() and isinstance(self._backlog.last_error, PoolFullError):
                if frees_space:
                    return
                raise PoolFullError(f"the metadata log has no room: {self._backlog.last_error}")
            await self._changed.wait()

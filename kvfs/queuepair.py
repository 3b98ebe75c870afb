"""The queue pair: the trust boundary between host half and DPU half, as the host half sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from kvfs.commands import Command, Event, Result

Buffer = bytes | bytearray | memoryview


class Reply(NamedTuple):
    """A successful completion: its result, and the payload of a ReadBlock (empty otherwise).

    The payload belongs to the caller. If it is a view of a pooled buffer the caller returns it with
    `release()`, once, when the bytes are no longer needed; forgetting to costs an allocation, never bytes.
    """

    result: Result
    payload: memoryview = memoryview(b"")
    release: Callable[[], None] | None = None


class QueuePair(Protocol):
    """Submits commands of one attachment (one mount of one tenant)."""

    async def submit(self, command: Command, payload: Buffer = b"") -> Reply:
        """Run `command` and wait for its completion.

        `payload` (WriteBlock only) may be reused by the caller as soon as this returns or raises.
        Raises the `kvfs.errors` class of the completion's status; DeadlineExceededError after
        `limits.COMMAND_DEADLINE_MS`. Completes without a checkpoint when no I/O is needed; a command that changes
        something may wait for the daemon's metadata log to catch up.
        """
        ...

    def take_events(self) -> list[Event]:
        """Events that have come since the last call, oldest first (bounded; an overflow shows as ObjectChanged(0),
        which means: drop everything that is cached)."""
        ...

    async def wait_event(self) -> None:
        """Return once `take_events` has something."""
        ...

    def on_state_lost(self, call: Callable[[], None]) -> None:
        """Have `call` run if the daemon loses this attachment: blocks that it acknowledged and were not committed, and
        numbers of objects that were not published, are gone. It runs before any other command reaches the daemon and
        does not wait; a pair within one process never loses anything."""
        ...

    async def aclose(self) -> None:
        """Detach: drop uncommitted blocks of this attachment and wait for commands in flight."""
        ...

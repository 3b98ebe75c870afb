"""When commands have to wait for the metadata log, and until when."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from kvfs import limits
from kvfs.errors import MediumUnavailableError
from kvfsd.catalog.outbox import OutboxSize
from kvfsd.metalog.backlog import LATE_MS, LOW_BYTES, LOW_ENTRIES, Backlog


class Bounded:
    """A backlog over sums that the test sets."""

    def __init__(self) -> None:
        self.size = OutboxSize()
        self.backlog = Backlog(self.size)
        self.wakes = 0
        self.backlog.on_progress = self.woken

    def woken(self) -> None:
        self.wakes += 1

    def set(self, entries: int, entry_bytes: int) -> Backlog:
        self.size.rows, self.size.bytes = entries, entry_bytes
        return self.backlog


@pytest.mark.parametrize(
    ("entries", "entry_bytes", "over"),
    [
        (0, 0, False),
        (limits.METADATA_LOG_BACKLOG_MAX - 1, limits.METADATA_LOG_BACKLOG_MAX_BYTES - 1, False),
        (limits.METADATA_LOG_BACKLOG_MAX, 0, True),
        (1, limits.METADATA_LOG_BACKLOG_MAX_BYTES, True),
    ],
)
def test_it_is_over_from_either_bound_on(entries: int, entry_bytes: int, over: bool) -> None:
    assert Bounded().set(entries, entry_bytes).is_over() == over


def test_it_stays_over_until_both_are_below_the_low_mark() -> None:
    bounded = Bounded()
    assert bounded.set(limits.METADATA_LOG_BACKLOG_MAX, LOW_BYTES + 1).is_over()
    for entries, entry_bytes in ((LOW_ENTRIES + 1, 0), (0, LOW_BYTES + 1)):
        bounded.set(entries, entry_bytes).progressed()
        assert bounded.backlog.is_over()
    bounded.set(LOW_ENTRIES, LOW_BYTES).progressed()
    assert not bounded.backlog.is_over()
    assert bounded.wakes == 3, "those who wait look again each time: it may be an error"


def test_nobody_is_woken_while_nobody_waits() -> None:
    bounded = Bounded()
    bounded.set(5, 5).progressed()
    assert bounded.wakes == 0


async def test_it_is_over_when_the_log_is_late(autojump_clock: MockClock) -> None:
    bounded = Bounded()
    backlog = bounded.set(1, 1)
    assert backlog.lag_s == 0
    backlog.caught_up(backlog.begin())
    await trio.sleep(LATE_MS / 1000)
    assert backlog.lag_s == pytest.approx(LATE_MS / 1000)
    await trio.sleep(0.001)
    assert not backlog.is_over(), "nobody drains it, so waiting would not help"
    backlog.attended = True
    bounded.set(0, 0)
    assert not backlog.is_over(), "nothing waits"
    bounded.set(1, 1)
    backlog.failed(MediumUnavailableError("away"))
    assert not backlog.is_over(), "a medium that fails is waited for at the bound only"
    backlog.last_error = None
    assert backlog.is_over()
    backlog.caught_up(backlog.begin())
    assert not backlog.is_over()
    assert backlog.lag_s == 0


def test_a_failure_is_said_once_and_ends_waits_that_it_concerns(caplog: pytest.LogCaptureFixture) -> None:
    bounded = Bounded()
    bounded.set(limits.METADATA_LOG_BACKLOG_MAX, 0)
    assert bounded.backlog.is_over()
    for _ in range(3):
        bounded.backlog.failed(MediumUnavailableError("medium 0 is away"))
    assert bounded.wakes == 3
    assert [record.getMessage() for record in caplog.records] == ["the metadata log is behind: medium 0 is away"]
    bounded.backlog.caught_up(0.0)
    bounded.backlog.failed(MediumUnavailableError("again"))
    assert len(caplog.records) == 2


async def test_the_log_is_woken_once_when_commands_begin_to_wait() -> None:
    bounded = Bounded()
    bounded.set(limits.METADATA_LOG_BACKLOG_MAX, 0)
    assert bounded.backlog.is_over()
    assert bounded.backlog.is_over()
    await bounded.backlog.wait_wanted()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bounded.backlog.wait_wanted()
    assert scope.cancelled_caught, "a log that cannot write is not asked over and over"

"""A short run of the crash rounds; the long one is `python tests/crash/crash_rounds.py --rounds 1000`."""

from __future__ import annotations

import os

import pytest

from tests import mountlib
from tests.crash.crash_rounds import Wanted, run


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_some_crash_rounds() -> None:
    """KVFS_CRASH_ROUNDS sets the number (default 6), KVFS_CRASH_SEED repeats a run."""
    reason = mountlib.can_mount()
    if reason is not None:
        pytest.skip(reason)
    seed = int(os.environ.get("KVFS_CRASH_SEED", "20251123"))
    totals = run(Wanted(rounds=int(os.environ.get("KVFS_CRASH_ROUNDS", "6")), seed=seed))
    assert totals.violations == [], f"seed {seed}\n{totals.table()}"
    assert totals.acknowledged.total() > totals.rounds, "the workload hardly ran"

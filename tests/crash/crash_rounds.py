"""Kill -9 at random points of a mixed workload, mount again, check everything.

    python tests/crash/crash_rounds.py --rounds N [--seed S]
    python tests/crash/crash_rounds.py --rounds 1 --seed S --first 80       round 80 again, on a fresh pool

One pool lives through all rounds. In each round several workers store, overwrite, rename, truncate, link and unlink on
a fresh mount while they journal what they begin and what was acknowledged, outside the mount. At a random moment the
mount process gets SIGKILL (after a random delay, or right after a random acknowledgement); sometimes it is killed
again while it recovers. Then it is mounted once more and the whole tree is compared: what was acknowledged is there
and byte-exact, the operation in flight happened wholly or not at all, and there is nothing else. The charged bytes and
objects must equal a full recount of the catalog and of the tree. After the last round everything is removed: the
segments must come back, no space may stay behind that nobody owns. Exit status 1 on any violation; what led to it
(journals, log, tree listing, pool) stays in the directory that is printed. A mount that does not start or end in time
is a violation, too, and what its threads were doing is printed. The last line is a summary in JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests import mountlib  # noqa: E402 - the script may be started from anywhere
from tests.crash.accounting import Accounting, segments_in_use  # noqa: E402
from tests.crash.check import Expected, Tree, check_tree, expected_accounting  # noqa: E402
from tests.crash.journal import replay  # noqa: E402
from tests.crash.model import State, empty_state  # noqa: E402
from tests.crash.totals import Reclaimed, Totals  # noqa: E402
from tests.crash.workload import SHARED  # noqa: E402

ACKNOWLEDGEMENTS_MAX = 150
"""A round is killed at the latest after that many acknowledged operations."""
DELAY_MAX_S = 1.0
WORKER_END_LIMIT_S = 60.0
TENANT = "engine"
POOL_SIZE = "1G"
"""Some times what the workers keep, so that segments are collected while they write and are killed."""
SEGMENTS_LEFT_MAX = 8
"""Of an empty pool: open segments and the metadata log."""
RECLAIM_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rounds to run: those numbered from `first` on; a pool that failed is followed by a fresh one."""

    rounds: int
    seed: int
    first: int = 0
    workers: int = 4
    without: tuple[str, ...] = ()
    failures_max: int = 1
    """Failed rounds after which the run ends."""


class CrashRounds:
    """A pool, its workers' states, and the rounds that they go through."""

    def __init__(self, base: Path, wanted: Wanted, totals: Totals) -> None:
        self.base, self.wanted, self.totals = base, wanted, totals
        self.rounds = 0
        self.rng = random.Random(wanted.seed)
        self.pool = mountlib.PoolFixture.create(base, "--size", POOL_SIZE, tenants=(TENANT,))
        self.mount = self.pool.mount(TENANT)
        self.watchdog = mountlib.Watchdog(self.mount.mountpoint, 120.0)
        self.journals = base / "journals"
        self.states: list[State] = [empty_state() for _ in range(wanted.workers)]
        self.mount.start()
        for shared in SHARED:
            (self.mount.mountpoint / shared).mkdir(parents=True)

    def close(self) -> None:
        """End the mount, whatever state it is in."""
        self.mount.kill()
        self.watchdog.close()

    def round(self, number: int) -> list[str]:
        """Round `number` on a running mount; the mount runs again afterwards -> violations."""
        self.rng = random.Random(f"{self.wanted.seed} {number}")
        self.watchdog.beat()
        self._fresh_journals()
        violations = self._run_until_killed()
        self._recover()
        replays = [replay(self.journals / f"{n}.journal", state) for n, state in enumerate(self.states)]
        tree, states, found = check_tree(self.mount.mountpoint, replays)
        self.rounds += 1
        self.totals.count(replays, states)
        violations += found or self._check_accounting(expected_accounting(tree, states))
        self.states = states
        return violations

    def _fresh_journals(self) -> None:
        shutil.rmtree(self.journals, ignore_errors=True)
        self.journals.mkdir()
        for number, state in enumerate(self.states):
            (self.journals / f"{number}.state").write_text(json.dumps(state))

    def _run_until_killed(self) -> list[str]:
        command = [sys.executable, "-m", "tests.crash.workload", str(self.mount.mountpoint), str(self.journals)]
        command += ["--seed", str(self.rng.getrandbits(60)), "--workers", str(self.wanted.workers)]
        command += ["--without", *self.wanted.without]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=ROOT)
        try:
            self._await_moment(worker)
            self.mount.kill()
            worker.communicate(timeout=WORKER_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            return [f"the workload did not end {WORKER_END_LIMIT_S} s after the kill"]
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            worker.wait()
        return [] if worker.returncode == 0 else [f"the workload ended with {worker.returncode}"]

    def _await_moment(self, worker: subprocess.Popen[bytes]) -> None:
        """Return at the moment of the kill: after the n-th acknowledgement, or a delay after the first one."""
        assert worker.stdout is not None
        by_count = self.rng.random() < 0.6
        wanted = self.rng.randrange(1, ACKNOWLEDGEMENTS_MAX) if by_count else 1
        seen, limit = 0, time.monotonic() + WORKER_END_LIMIT_S
        while seen < wanted and time.monotonic() < limit:
            ready, _, _ = select.select([worker.stdout], [], [], 1.0)
            data = os.read(worker.stdout.fileno(), wanted - seen) if ready else b"?"
            if not data:
                return
            seen += data.count(b".")
        time.sleep(self.rng.random() * (0.003 if by_count else DELAY_MAX_S))

    def _recover(self) -> None:
        """Mount again; in one round of eight the recovering process is killed first."""
        if self.rng.random() < 0.125:
            self.totals.recovery_kills += 1
            self.mount.start_and_kill(self.rng.random() * 1.0)
        started = time.monotonic()
        self.mount.start()
        self.totals.remount_s.append(time.monotonic() - started)

    def _check_accounting(self, expected: Expected) -> list[str]:
        """Recount on the closed pool, right after the recovery; then mount again for the next round."""
        status = self.mount.stop()
        violations = [] if status == 0 else [f"the mount ended with {status} after SIGTERM"]
        violations += Accounting.take(self.pool, TENANT).violations(expected)
        self.mount.start()
        return violations

    def reclaim(self) -> list[str]:
        """Remove everything; the space must be free again soon -> violations."""
        self.watchdog.beat()
        shutil.rmtree(self.mount.mountpoint, ignore_errors=True)  # the mountpoint itself is busy and stays
        started, left = time.monotonic(), -1
        limit = started + RECLAIM_LIMIT_S
        while left < 0 or (left > SEGMENTS_LEFT_MAX and time.monotonic() < limit):
            time.sleep(1.0)  # the collector works in the background
            self.mount.stop()
            left = segments_in_use(self.pool)
            self.mount.start()
        self.totals.reclaimed.append(Reclaimed(self.rounds, left, time.monotonic() - started))
        self.mount.stop()
        violations = Accounting.take(self.pool, TENANT).violations(Expected(0, 0, 0))
        self.mount.start()
        if left > SEGMENTS_LEFT_MAX:
            violations.append(f"space: {left} segments of an empty pool are in use {RECLAIM_LIMIT_S} s later")
        return violations

    def evidence(self) -> str:
        """Keep what a reader of a violation needs; the pool itself stays as well."""
        listing = self.base / "tree.json"
        with contextlib.suppress(OSError):
            listing.write_text(json.dumps(Tree.read(self.mount.mountpoint).names, indent=1))
        return str(self.base)


def _passed(crash: CrashRounds, violations: list[str], where: str) -> bool:
    """Note the violations, and keep what led to them."""
    if violations:
        crash.totals.failed_rounds.append(where)
        crash.totals.violations += violations
        kept = f"{crash.evidence()}-evidence"
        crash.mount.kill()
        subprocess.run(["cp", "-a", "--sparse=always", crash.base, kept], check=False)
        print(f"{where}: evidence in {kept}", *violations[:20], sep="\n  ", flush=True)
    return not violations


def _rounds_on_one_pool(wanted: Wanted, numbers: deque[int], totals: Totals, tell: Callable[[str], None]) -> None:
    """Rounds on a fresh pool until one fails or there are no more `numbers`; then its space must come back."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(mountlib.scratch_directory("kvfs-crash-"))
        crash = CrashRounds(scratch, wanted, totals)
        stack.callback(crash.close)
        started = time.monotonic()
        while numbers:
            number = numbers.popleft()
            if not _passed(crash, _guarded(crash.round, number), f"round {number} of seed {wanted.seed}"):
                return
            if crash.rounds % 10 == 0:
                each = (time.monotonic() - started) / crash.rounds
                done, operations = totals.rounds, totals.acknowledged.total()
                tell(f"{done} of {wanted.rounds} rounds, {each:.1f} s each, {operations} acknowledged operations")
        _passed(crash, _guarded(crash.reclaim), f"space after {crash.rounds} rounds of seed {wanted.seed}")


def _guarded(step: Callable[..., list[str]], *args: int) -> list[str]:
    """A mount that does not start or stop in time is a violation; its text says where the process waits."""
    try:
        return step(*args)
    except mountlib.MountError as error:
        return [str(error)]


def run(wanted: Wanted, tell: Callable[[str], None] = lambda text: None) -> Totals:
    """All rounds -> what happened; `tell` gets a line of progress now and then."""
    totals = Totals(seed=wanted.seed)
    numbers = deque(range(wanted.first, wanted.first + wanted.rounds))
    while numbers and len(totals.failed_rounds) < wanted.failures_max:
        _rounds_on_one_pool(wanted, numbers, totals, tell)
    return totals


def main() -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--first", type=int, default=0, help="number of the first round, to repeat one that failed")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--without", nargs="*", default=[], help="operations to leave out, to narrow a failure down")
    parser.add_argument("--failures-max", type=int, default=1, help="go on, with a fresh pool, until so many failed")
    options = vars(parser.parse_args())
    wanted = Wanted(**options | {"without": tuple(options["without"])})
    mountlib.end_on_sigterm()
    reason = mountlib.can_mount()
    if reason is not None:
        print(f"cannot mount: {reason}", file=sys.stderr)
        return 2
    print(f"seed {wanted.seed}, {wanted.rounds} rounds", flush=True)
    totals = run(wanted, lambda text: print(text, flush=True))
    print(totals.table(), json.dumps(totals.summary()), sep="\n")
    return 1 if totals.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())

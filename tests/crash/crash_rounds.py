"""Kill -9 at random points of a mixed workload, mount again, check everything.

    python tests/crash/crash_rounds.py --rounds N [--seed S]

One pool lives through all rounds. In each round several workers store, overwrite, rename, truncate, link and unlink on
a fresh mount while they journal what they begin and what was acknowledged, outside the mount. At a random moment the
mount process gets SIGKILL (after a random delay, or right after a random acknowledgement); sometimes it is killed
again while it recovers. Then it is mounted once more and the whole tree is compared: what was acknowledged is there
and byte-exact, the operation in flight happened wholly or not at all, and there is nothing else. The charged bytes and
objects must equal a full recount of the catalog and of the tree. After the last round everything is removed: the
segments must come back, no space may stay behind that nobody owns. Exit status 1 on any violation; what led to it
(journals, log, tree listing) stays in the directory that is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests import mountlib  # noqa: E402 - the script may be started from anywhere
from tests.crash.accounting import Accounting, segments_in_use  # noqa: E402
from tests.crash.check import Expected, Tree, check_tree, expected_accounting  # noqa: E402
from tests.crash.journal import Replay, replay  # noqa: E402
from tests.crash.model import State, empty_state  # noqa: E402
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


@dataclass
class Totals:
    """What all rounds together did."""

    rounds: int = 0
    acknowledged: int = 0
    in_flight: int = 0
    in_flight_done: int = 0
    recovery_kills: int = 0
    remount_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Counts and the 95 % upper bound that they allow to claim."""
        times = sorted(self.remount_s) or [0.0]
        lines = [
            f"rounds                    {self.rounds}",
            f"acknowledged operations   {self.acknowledged}",
            f"operations in flight      {self.in_flight}, of these done {self.in_flight_done}",
            f"kills during recovery     {self.recovery_kills}",
            f"remount median/max s      {statistics.median(times):.2f} / {times[-1]:.2f}",
            f"violations                {len(self.violations)}",
        ]
        if self.rounds and not self.violations:
            lines.append(f"95 % upper bound          {100 * 3 / self.rounds:.2f} % of kills lose or damage something")
        return "\n".join(lines)


class CrashRounds:
    """A pool, its workers' states, and the rounds that they go through."""

    def __init__(self, base: Path, seed: int, workers: int = 4, without: Sequence[str] = ()) -> None:
        self.base, self.workers, self.without = base, workers, without
        self.rng = random.Random(seed)
        self.pool = mountlib.PoolFixture.create(base, "--size", POOL_SIZE, tenants=(TENANT,))
        self.mount = self.pool.mount(TENANT)
        self.watchdog = mountlib.Watchdog(self.mount.mountpoint, 120.0)
        self.journals = base / "journals"
        self.states: list[State] = [empty_state() for _ in range(workers)]
        self.totals = Totals()
        self.mount.start()
        for shared in SHARED:
            (self.mount.mountpoint / shared).mkdir(parents=True)

    def close(self) -> None:
        """End the mount, whatever state it is in."""
        self.mount.kill()
        self.watchdog.close()

    def round(self) -> list[str]:
        """One round on a running mount; the mount runs again afterwards -> violations."""
        self.watchdog.beat()
        self._fresh_journals()
        violations = self._run_until_killed()
        self._recover()
        replays = [replay(self.journals / f"{n}.journal", state) for n, state in enumerate(self.states)]
        tree, states, found = check_tree(self.mount.mountpoint, replays)
        self._count(replays, states)
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
        command += ["--seed", str(self.rng.getrandbits(60)), "--workers", str(self.workers)]
        command += ["--without", *self.without]
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

    def _count(self, replays: list[Replay], states: list[State]) -> None:
        self.totals.rounds += 1
        for replayed, state in zip(replays, states, strict=True):
            self.totals.acknowledged += replayed.acknowledged
            self.totals.in_flight += replayed.in_flight is not None
            self.totals.in_flight_done += replayed.in_flight is not None and state != replayed.state

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
        left, limit = -1, time.monotonic() + RECLAIM_LIMIT_S
        while left < 0 or (left > SEGMENTS_LEFT_MAX and time.monotonic() < limit):
            time.sleep(1.0)  # the collector works in the background
            self.mount.stop()
            left = segments_in_use(self.pool)
            self.mount.start()
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
    crash.totals.violations += violations
    if violations:
        kept = Path(f"{crash.evidence()}-evidence")
        crash.mount.kill()
        shutil.copytree(crash.base, kept, symlinks=True)
        print(f"{where}: evidence in {kept}", *violations[:20], sep="\n  ", flush=True)
    return not violations


def run(rounds: int, seed: int, *, workers: int = 4, without: Sequence[str] = (), verbose: bool = True) -> Totals:
    """`rounds` rounds on a pool of their own -> what happened; stops at the first round with violations."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(mountlib.scratch_directory("kvfs-crash-"))
        crash = CrashRounds(scratch, seed, workers, without)
        stack.callback(crash.close)
        for number in range(rounds):
            try:
                violations = crash.round()
            except mountlib.MountError as error:
                violations = [str(error)]
            if not _passed(crash, violations, f"round {number} of seed {seed}"):
                break
            if verbose and (number + 1) % 10 == 0:
                print(f"{number + 1} rounds, {crash.totals.acknowledged} acknowledged operations", flush=True)
        else:
            _passed(crash, crash.reclaim(), f"after {rounds} rounds of seed {seed}")
        return crash.totals


def main() -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--without", nargs="*", default=[], help="operations to leave out, to narrow a failure down")
    arguments = parser.parse_args()
    mountlib.end_on_sigterm()
    reason = mountlib.can_mount()
    if reason is not None:
        print(f"cannot mount: {reason}", file=sys.stderr)
        return 2
    print(f"seed {arguments.seed}, {arguments.rounds} rounds", flush=True)
    totals = run(arguments.rounds, arguments.seed, workers=arguments.workers, without=arguments.without)
    print(totals.table())
    return 1 if totals.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The quickstart's run: replay, SIGKILL in the middle, remount, verify every byte, calibrate, look for plaintext."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvfs_tools.quickstart import controls, player, trace
from kvfs_tools.quickstart.blocks import BlockSource
from kvfs_tools.quickstart.plaintext import PlaintextIndex, SearchReport, search
from kvfs_tools.quickstart.pool import create_pool, create_tenant, mount_tenant
from kvfs_tools.quickstart.processes import MountProcess, StepFailedError, play
from kvfs_tools.quickstart.protocol import FileTier
from kvfs_tools.quickstart.results import ReplayStatistics
from kvfs_tools.quickstart.sandbox import Sandbox

MODEL = "example-org/replayed-8b-instruct"
TENANT = "tenant-blue-of-the-replay"
"""These and every other name that is searched for must not occur in paths that kvfs is given."""
POOL_MIN_BYTES = 256 << 20
"""Of the sparse medium; a smaller one would have tiny segments."""
PLAY_DEADLINE_S = 240.0
NAMES_SEARCHED = 64
"""Block file names that are searched for; the model's name and the tenant's come in addition."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is replayed. `blocks` different blocks are stored, once each on kvfs and on a plain directory."""

    blocks: int = 384
    block_bytes: int = 2 << 20
    threads: int = 16
    seed: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    @property
    def data_bytes(self) -> int:
        """Bytes stored on each target."""
        return self.blocks * self.block_bytes

    @property
    def needed_bytes(self) -> int:
        """Room for the pool and the plain directory."""
        return 3 * self.data_bytes


@dataclass(slots=True)
class Outcome:
    """What the run found, for the table and the verdict."""

    settings: Settings
    expected: trace.Expectation
    kvfs: ReplayStatistics
    raw: ReplayStatistics
    null: ReplayStatistics
    acknowledged_at_kill: int
    search: SearchReport
    control_found: bool

    def failures(self) -> list[str]:
        """Everything that should not be so; empty when the run is a success."""
        failed = [f"kvfs: {text}" for text in self.kvfs.wrong] + [f"raw: {text}" for text in self.raw.wrong]
        absent = [block for block, outcome in self.kvfs.outcomes.items() if outcome != player.EXACT]
        if absent:
            failed.append(f"{len(absent)} acknowledged blocks are absent after kill -9 and remount: {absent[:8]}")
        if len(self.kvfs.outcomes) != self.expected.distinct:
            failed.append(f"{len(self.kvfs.outcomes)} blocks verified, {self.expected.distinct} were stored")
        for name, target in (("raw directory", self.raw), ("null filesystem", self.null)):
            if target.hits != self.expected.hits:
                failed.append(f"{name}: {target.hits} hits, simulation says {self.expected.hits}")
        failed += [f"plaintext found: {finding}" for finding in self.search.findings[:8]]
        if not self.control_found:
            failed.append("the planted control was not found: the search for plaintext proves nothing")
        return failed


Report = Callable[[str], None]


class Quickstart:
    """One run in one sandbox; `run` leaves no process and no mount behind."""

    def __init__(self, settings: Settings, sandbox: Sandbox, report: Report) -> None:
        self._settings = settings
        self._sandbox = sandbox
        self._report = report
        self._source = BlockSource(settings.seed, settings.block_bytes)
        self._plan = trace.plan_replay(trace.shipped_trace(), settings.blocks)
        self._expected = trace.expectation(self._plan)
        self._environment = sandbox.environment()

    def run(self) -> Outcome:
        """Everything, in order. Raises KvfsError if a step fails as a whole."""
        self._create_pool()
        kvfs = ReplayStatistics()
        killed_at = self._replay_and_kill(kvfs)
        self._resume(kvfs, killed_at)
        self._verify(kvfs)
        raw, null = self._calibrate()
        report, control_found = self._search()
        return Outcome(self._settings, self._expected, kvfs, raw, null, killed_at, report, control_found)

    def _create_pool(self) -> None:
        sandbox, settings = self._sandbox, self._settings
        self._report(f"a pool in {sandbox.pool} and a tenant in it")
        create_pool(sandbox, max(2 * settings.data_bytes, POOL_MIN_BYTES), self._environment)
        create_tenant(sandbox, TENANT, self._environment)

    def _mount(self) -> MountProcess:
        return mount_tenant(self._sandbox, TENANT, self._sandbox.mountpoint, self._environment)

    def _job(self, mode: player.Mode, root: Path, chains: Sequence[Sequence[int]], verify: bool = True) -> player.Job:
        settings = self._settings
        return player.Job(
            mode=mode,
            root=str(root),
            model=MODEL,
            seed=settings.seed,
            block_bytes=settings.block_bytes,
            threads=settings.threads,
            chains=[list(chain) for chain in chains],
            verify=verify,
        )

    def _play(self, job: player.Job, statistics: ReplayStatistics, stop: Callable[[], bool] = lambda: False) -> None:
        def take(event: player.Event) -> bool:
            statistics.take(event)
            return stop()

        play(job, take, self._sandbox.root / "player.log", PLAY_DEADLINE_S)

    def _replay_and_kill(self, kvfs: ReplayStatistics) -> int:
        """Replay until half of the blocks are acknowledged, then SIGKILL mount and engine; returns that number."""
        self._report(f"replaying {len(self._plan)} requests with {self._settings.threads} threads, kill -9 half-way")
        mount = self._mount()
        chains = [request.chain for request in self._plan]

        def at_half() -> bool:
            if len(kvfs.acknowledged) * 2 < self._expected.distinct:
                return False
            kvfs.cpu_seconds += mount.cpu_seconds()
            mount.crash()
            return True

        try:
            self._play(self._job(player.Mode.REPLAY, self._sandbox.mountpoint, chains), kvfs, at_half)
        finally:
            mount.kill()
        if kvfs.finished:
            raise StepFailedError("the replay was over before it could be killed")
        return len(kvfs.acknowledged)

    def _resume(self, kvfs: ReplayStatistics, killed_at: int) -> None:
        """Remount; all that was acknowledged must be there; serve the remaining requests; unmount in order."""
        self._report(
            f"remounted: verifying the {killed_at} blocks acknowledged before the kill, then replaying the rest"
        )
        mount = self._mount()
        try:
            self._play(self._job(player.Mode.LOAD, self._sandbox.mountpoint, [sorted(kvfs.acknowledged)]), kvfs)
            served = kvfs.requests - 1  # the one that was interrupted is served again
            rest = [request.chain for request in self._plan[max(0, served) :]]
            self._play(self._job(player.Mode.REPLAY, self._sandbox.mountpoint, rest), kvfs)
            kvfs.cpu_seconds += mount.cpu_seconds()
            mount.stop()
        finally:
            mount.kill()

    def _all_blocks(self) -> list[int]:
        return sorted({block for request in self._plan for block in request.chain})

    def _verify(self, kvfs: ReplayStatistics) -> None:
        """Remount and load every block; these loads, from a fresh mount, are the ones in the table."""
        self._report(f"remounted: verifying every byte of {self._expected.distinct} blocks")
        forget_cached(self._sandbox.pool)
        kvfs.is_cold = True
        mount = self._mount()
        try:
            self._play(self._job(player.Mode.LOAD, self._sandbox.mountpoint, [self._all_blocks()]), kvfs)
            kvfs.cpu_seconds += mount.cpu_seconds()
            mount.stop()
        finally:
            mount.kill()

    def _calibrate(self) -> tuple[ReplayStatistics, ReplayStatistics]:
        """The same replay on a plain directory of the same disk, and on a null pyfuse3 filesystem."""
        self._report("calibration: the same on a plain directory and on a null pyfuse3 filesystem")
        raw, null = ReplayStatistics(), ReplayStatistics()
        self._measure(raw, self._sandbox.raw, verify=True)
        words = [sys.executable, "-m", "kvfs_tools.quickstart.nullfs", str(self._sandbox.null)]
        mount = MountProcess(words, self._sandbox.null, self._sandbox.root / "null.log", os.environ)
        try:
            self._measure(null, self._sandbox.null, verify=False)
            null.cpu_seconds = mount.cpu_seconds()
        finally:
            mount.kill()
        return raw, null

    def _measure(self, statistics: ReplayStatistics, root: Path, verify: bool) -> None:
        chains = [request.chain for request in self._plan]
        self._play(self._job(player.Mode.REPLAY, root, chains, verify), statistics)
        if verify:
            forget_cached(root)
        statistics.is_cold = True
        self._play(self._job(player.Mode.LOAD, root, [self._all_blocks()], verify), statistics)

    def _search(self) -> tuple[SearchReport, bool]:
        """Look for every unit of every block, and names, in all that kvfs could write; prove that the search finds."""
        self._report("looking for plaintext in media, state, keys, logs and whatever was left behind")
        index = PlaintextIndex()
        for unit in self._source.units:
            index.add("block content", unit)
        blocks = self._all_blocks()
        step = max(1, len(blocks) // NAMES_SEARCHED)
        names = [self._source.digest(block) for block in blocks[::step]]
        tier = FileTier(self._sandbox.mountpoint, MODEL, self._settings.block_bytes)
        directory = Path(tier.path(names[0])).parents[2].name
        for name in (MODEL, MODEL.replace("/", "_"), directory, TENANT):
            index.add_name(name.encode())
        for digest in names:
            index.add_name(digest)
            index.add_name(f"{digest.hex()}.bin".encode())
        control = controls.plant(self._sandbox.temporary, self._source.content(blocks[0]), names[0].hex().encode())
        report = search(index, self._sandbox.searched)
        return controls.remove_from(report, control), controls.all_found(report, control)


def forget_cached(root: Path) -> None:
    """Write back and drop the page cache of all files below `root`, so that the next reads come from the medium."""
    for directory, _, names in os.walk(root):
        for name in names:
            descriptor = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

"""Serving processes: started, killed, stopped, and what is left of them, with the null filesystem as the mount."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs_tools.quickstart import player
from kvfs_tools.quickstart.processes import MountProcess, StepFailedError, detach, is_mounted, play, run_tool
from kvfs_tools.quickstart.results import ReplayStatistics
from tests.mountlib import can_mount

needs_mount = pytest.mark.skipif(can_mount() is not None, reason=str(can_mount()))
pytestmark = pytest.mark.mount


@pytest.fixture(params=["mnt", "a b\\c"])
def mountpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = tmp_path / request.param
    path.mkdir()
    yield path
    detach(path)


def null_mount(mountpoint: Path) -> MountProcess:
    words = [sys.executable, "-m", "kvfs_tools.quickstart.nullfs", str(mountpoint)]
    return MountProcess(words, mountpoint, mountpoint.parent / "log", os.environ)


@needs_mount
def test_replay_on_the_null_filesystem(mountpoint: Path) -> None:
    mount = null_mount(mountpoint)
    try:
        job = player.Job(
            mode=player.Mode.REPLAY,
            root=str(mountpoint),
            model="org/a-model",
            seed=b"seed",
            block_bytes=2 << 20,
            threads=4,
            chains=[[1, 2, 3], [1, 2, 4]],
            verify=False,
        )
        found = ReplayStatistics()
        play(job, lambda event: found.take(event) or False, mountpoint.parent / "player.log", 60.0)
        assert found.wrong == []
        assert (found.lookups, found.hits, len(found.store.each_ms)) == (6, 2, 4)
        assert mount.cpu_seconds() > 0
        assert is_mounted(mountpoint)
    finally:
        mount.kill()
    assert not is_mounted(mountpoint)


@needs_mount
def test_stop_of_a_mount_that_dies_of_sigterm_is_an_error(mountpoint: Path) -> None:
    # the null filesystem has no handler: what a mount must not do
    mount = null_mount(mountpoint)
    with pytest.raises(StepFailedError, match="after SIGTERM"):
        mount.stop()
    assert not is_mounted(mountpoint)


def test_mount_that_ends_at_once_says_why(mountpoint: Path) -> None:
    with pytest.raises(StepFailedError, match="no such option"):
        MountProcess(
            [sys.executable, "-c", "import sys; sys.exit('no such option')"], mountpoint, mountpoint.parent / "log", {}
        )


def test_failing_tool_says_why() -> None:
    with pytest.raises(StepFailedError, match="exit"):
        run_tool(["kvfsctl", "no-such-command"], os.environ)


def test_detach_of_nothing_is_no_error(tmp_path: Path) -> None:
    detach(tmp_path)

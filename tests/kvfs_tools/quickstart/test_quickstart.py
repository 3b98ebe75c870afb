"""The whole quickstart, small, and that it fails when it should."""

import sys
from pathlib import Path

import pytest

from kvfs_tools.quickstart import scenario
from kvfs_tools.quickstart.processes import MountProcess, StepFailedError, detach
from kvfs_tools.quickstart.sandbox import Sandbox
from kvfs_tools.quickstart.scenario import Quickstart, Settings
from tests.kvfs_tools.quickstart.running import succeeds_and_leaves_nothing
from tests.mountlib import can_mount

needs_mount = pytest.mark.skipif(can_mount() is not None, reason=str(can_mount()))
pytestmark = pytest.mark.mount

SMALL = Settings(blocks=48, block_bytes=64 << 10, threads=4)


@needs_mount
@pytest.mark.slow
def test_quickstart_succeeds_and_leaves_nothing(tmp_path: Path) -> None:
    printed = succeeds_and_leaves_nothing(tmp_path, "--blocks", "48", "--block-kib", "64", limit_s=110)
    assert "planted control found" in printed
    assert "byte-exact at the end: 48 of 48" in printed
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@needs_mount
def test_filesystem_that_forgets_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(scenario, "create_pool", lambda *arguments: None)
    monkeypatch.setattr(scenario, "create_tenant", lambda *arguments: None)

    def mount_null(sandbox: Sandbox, tenant: str, mountpoint: Path, environment: dict[str, str]) -> MountProcess:
        words = [sys.executable, "-m", "kvfs_tools.quickstart.nullfs", str(mountpoint)]
        return MountProcess(words, mountpoint, sandbox.logs / "mount.log", environment)

    monkeypatch.setattr(scenario, "mount_tenant", mount_null)
    monkeypatch.setattr(MountProcess, "stop", MountProcess.kill)
    sandbox = Sandbox.create(SMALL.needed_bytes)
    try:
        failures = "\n".join(Quickstart(SMALL, sandbox, lambda text: None).run().failures())
    finally:
        for mountpoint in (sandbox.mountpoint, sandbox.null):
            detach(mountpoint)
        sandbox.remove()
    assert "absent after kill -9" in failures
    assert "48" in failures


def test_pool_that_cannot_be_made_is_a_clear_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sandbox = Sandbox.create(SMALL.needed_bytes)
    sandbox.pool.write_bytes(b"in the way")
    with pytest.raises(StepFailedError, match="kvfsctl pool create"):
        Quickstart(SMALL, sandbox, lambda text: None).run()
    sandbox.remove()


def test_too_little_room_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(Exception, match="set TMPDIR"):
        Sandbox.create(1 << 60)
    assert list(tmp_path.iterdir()) == []

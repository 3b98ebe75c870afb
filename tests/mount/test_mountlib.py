"""The mount fixture itself: a mount that hangs, dies or never starts must not take the test run with it."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import mountlib
from tests.conformance.clients import expect_errno, outcome

pytestmark = pytest.mark.mount


@pytest.fixture
def base() -> Iterator[Path]:
    reason = mountlib.can_mount()
    if reason is not None:
        pytest.skip(reason)
    with mountlib.scratch_directory() as path:
        yield path


@pytest.fixture
def mount(base: Path) -> Iterator[mountlib.Mount]:
    mountpoint = base / "mnt"
    mountpoint.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("hangfs.py")), str(mountpoint)]
    made = mountlib.Mount("hang", mountpoint, base / "mnt.log", command=command)
    yield made
    made.kill()


def test_start_write_stop(mount: mountlib.Mount) -> None:
    mount.start()
    assert mount.alive()
    assert mountlib.connection_of(mount.mountpoint) is not None
    (mount.mountpoint / "f").write_bytes(b"x")
    mount.stop()
    assert not mount.alive()
    assert mountlib.connection_of(mount.mountpoint) is None
    assert os.listdir(mount.mountpoint) == []


def test_kill_clears_the_mountpoint_and_start_follows(mount: mountlib.Mount) -> None:
    mount.start()
    mount.kill()
    assert mountlib.connection_of(mount.mountpoint) is None
    mount.start()
    assert mount.alive()


def test_death_of_the_process_is_noticed(mount: mountlib.Mount) -> None:
    mount.start()
    os.kill(mount.pid, 9)
    assert mount.process is not None
    mount.process.wait(10)
    assert not mount.alive()
    expect_errno([errno.ENOTCONN, errno.ECONNABORTED], os.stat, mount.mountpoint / "f")


def test_kill_during_the_start(mount: mountlib.Mount) -> None:
    for delay_s in (0.0, 0.1, 0.3):
        mount.start_and_kill(delay_s)
        assert mountlib.connection_of(mount.mountpoint) is None
    mount.start()
    assert mount.alive()


def test_watchdog_frees_a_hung_call(mount: mountlib.Mount) -> None:
    mount.start()
    watchdog = mountlib.Watchdog(mount.mountpoint, limit_s=1.0)
    try:
        code, _ = outcome(os.stat, mount.mountpoint / "hang")
    finally:
        watchdog.close()
    assert code in (errno.ECONNABORTED, errno.ENOTCONN)


def test_watchdog_detaches_when_its_owner_ends(mount: mountlib.Mount) -> None:
    mount.start()
    mountlib.Watchdog(mount.mountpoint, limit_s=60.0).close()
    assert mountlib.connection_of(mount.mountpoint) is None


def test_beats_keep_the_watchdog_quiet(mount: mountlib.Mount) -> None:
    mount.start()
    watchdog = mountlib.Watchdog(mount.mountpoint, limit_s=20.0)
    try:
        for _ in range(100):
            watchdog.beat()
        assert mount.alive()
        assert os.listdir(mount.mountpoint.parent)
    finally:
        watchdog.close()


def test_program_that_ends_at_once_is_quoted(base: Path) -> None:
    (base / "mnt").mkdir()
    command = [sys.executable, "-c", "import sys; sys.exit('no such pool: here')"]
    mount = mountlib.Mount("x", base / "mnt", base / "mnt.log", command=command)
    with pytest.raises(mountlib.MountError, match="no such pool: here"):
        mount.start()


def hanging(base: Path, code: str) -> mountlib.Mount:
    """A mount whose process calls `where_it_waits`, which never returns."""
    (base / "mnt").mkdir()
    (base / "hang.py").write_text(f"import signal, time\ndef where_it_waits():\n    time.sleep(600)\n{code}\n")
    command = [sys.executable, str(base / "hang.py"), str(base / "mnt")]
    return mountlib.Mount("x", base / "mnt", base / "mnt.log", command=command)


def test_mount_that_never_appears_says_where_it_waits(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountlib, "START_LIMIT_S", 1.0)
    mount = hanging(base, "where_it_waits()")
    with pytest.raises(mountlib.MountError, match=r"not mounted after 1.0 s\n(?s:.*)line 3 in where_it_waits"):
        mount.start()
    assert not mount.alive()


def test_mount_that_does_not_end_says_where_it_waits(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountlib, "STOP_LIMIT_S", 1.0)
    mount = hanging(base, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\nwhere_it_waits()")
    mount._spawn()
    for _ in range(1000):
        if "deaf" not in mount.log_tail():
            time.sleep(0.01)
    with pytest.raises(mountlib.MountError, match=r"no end 1.0 s after SIGTERM\n(?s:.*)line 3 in where_it_waits"):
        mount.stop()
    assert mount.process is not None
    assert mount.process.poll() is not None


def test_failing_command_is_quoted() -> None:
    with pytest.raises(mountlib.MountError, match="is not installed"):
        mountlib.run_program("kvfs-no-such-program")

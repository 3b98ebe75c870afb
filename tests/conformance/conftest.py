"""One suite, two targets: a plain directory and a kvfs mount.

`target` is the directory a test works in, fresh for each test. Everything that holds on a plain directory must hold
on kvfs; where the two may differ (documented refusals), the test says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import mountlib

HANG_LIMIT_S = 60.0


@dataclass
class Backend:
    """What a target directory lies on."""

    name: str
    root: Path
    mount: mountlib.Mount | None = None
    watchdog: mountlib.Watchdog | None = None

    def ensure_alive(self) -> None:
        """Mount anew if an earlier test killed the mount: one failure must not fail the rest."""
        if self.watchdog is not None:
            self.watchdog.beat()
        if self.mount is not None and (not self.mount.alive() or not self._answers()):
            self.mount.kill()
            for leftover in self.root.iterdir():  # made by the failed test below the mount that was gone
                shutil.rmtree(leftover)
            self.mount.start()

    def _answers(self) -> bool:
        probe = [sys.executable, "-c", f"import os; os.statvfs({str(self.root)!r})"]
        try:
            return subprocess.run(probe, timeout=20, check=False, capture_output=True).returncode == 0
        except subprocess.TimeoutExpired:
            mountlib.abort_connection(self.root)
            return False


@dataclass
class Target:
    """A fresh directory for one test, and the means to lose the filesystem's process under it."""

    backend: Backend
    path: Path

    @property
    def kvfs(self) -> bool:
        """True on kvfs, False on a plain directory."""
        return self.backend.mount is not None

    def __truediv__(self, name: str | bytes) -> Path:
        return self.path / os.fsdecode(name)

    def remount(self) -> None:
        """Unmount cleanly and mount again (nothing on a plain directory)."""
        if self.backend.mount is not None:
            assert self.backend.mount.stop() == 0, self.backend.mount.log_tail()
            self.backend.mount.start()

    def crash(self) -> None:
        """SIGKILL the serving process, mount again (nothing on a plain directory)."""
        if self.backend.mount is not None:
            self.backend.mount.kill()
            self.backend.mount.start()


@contextlib.contextmanager
def _backend(kind: str) -> Iterator[Backend]:
    if kind == "plain":
        with mountlib.scratch_directory("kvfs-plain-") as base:
            yield Backend(kind, base)
        return
    reason = mountlib.can_mount()
    if reason is not None:
        pytest.skip(reason)
    with mountlib.mounted_pool("allow_other", limit_s=HANG_LIMIT_S) as (_, mount, watchdog):
        yield Backend(kind, mount.mountpoint, mount, watchdog)


@pytest.fixture(scope="session", params=["plain", pytest.param("kvfs", marks=pytest.mark.mount)])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Session-wide: one mount serves the whole suite, as it would serve an engine."""
    with _backend(request.param) as made:
        yield made


@pytest.fixture
def target(backend: Backend, request: pytest.FixtureRequest) -> Target:
    """A fresh directory on the backend; world-writable, for tests that change their uid."""
    backend.ensure_alive()
    name = re.sub(r"[^A-Za-z0-9]+", "_", request.node.name)[:80]
    path = backend.root / f"{request.node.path.stem}.{name}"
    path.mkdir()
    path.chmod(0o777)
    return Target(backend, path)

"""The commands run as a user runs them: processes with XDG directories of their own below a short scratch path."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import mountlib

LIMIT_S = 60.0


@dataclass(frozen=True)
class Sandbox:
    base: Path
    environment: dict[str, str]

    @property
    def mountpoint(self) -> Path:
        return self.base / "mnt"

    @property
    def runtime(self) -> Path:
        return self.base / "run" / "kvfs"

    def run(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [mountlib.program(argv[0]), *argv[1:]]
        environment = self.environment | environment
        return subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, cwd=self.base, check=False
        )

    def ok(self, *argv: str) -> str:
        done = self.run(*argv)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def refused(self, *argv: str, status: int = 1, **environment: str) -> str:
        """The one line on stderr of a command that is refused."""
        done = self.run(*argv, **environment)
        assert done.returncode == status, f"{argv}: {done.returncode} {done.stdout}{done.stderr}"
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def start(self, *argv: str, **environment: str) -> subprocess.Popen[str]:
        command = [mountlib.program(argv[0]), *argv[1:]]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment | environment,
            cwd=self.base,
        )

    def in_child(self, script: str) -> str:
        """Run a shell script that touches the mount, with a time limit."""
        done = subprocess.run(
            ["sh", "-ec", script], capture_output=True, text=True, timeout=LIMIT_S, cwd=self.base, check=False
        )
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout

    def pids(self) -> list[int]:
        """Processes that serve mounts of this sandbox, by their records."""
        import json

        return [json.loads(path.read_text())["pid"] for path in self.runtime.glob("*.json")]


def wait_until(condition: object, what: str) -> None:
    assert callable(condition)
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def make_sandbox() -> Iterator[Sandbox]:
    with mountlib.scratch_directory("kvfs-cli-") as base:
        names = {
            "XDG_DATA_HOME": "data",
            "XDG_CONFIG_HOME": "config",
            "XDG_STATE_HOME": "state",
            "XDG_RUNTIME_DIR": "run",
        }
        environment = {**os.environ, **{name: str(base / directory) for name, directory in names.items()}}
        environment.pop("KVFS_DEBUG", None)
        sandbox = Sandbox(base, environment)
        sandbox.mountpoint.mkdir()
        (base / "run").mkdir()
        watchdog = mountlib.Watchdog(sandbox.mountpoint, 100.0)
        try:
            yield sandbox
        finally:
            started = sandbox.pids()
            mountlib.detach(sandbox.mountpoint)
            for pid in started:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            watchdog.close()

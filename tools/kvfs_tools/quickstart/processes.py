"""Child processes of the quickstart: the mount, the replaying engine, the tools. Every wait has a deadline.

The quickstart itself never touches a mount: whoever does may hang in the kernel with it, and a child can be killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from kvfs.errors import ConfigError, DeadlineExceededError, KvfsError
from kvfs_tools.quickstart import player
from kvfs_tools.quickstart.results import process_cpu_seconds

START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 60.0
POLL_S = 0.02
TAIL_BYTES = 2000


class StepFailedError(KvfsError):
    """A step of the quickstart did not do what it promises; the text is what the user reads."""


def tail(path: Path) -> str:
    """The end of a log, for error texts."""
    with contextlib.suppress(OSError):
        return path.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
    return ""


def program(name: str) -> str:
    """Path of one of our commands, beside the running interpreter first."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(f"the command {name} is not installed; run: bash tools/quickstart")
    return found


def run_tool(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run one of our commands to its end -> stdout. Raises StepFailedError with what it said."""
    try:
        done = subprocess.run(
            [program(words[0]), *words[1:]],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STOP_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceededError(f"{' '.join(words)} was not done after {STOP_DEADLINE_S:.0f} s") from error
    if done.returncode != 0:
        raise StepFailedError(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}".strip())
    return done.stdout


def is_mounted(mountpoint: Path) -> bool:
    """Whether a filesystem is mounted at `mountpoint`, without touching it."""
    # proc(5): blank, tab, newline and backslash are escaped in octal
    wanted = re.sub(rb"[\\ \t\n]", lambda found: b"\\%03o" % ord(found.group()), os.fsencode(mountpoint))
    return any(line.split()[4] == wanted for line in Path("/proc/self/mountinfo").read_bytes().splitlines())


def detach(mountpoint: Path) -> None:
    """Free `mountpoint` whatever state the mount is in; no error if nothing is mounted."""
    for _ in range(3):
        if not is_mounted(mountpoint):
            return
        subprocess.run(
            ["fusermount3", "-uz", str(mountpoint)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=STOP_DEADLINE_S,
            check=False,
        )


def start_logged(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process whose output is appended to `log`; an interrupt at the terminal is ours, and not its to take."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            list(words),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


class MountProcess:
    """A foreground process that serves `mountpoint`; started by the constructor, which returns once it is mounted."""

    def __init__(self, words: Sequence[str], mountpoint: Path, log: Path, environment: Mapping[str, str]) -> None:
        self._mountpoint = mountpoint
        self._log = log
        self._process = start_logged(words, log, environment)
        try:
            self._await_mounted()
        except BaseException:
            self.kill()
            raise

    def _await_mounted(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not is_mounted(self._mountpoint):
            if self._process.poll() is not None:
                raise StepFailedError(f"the mount ended with {self._process.returncode}:\n{tail(self._log)}")
            if time.monotonic() > deadline:
                raise DeadlineExceededError(f"not mounted after {START_DEADLINE_S:.0f} s:\n{tail(self._log)}")
            time.sleep(POLL_S)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """CPU time used so far."""
        return process_cpu_seconds(self.pid)

    def crash(self) -> None:
        """SIGKILL and wait; the dead mount stays, so that whoever still uses it cannot write beneath it."""
        self._process.kill()
        self._process.wait(STOP_DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL, wait, and free the mountpoint."""
        self.crash()
        detach(self._mountpoint)

    def stop(self) -> None:
        """SIGTERM, which drains and unmounts. Raises StepFailedError if it does not end by itself, with status 0."""
        self._process.terminate()
        try:
            status = self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise StepFailedError(f"the mount did not end within {STOP_DEADLINE_S:.0f} s of SIGTERM") from error
        detach(self._mountpoint)
        if status != 0:
            raise StepFailedError(f"the mount ended with {status} after SIGTERM:\n{tail(self._log)}")


def _lines(stream: IO[bytes], deadline: float, what: str) -> Iterator[bytes]:
    """Lines of a pipe until its end; DeadlineExceededError past `deadline` (monotonic seconds)."""
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    rest = b""
    while True:
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1e3):
            raise DeadlineExceededError(f"{what} was not done in time")
        data = os.read(stream.fileno(), 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def play(job: player.Job, take: Callable[[player.Event], bool], log: Path, deadline_s: float) -> None:
    """Run `job` in a player process and hand each event to `take`; when that returns True, SIGKILL the player.

    Raises StepFailedError if the player fails, DeadlineExceededError if it takes too long; it is gone in any case.
    """
    decoder = msgspec.json.Decoder(player.Event)
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvfs_tools.quickstart.player"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        for line in _lines(process.stdout, time.monotonic() + deadline_s, f"the {job.mode} in {job.root}"):
            if take(decoder.decode(line)):
                return
        status = process.wait(STOP_DEADLINE_S)
        if status != 0:
            raise StepFailedError(f"the {job.mode} in {job.root} ended with {status}:\n{tail(log)}")
    finally:
        process.kill()
        process.stdout.close()
        # a player inside a call on a dead mount ends once the mount is freed, which comes next; do not wait for it here
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)

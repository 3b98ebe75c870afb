"""Real mounts for tests: a pool, its key, and a `kvfs mount` child process that can be killed and started again.

Nothing here is imported by the product. The rules that keep a broken mount from hanging a test run:

* the filesystem is served by a child process, never by the process that touches it;
* every start and stop has a time limit, and the child's stderr goes to a file that failures quote;
* a `Watchdog` (a process of its own, because a page fault on a hung mount holds the GIL of whoever faults)
  aborts the FUSE connection when it has not heard a beat for its time limit, or when its parent is gone;
* whatever happens, `fusermount3 -uz` is called at the end.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

START_LIMIT_S = 30.0
"""How long a mount may take to appear, and to answer its first statvfs."""
STOP_LIMIT_S = 30.0
DUMP_LIMIT_S = 5.0
"""How long a process that hangs may take to print its stacks."""
POOL_SIZE = "8G"
"""Of a pool made without --size or --medium: a sparse file, larger than anything the tests store."""
SPLIT = os.environ.get("KVFS_TEST_SPLIT", "0") not in ("", "0")
"""Whether mounts attach to a daemon of their pool instead of opening it themselves."""
FUSECTL = Path("/sys/fs/fuse/connections")


class MountError(Exception):
    """The mount did not start or stop as it should; the text quotes its stderr."""


def end_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does, so that its mounts and directories are cleaned up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def can_mount() -> str | None:
    """None when this machine can serve FUSE mounts, else the reason why not."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no access to /dev/fuse"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is not installed (package fuse3)"
    return None


def program(name: str) -> str:
    """Path of the installed command `name`: in $KVFS_TEST_PROGRAMS, beside the running interpreter, on the PATH."""
    for directory in (os.environ.get("KVFS_TEST_PROGRAMS", ""), str(Path(sys.executable).parent)):
        if directory and (beside := Path(directory) / name).exists():
            return str(beside)
    found = shutil.which(name)
    if found is None:
        raise MountError(f"{name} is not installed: pip install -e .")
    return found


def run_program(name: str, *args: str, limit_s: float = STOP_LIMIT_S) -> str:
    """Run an installed command to its end -> its stdout. Raises MountError with its output if it fails."""
    done = subprocess.run(
        [program(name), *args], capture_output=True, text=True, timeout=limit_s, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise MountError(f"{name} {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def connection_of(mountpoint: Path) -> str | None:
    """Number of the FUSE connection mounted at `mountpoint` (mountinfo only: never touches the mount)."""
    wanted = os.fsencode(mountpoint)
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split()
        kind = fields[fields.index(b"-") + 1]
        if fields[4] == wanted and kind.startswith(b"fuse"):
            found = fields[2].split(b":")[1].decode()
    return found


def waiting_in(pid: int) -> str:
    """What the threads of a process wait for in the kernel, one line each: for a process that does not answer."""
    lines = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            state = next(line for line in (task / "status").read_text().splitlines() if line.startswith("State"))
            stack = (task / "stack").read_text().split("\n")[:4]
            lines.append(f"thread {task.name}: {state} {' < '.join(frame.partition(' ')[2] for frame in stack)}")
    return "\n".join(lines)


def where_it_hangs(process: subprocess.Popen[bytes], log: Path) -> str:
    """End a mount that does not answer -> where its threads were, in the kernel and in Python (in its log)."""
    kernel = waiting_in(process.pid)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER in its environment makes it print all stacks
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(DUMP_LIMIT_S)
    return f"{kernel}\n{log_tail(log)}"


def log_tail(log: Path, size: int = 4000) -> str:
    """The end of what a mount process printed."""
    return log.read_bytes()[-size:].decode(errors="replace") if log.exists() else ""


def abort_connection(mountpoint: Path) -> None:
    """Fail every request of a hung mount; silently does nothing where fusectl is not available."""
    number = connection_of(mountpoint)
    if number is None:
        return
    if not any(FUSECTL.iterdir()):
        subprocess.run(["mount", "-t", "fusectl", "none", str(FUSECTL)], capture_output=True, check=False)
    with contextlib.suppress(OSError):
        (FUSECTL / number / "abort").write_text("1")


def detach(mountpoint: Path) -> None:
    """Lazily unmount whatever is mounted there; no error if nothing is."""
    while connection_of(mountpoint) is not None:
        done = subprocess.run(
            ["fusermount3", "-uz", str(mountpoint)], capture_output=True, timeout=STOP_LIMIT_S, check=False
        )
        if done.returncode != 0:
            return


_WATCHDOG = """
import os, select, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from tests.mountlib import abort_connection, detach
mountpoint, limit_s = Path(sys.argv[1]), float(sys.argv[2])
while True:
    ready, _, _ = select.select([0], [], [], limit_s)
    beat = os.read(0, 4096) if ready else None
    if beat:
        continue
    abort_connection(mountpoint)
    if beat == b"":
        detach(mountpoint)
        break
"""


class Watchdog:
    """Frees a hung mount: aborts its connection `limit_s` after the last beat, or when this process ends."""

    def __init__(self, mountpoint: Path, limit_s: float) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        command = [sys.executable, "-c", _WATCHDOG, str(mountpoint), str(limit_s), root]
        # a session of its own: Ctrl-C at the terminal must not take the watchdog before the mount
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def beat(self) -> None:
        """Say that the user of the mount is alive."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b".")
            self._process.stdin.flush()

    def close(self) -> None:
        """End the watchdog; it detaches what is still mounted."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(STOP_LIMIT_S)


@dataclass
class Mount:
    """One mount of one tenant: `start`, `stop` (SIGTERM, clean), `kill` (SIGKILL), `detach`."""

    source: str
    mountpoint: Path
    log: Path
    options: Sequence[str] = ()
    command: Sequence[str] | None = None
    """Another filesystem's command line instead of `kvfs mount -f` (the benchmarks' null filesystem)."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Mount and wait until the filesystem answers. Raises MountError with its stderr."""
        self._spawn()
        self._await_connection()
        # A child asks first: if the filesystem never answers, the child is killed and not this process.
        probe = [sys.executable, "-c", f"import os; os.statvfs({str(self.mountpoint)!r})"]
        try:
            subprocess.run(probe, timeout=START_LIMIT_S, check=True, capture_output=True)
        except subprocess.TimeoutExpired as error:
            assert self.process is not None
            raise MountError(f"mounted, but no answer: {where_it_hangs(self.process, self.log)}") from error
        except subprocess.CalledProcessError as error:
            raise MountError(f"mounted, but statvfs failed: {error}\n{self.log_tail()}") from error

    def start_and_kill(self, delay_s: float) -> None:
        """Start, and SIGKILL `delay_s` later wherever it is by then: a crash during recovery."""
        self._spawn()
        time.sleep(delay_s)
        self.kill()

    def _spawn(self) -> None:
        argv = list(self.command or [program("kvfs"), "mount", "-f", self.source, str(self.mountpoint)])
        if self.command is None and self.options:
            argv += ["-o", ",".join(self.options)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PYTHONFAULTHANDLER": "1"},
            )

    def _await_connection(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_LIMIT_S
        while connection_of(self.mountpoint) is None:
            if self.process.poll() is not None:
                raise MountError(f"mount ended with {self.process.returncode}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                where = where_it_hangs(self.process, self.log)
                self.kill()
                raise MountError(f"not mounted after {START_LIMIT_S} s\n{where}")
            time.sleep(0.01)

    def log_tail(self, size: int = 4000) -> str:
        """The end of what the mount process printed."""
        return log_tail(self.log, size)

    @property
    def pid(self) -> int:
        """Process that serves the mount."""
        assert self.process is not None
        return self.process.pid

    def alive(self) -> bool:
        """The serving process runs and the mount is in place."""
        return self.process is not None and self.process.poll() is None and connection_of(self.mountpoint) is not None

    def kill(self) -> None:
        """SIGKILL the serving process and clear the dead mountpoint: what a crash leaves behind."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                abort_connection(self.mountpoint)
                self.process.wait(STOP_LIMIT_S)
        detach(self.mountpoint)

    def stop(self) -> int:
        """SIGTERM: drain, unmount, end -> exit status. Raises MountError (after killing) past its limit."""
        assert self.process is not None
        self.process.terminate()
        try:
            status = self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            where = where_it_hangs(self.process, self.log)
            abort_connection(self.mountpoint)
            self.kill()
            raise MountError(f"no end {STOP_LIMIT_S} s after SIGTERM\n{where}") from error
        detach(self.mountpoint)
        return status


@dataclass
class Daemon:
    """`kvfsd serve` on a pool, as a child process: `start`, `stop` (SIGTERM, clean), `kill` (SIGKILL)."""

    pool: Path
    kek: Path
    socket: Path
    log: Path
    options: Sequence[str] = ()
    command: Sequence[str] = (sys.executable, "-m", "kvfsd")
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _prepared: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def running(self) -> bool:
        """The process has not ended."""
        return self.process is not None and self.process.poll() is None

    def prepare(self) -> None:
        """Make the process that `start` will be, waiting for a line of its input.

        A process that has files of a mount open cannot start the daemon behind it: its child closes them before it is
        the daemon, the close waits for the daemon, and so for ever.
        """
        argv = [*self.command, "serve", str(self.pool), "--kek", str(self.kek), "--socket", str(self.socket)]
        with self.log.open("ab") as log:
            self._prepared = subprocess.Popen(
                ["sh", "-c", 'read go && exec "$@" < /dev/null', "sh", *argv, *self.options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start and wait until it listens. Raises MountError with its stderr."""
        if self._prepared is None:
            self.prepare()
        self.process, self._prepared = self._prepared, None
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.close()
        deadline = time.monotonic() + START_LIMIT_S
        while not self._listens():
            if self.process.poll() is not None:
                raise MountError(f"kvfsd ended with {self.process.returncode}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise MountError(f"kvfsd does not listen after {START_LIMIT_S} s\n{self.log_tail()}")
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    def log_tail(self, size: int = 4000) -> str:
        """The end of what it printed."""
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_LIMIT_S)

    def discard_prepared(self) -> None:
        """End a process that was prepared and not started."""
        if self._prepared is not None:
            self._prepared.kill()
            self._prepared.wait(STOP_LIMIT_S)
            self._prepared = None

    def stop(self) -> int:
        """SIGTERM -> exit status. Raises MountError (after killing) past its limit."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise MountError(f"no end of kvfsd {STOP_LIMIT_S} s after SIGTERM\n{self.log_tail()}") from error


_daemons: list[Daemon] = []
"""All that were made, so that their directory's end is theirs."""


@dataclass
class PoolFixture:
    """A pool directory with its key file, and mounts of its tenants, all below `base`."""

    base: Path
    pool: Path
    kek: Path

    @classmethod
    def create(cls, base: Path, *pool_options: str, tenants: Sequence[str] = ("engine",)) -> PoolFixture:
        """Make a pool with `kvfsctl`, as a user does."""
        fixture = cls(base, base / "pool", base / "kek")
        fixture.kek.write_bytes(os.urandom(32).hex().encode() + b"\n")
        fixture.kek.chmod(0o600)
        size = () if {"--size", "--medium"} & set(pool_options) else ("--size", POOL_SIZE)
        fixture.kvfsctl("pool", "create", str(fixture.pool), *size, *pool_options)
        for name in tenants:
            fixture.kvfsctl("tenant", "create", str(fixture.pool), name)
        return fixture

    def kvfsctl(self, *args: str, limit_s: float = STOP_LIMIT_S) -> str:
        """Run kvfsctl with this pool's key -> stdout."""
        return run_program("kvfsctl", *args, "--kek", str(self.kek), limit_s=limit_s)

    @functools.cached_property
    def daemon(self) -> Daemon:
        """The pool's daemon, not started yet."""
        daemon = Daemon(self.pool, self.kek, self.base / "kvfsd.sock", self.base / "kvfsd.log")
        _daemons.append(daemon)
        return daemon

    def split_mount(self, tenant: str = "engine", *options: str, at: str = "mnt") -> Mount:
        """A mount of `tenant` that attaches to the pool's daemon, which is started if it does not run."""
        mountpoint = self.base / at
        mountpoint.mkdir(exist_ok=True)
        if not self.daemon.running:
            self.daemon.start()
        kept = []
        for option in options:  # what is the daemon's business in split mode is told to it
            name, _, value = option.partition("=")
            if name in ("quota", "quota_objects"):
                self.kvfsctl("tenant", "set", str(self.pool), tenant, f"--{name.replace('_', '-')}", value)
            else:
                kept.append(option)
        return Mount(f"{tenant}@{self.daemon.socket}", mountpoint, self.base / f"{at}.log", kept)

    def mount(self, tenant: str = "engine", *options: str, at: str = "mnt") -> Mount:
        """A mount of `tenant`, not started yet."""
        if SPLIT:
            return self.split_mount(tenant, *options, at=at)
        mountpoint = self.base / at
        mountpoint.mkdir(exist_ok=True)
        source = f"{tenant}@{self.pool}"
        return Mount(source, mountpoint, self.base / f"{at}.log", (f"kek={self.kek}", *options))


@contextlib.contextmanager
def scratch_directory(prefix: str = "kvfs-test-", where: str | None = None) -> Iterator[Path]:
    """A fresh directory that other uids may traverse (pytest's own are 0700), removed at the end."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    path.chmod(0o755)
    try:
        yield path
    finally:
        for mountpoint in path.iterdir():
            detach(mountpoint)
        for daemon in [one for one in _daemons if one.pool.is_relative_to(path)]:
            daemon.kill()
            daemon.discard_prepared()
            _daemons.remove(daemon)
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def mounted_pool(
    *options: str, pool_options: Sequence[str] = (), limit_s: float = 90.0, where: str | None = None
) -> Iterator[tuple[PoolFixture, Mount, Watchdog]]:
    """A fresh pool, mounted and watched; everything is gone afterwards."""
    with scratch_directory(where=where) as base:
        pool = PoolFixture.create(base, *pool_options)
        mount = pool.mount("engine", *options)
        watchdog = Watchdog(mount.mountpoint, limit_s)
        try:
            mount.start()
            yield pool, mount, watchdog
        finally:
            mount.kill()
            watchdog.close()

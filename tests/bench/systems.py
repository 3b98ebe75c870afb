"""What is measured side by side: the raw directory, a null FUSE filesystem, and kvfs, all on one disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from kvfs.fuse.mount import READ_AHEAD_BYTES
from kvfs_tools.quickstart.results import process_cpu_seconds
from tests import mountlib

LIBC = ctypes.CDLL(None, use_errno=True)


class System(Protocol):
    """A directory that can be made cold, and the process that serves it (None = the kernel alone)."""

    name: str
    directory: Path

    def drain(self) -> None:
        """Return when what was written has reached the disk."""

    def cold(self) -> None:
        """Drain, mount anew where there is a mount, drop the kernel's caches."""

    def pid(self) -> int | None:
        """Serving process."""


def settle(directory: Path) -> None:
    """Let what was written reach the disk, so that it does not slow what is measured next."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        LIBC.syncfs(descriptor)
    finally:
        os.close(descriptor)


def drop_caches() -> None:
    """Empty the page, dentry and inode caches (root)."""
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def cpu_s(pid: int | None) -> float:
    """CPU seconds that a process has used, in steps of 10 ms; 0 for None."""
    return 0.0 if pid is None else process_cpu_seconds(pid)


def memory_bytes(pid: int, key: str = "VmRSS") -> int:
    """Resident memory of a process now (VmRSS), or its peak (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def read_ahead(mountpoint: Path) -> Path:
    """The file that says how many KiB the kernel reads ahead on a FUSE mount."""
    return Path(f"/sys/class/bdi/0:{mountlib.connection_of(mountpoint)}/read_ahead_kb")


class RawDirectory:
    """The directory that the pool lies in, without a filesystem of ours."""

    name = "raw"

    def __init__(self, base: Path) -> None:
        self.directory = base / "raw"
        self.directory.mkdir()

    def drain(self) -> None:
        """Write back."""
        settle(self.directory)

    def cold(self) -> None:
        """Write back and drop."""
        self.drain()
        drop_caches()

    def pid(self) -> int | None:
        """No process."""
        return None


class Mounted:
    """A mount: kvfs, or the null filesystem."""

    def __init__(self, name: str, mount: mountlib.Mount, backing: Path) -> None:
        self.name, self._mount, self._backing = name, mount, backing
        self.directory = mount.mountpoint
        mount.start()
        if name == "null":
            read_ahead(mount.mountpoint).write_text(f"{READ_AHEAD_BYTES // 1024}\n")  # as kvfs does itself

    def drain(self) -> None:
        """Write back what the serving process wrote."""
        settle(self._backing)

    def cold(self) -> None:
        """Unmount cleanly, write back, drop, mount again. The null filesystem forgets its names, so it stays."""
        if self.name != "null":
            self._mount.stop()
        self.drain()
        drop_caches()
        if self.name != "null":
            self._mount.start()

    def pid(self) -> int | None:
        """The serving process."""
        return self._mount.pid


@contextlib.contextmanager
def all_systems(where: str | None, names: Sequence[str], pool_options: Sequence[str] = ()) -> Iterator[list[System]]:
    """The named systems, below a fresh directory of `where` (default: the temporary directory)."""
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(mountlib.scratch_directory("kvfs-bench-", where))
        made: list[System] = []
        for name in names:
            if name == "raw":
                made.append(RawDirectory(base))
                continue
            mount = _null_mount(base) if name == "null" else _kvfs_mount(base, pool_options)
            watchdog = mountlib.Watchdog(mount.mountpoint, 600.0)
            stack.callback(watchdog.close)
            stack.callback(mount.kill)
            made.append(Mounted(name, mount, base))
        yield made


def _null_mount(base: Path) -> mountlib.Mount:
    mountpoint = base / "null"
    mountpoint.mkdir()
    command = [sys.executable, "-m", "kvfs_tools.quickstart.nullfs", str(mountpoint)]
    return mountlib.Mount("null", mountpoint, base / "null.log", command=command)


def _kvfs_mount(base: Path, pool_options: Sequence[str]) -> mountlib.Mount:
    return mountlib.PoolFixture.create(base, *pool_options).mount("engine")

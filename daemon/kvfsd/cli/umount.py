"""`kvfs umount`: take a mount away and wait until its process has put everything in order."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kvfs.errors import ConfigError, DeadlineExceededError, KvfsError
from kvfsd.admin import mounts

FUSERMOUNT_DEADLINE_S: Final = 30.0
HOLDERS_SHOWN_MAX: Final = 5


def unmount(mountpoint: str, *, lazy: bool, deadline_ms: int) -> str:
    """Unmount and wait for the serving process to end -> a note for the user, usually empty.

    With `lazy` the mountpoint is free at once, and the process ends when the last open file is closed.

    Raises:
        ConfigError: nothing of ours is mounted there.
        KvfsError: it is busy (names who holds it), or the system refuses.
        DeadlineExceededError: unmounted, but the process still runs after `deadline_ms`.
    """
    resolved = mounts.resolve_mountpoint(mountpoint)
    found = mounts.find_by_mountpoint(resolved)
    if resolved not in mounts.kvfs_mountpoints():
        return _already_gone(resolved, found, deadline_ms)
    _fusermount(resolved, lazy=lazy)
    if found is None:
        return ""
    directory, record = found
    if lazy and record.alive:
        return f"detached; process {record.pid} ends when its last open file is closed"
    _wait(record, deadline_ms)
    mounts.remove_record(directory, record)
    return ""


def _already_gone(resolved: str, found: tuple[Path, mounts.MountRecord] | None, deadline_ms: int) -> str:
    if found is None:
        raise ConfigError(f"{resolved} is no kvfs mountpoint; kvfs status lists the mounts")
    directory, record = found
    if record.alive:  # somebody else unmounted it: wait with them
        _wait(record, deadline_ms)
    mounts.remove_record(directory, record)
    return "was unmounted already"


def _wait(record: mounts.MountRecord, deadline_ms: int) -> None:
    if not mounts.wait_for_exit(record.pid, record.started_ticks, deadline_ms):
        where = f"; look at {record.log}" if record.log else ""
        raise DeadlineExceededError(
            f"{record.mountpoint} is unmounted, but process {record.pid} still runs after {deadline_ms} ms{where}"
        )


def _fusermount(resolved: str, *, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", resolved]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=FUSERMOUNT_DEADLINE_S, check=False, env=environment)
    except FileNotFoundError as error:
        raise ConfigError("fusermount3 is not installed; install the package fuse3") from error
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceededError(
            f"{resolved} did not come off within {FUSERMOUNT_DEADLINE_S:.0f} s; try kvfs umount --lazy"
        ) from error
    if done.returncode == 0 or resolved not in mounts.kvfs_mountpoints():
        return
    said = done.stderr.decode(errors="replace").strip()
    if "busy" not in said.lower():
        raise KvfsError(f"{resolved} cannot be unmounted: {said}")
    holders = [f"{pid} ({name})" for pid, name in _holders(resolved)]
    shown = ", ".join(holders[:HOLDERS_SHOWN_MAX]) + (", ..." if len(holders) > HOLDERS_SHOWN_MAX else "")
    held = f"held by {shown}" if holders else "held by a mapped file, another mount below it, or another user's process"
    raise KvfsError(f"{resolved} is busy, {held}; end those or use kvfs umount --lazy")


def _holders(mountpoint: str) -> Iterator[tuple[int, str]]:
    """Processes with a file, or their working or root directory, below `mountpoint` (pid, command name).

    Only links of /proc are read, never the mount and never a memory map: both could block on a hung mount.
    """
    for entry in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        process = Path("/proc") / entry
        with contextlib.suppress(OSError):  # it ended, or is not ours to look at
            if any(_is_below(link, mountpoint) for link in _links(process)):
                yield int(entry), (process / "comm").read_text().strip()


def _links(process: Path) -> Iterator[str]:
    for link in (process / "cwd", process / "root", *(process / "fd").iterdir()):
        with contextlib.suppress(OSError):
            yield os.readlink(link)


def _is_below(path: str, mountpoint: str) -> bool:
    return path == mountpoint or path.startswith(mountpoint + "/")

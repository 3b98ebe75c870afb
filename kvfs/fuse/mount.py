"""Mounting: options, refusals before anything is mounted, serving until unmounted or told to stop, cleaning up."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from kvfs.blockreads import BlockReads
from kvfs.errors import ConfigError
from kvfs.fuse import turns
from kvfs.fuse.allocator import keep_large_allocations
from kvfs.fuse.events import follow_events, lose_staged
from kvfs.fuse.invalidation import fuse_descriptors
from kvfs.fuse.operations import Operations
from kvfs.fuse.state import MountState
from kvfs.limits import DRAIN_DEADLINE_MS, MIB, VERIFY_AT_OPEN_MAX_BYTES
from kvfs.queuepair import QueuePair
from kvfs.staging import Staging

log = logging.getLogger(__name__)

KERNEL_OPTIONS: Final = frozenset({"nosuid", "nodev", "noexec", "noatime", "suid", "dev", "exec"})
"""Options that the kernel carries out and that may be passed on."""
READ_AHEAD_BYTES: Final = MIB
"""The kernel's own read-ahead of the mount: requests of 1 MiB instead of 128 KiB (measured)."""
_FUSE_DEVICE: Final = Path("/dev/fuse")
_FUSE_CONF: Final = Path("/etc/fuse.conf")
_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_UNMOUNT_LIMIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a mount behaves."""

    read_only: bool = False
    allow_other: bool = True
    """Users other than the one who mounts may use it; permissions are always checked by mode and owner."""
    nonempty: bool = False
    """Mount over a directory that has entries."""
    verify_at_open_max_bytes: int = VERIFY_AT_OPEN_MAX_BYTES
    read_ahead_bytes: int = READ_AHEAD_BYTES
    fsname: str = "kvfs"
    """What mount(8) shows as the source."""
    kernel: tuple[str, ...] = ("nosuid", "nodev")
    """From KERNEL_OPTIONS."""

    def fuse_options(self) -> set[str]:
        """As libfuse takes them. Raises ConfigError naming an option that is not passed on."""
        for option in self.kernel:
            if option not in KERNEL_OPTIONS:
                raise ConfigError(f"mount option {option[:80]!r} is not known to kvfs")
        if not re.fullmatch(r"[ -+\--~]{1,255}", self.fsname):
            raise ConfigError(f"the source name {self.fsname[:80]!r} must be printable ASCII without a comma")
        options = {"default_permissions", f"fsname={self.fsname}", "subtype=kvfs", *self.kernel}
        options |= {"allow_other"} if self.allow_other else set()
        options |= {"ro"} if self.read_only else set()
        return options


@dataclass(frozen=True, slots=True)
class MountedAt:
    """A line of /proc/self/mountinfo."""

    device: str
    """MAJOR:MINOR"""
    mountpoint: str
    filesystem: str


def mounts() -> list[MountedAt]:
    """All mounts of this process, in the order they were made. Reads only /proc: a hung mount cannot hang it."""
    found = []
    for line in _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        found.append(MountedAt(device=fields[2], mountpoint=path, filesystem=after.split(" ")[0]))
    return found


def mount_at(mountpoint: str) -> MountedAt | None:
    """The topmost mount at this absolute path."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def check_mountable(mountpoint: str, options: MountOptions) -> str:
    """Refuse what cannot work before anything is mounted -> the absolute mountpoint.

    Raises:
        ConfigError: what is in the way, and what to do about it.
    """
    options.fuse_options()
    if not _FUSE_DEVICE.exists():
        raise ConfigError(
            f"{_FUSE_DEVICE} does not exist: modprobe fuse, or give it to the container (--device {_FUSE_DEVICE})"
        )
    target = os.path.realpath(mountpoint)
    _check_directory(target, nonempty=options.nonempty)
    if os.geteuid() != 0:
        _check_unprivileged(options)
    return target


def _check_directory(target: str, *, nonempty: bool) -> None:
    mounted = mount_at(target)
    if mounted is not None and not (nonempty and not mounted.filesystem.startswith("fuse")):
        raise ConfigError(f"{target} is a mount point already ({mounted.filesystem}): fusermount3 -u {target} first")
    try:
        if not os.path.isdir(target):
            what = "is not a directory" if os.path.lexists(target) else "does not exist: mkdir it first"
            raise ConfigError(f"{target} {what}")
        entries = [] if nonempty else os.listdir(target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be read: {error.strerror}") from error
    if entries:
        raise ConfigError(f"{target} is not empty ({len(entries)} entries): use an empty directory, or nonempty")


def _check_unprivileged(options: MountOptions) -> None:
    if shutil.which("fusermount3") is None:
        raise ConfigError("fusermount3 is not installed, and mounting without it takes root: install the package fuse3")
    if options.allow_other:
        try:
            lines = _FUSE_CONF.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        if "user_allow_other" not in [line.strip() for line in lines]:
            raise ConfigError(
                f"allow_other is for root only: add the line user_allow_other to {_FUSE_CONF}, or drop allow_other"
            )


async def serve(
    queue_pair: QueuePair, mountpoint: str, options: MountOptions, *, started: Callable[[], None] = lambda: None
) -> None:
    """Mount, serve until unmounted or SIGTERM/SIGINT, unmount. One mount per process (pyfuse3 has one session).

    `started` is called when the mount answers requests. The queue pair stays the caller's: `aclose` drops what was
    written and not closed. Raises ConfigError before anything is mounted.
    """
    target = check_mountable(mountpoint, options)
    keep_large_allocations()
    refusal: ConfigError | None = None
    async with trio.open_nursery() as nursery:
        state = _new_state(queue_pair, nursery, options)
        operations = Operations(state)
        try:
            async with _mounted(operations, target, options):
                nursery.start_soon(state.invalidations.run)
                nursery.start_soon(follow_events, state)
                nursery.start_soon(_announce, operations, target, options, started)
                turns.install(busy=lambda: state.staging.used_blocks > 0)
                await _run_session()
        except ConfigError as error:
            refusal = error  # raised outside, where no nursery wraps it
        nursery.cancel_scope.cancel()
    if refusal is not None:
        raise refusal


def _new_state(queue_pair: QueuePair, nursery: trio.Nursery, options: MountOptions) -> MountState:
    reads = BlockReads(queue_pair, nursery)
    staging = Staging(queue_pair, nursery, reads)
    state = MountState(queue_pair, reads, staging, verify_at_open_max_bytes=options.verify_at_open_max_bytes)
    queue_pair.on_state_lost(partial(lose_staged, state))
    return state


@asynccontextmanager
async def _mounted(operations: Operations, target: str, options: MountOptions) -> AsyncIterator[None]:
    before = fuse_descriptors()
    try:
        pyfuse3.init(operations, target, options.fuse_options())
    except RuntimeError as error:
        raise ConfigError(f"mounting at {target} failed ({error}); the reason is on stderr") from error
    operations.state.invalidations.device = next(iter(fuse_descriptors() - before), None)
    try:
        yield
    finally:
        operations.state.invalidations.device = None
        pyfuse3.close(unmount=True)
        _unmount_lazily(target)


async def _run_session() -> None:
    """Serve until unmounted; after SIGTERM or SIGINT let the requests in flight finish, for a bounded time."""
    with trio.CancelScope() as session, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain_on_signal, signals, session)
            await pyfuse3.main(min_tasks=turns.SESSION_TASKS, max_tasks=turns.SESSION_TASKS)
            nursery.cancel_scope.cancel()


async def _drain_on_signal(signals: AsyncIterator[int], session: trio.CancelScope) -> None:
    async for number in signals:
        log.info("%s: unmounting", signal.Signals(number).name)
        session.deadline = trio.current_time() + DRAIN_DEADLINE_MS / 1000
        pyfuse3.terminate()


async def _announce(operations: Operations, target: str, options: MountOptions, started: Callable[[], None]) -> None:
    await operations.initialised.wait()
    # This task runs after the reply to INIT was written, so the kernel has set its own read-ahead already.
    _raise_read_ahead(target, options.read_ahead_bytes)
    started()


def _raise_read_ahead(target: str, read_ahead_bytes: int) -> None:
    """Best effort: only root may, and the mount works without."""
    mounted = mount_at(target)
    if mounted is None or os.geteuid() != 0:
        return
    setting = Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb")
    try:
        if int(setting.read_text()) * 1024 < read_ahead_bytes:
            setting.write_text(f"{read_ahead_bytes // 1024}\n")
    except (OSError, ValueError) as error:
        log.info("read-ahead of %s stays as it is: %s", setting, error)


def _is_dead(target: str) -> bool:
    """Nobody serves the mount there any more; somebody else's new mount at the same place answers."""
    try:
        os.stat(target)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _unmount_lazily(target: str) -> None:
    """Take a mount of ours away that pyfuse3 left because its connection was aborted. Ours is dead by now."""
    mounted = mount_at(target)
    if mounted is None or mounted.filesystem != "fuse.kvfs" or not _is_dead(target):
        return
    program = shutil.which("fusermount3")
    command = [program, "-u", "-z", "--", target] if program else ["umount", "-l", "--", target]
    try:
        subprocess.run(command, check=False, timeout=_UNMOUNT_LIMIT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s is still mounted (%s): run fusermount3 -uz %s", target, error, target)

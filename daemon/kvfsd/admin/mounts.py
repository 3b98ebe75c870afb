"""Records of the running mounts: one small JSON file per mount in the runtime directory.

The record is what `kvfs status`, `kvfs umount` and `kvfsctl` find a mount's process and admin socket by. It is
written once the mount is ready and removed at its end; after a kill -9 it is left behind and recognised as stale by
its process: a pid alone could be somebody else's by then, a pid with its start time cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from kvfs.errors import ConfigError
from kvfsd import directories

RECORD_MAX_BYTES = 64 * 1024
RECORDS_MAX = 4096
VERSION = 1
EVERY_TENANT = "*"
"""The tenant in the record of a daemon; the mountpoint there is its socket."""
SYMLINKS_MAX = 40
"""As many as the kernel follows (path_resolution(7))."""


class MountRecord(msgspec.Struct, frozen=True):
    """What other processes need to know of a mount; paths are absolute, without symbolic links."""

    version: int
    pid: int
    started_ticks: int
    """Start of the process in clock ticks since boot (/proc/PID/stat, field 22)."""
    mountpoint: str
    pool: str
    tenant: str
    admin_socket: str
    log: str
    """File of the log, empty when it goes to stderr or the journal."""
    mounted_at_ns: int

    @property
    def alive(self) -> bool:
        """The process that wrote this record still runs."""
        return process_start_ticks(self.pid) == self.started_ticks


def process_start_ticks(pid: int) -> int | None:
    """Start time of process `pid` in clock ticks since boot; None if it is gone (a zombie counts as gone)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def wait_for_exit(pid: int, started_ticks: int, deadline_ms: int) -> bool:
    """Wait until the process has ended; False if it still runs after `deadline_ms`."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if process_start_ticks(pid) != started_ticks:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(deadline_ms))
    finally:
        os.close(descriptor)


def mount_id(mountpoint: str) -> str:
    """A short name for files that belong to the mount at `mountpoint` (socket paths are at most 107 bytes)."""
    return hashlib.blake2s(os.fsencode(mountpoint), digest_size=8).hexdigest()


def record_path(directory: Path, mountpoint: str) -> Path:
    """The record of the mount at `mountpoint`."""
    return directory / f"{mount_id(mountpoint)}.json"


def socket_path(directory: Path, mountpoint: str) -> Path:
    """The admin socket of the mount at `mountpoint`."""
    return directory / f"{mount_id(mountpoint)}.sock"


def write_record(directory: Path, record: MountRecord) -> Path:
    """Write `record` into `directory`, whole or not at all."""
    path = record_path(directory, record.mountpoint)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    # the standard library's JSON, because a path may hold bytes that are not UTF-8 (as lone surrogates)
    partial.write_text(json.dumps(msgspec.to_builtins(record)), encoding="ascii")
    partial.replace(path)
    return path


def remove_record(directory: Path, record: MountRecord) -> None:
    """Remove the record and socket of a mount that ended, unless a newer mount at that place has written its own."""
    path = record_path(directory, record.mountpoint)
    if _read(path) not in (None, record):
        return
    for gone in (path, socket_path(directory, record.mountpoint)):
        gone.unlink(missing_ok=True)


def _read(path: Path) -> MountRecord | None:
    """The record at `path`; None if there is none or it is not one of ours (a later version, damage)."""
    try:
        with open(path, "rb") as file:
            text = file.read(RECORD_MAX_BYTES)
        record = msgspec.convert(json.loads(text), MountRecord)
    except (OSError, ValueError, RecursionError, msgspec.ValidationError):
        return None
    return record if record.version == VERSION else None


def all_records(searched: Iterable[Path] | None = None) -> Iterator[tuple[Path, MountRecord]]:
    """Every readable record (with the directory it lies in), live or stale, at most RECORDS_MAX per directory."""
    for directory in directories.runtime_searched() if searched is None else searched:
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
        except OSError:
            continue
        for name in names[:RECORDS_MAX]:
            record = _read(directory / name)
            if record is not None:
                yield directory, record


def find_by_mountpoint(mountpoint: str, searched: Iterable[Path] | None = None) -> tuple[Path, MountRecord] | None:
    """The record of the mount at `mountpoint` (absolute, resolved), a live one first."""
    found = [pair for pair in all_records(searched) if pair[1].mountpoint == mountpoint]
    return max(found, key=lambda pair: pair[1].alive, default=None)


def live_mount_of_pool(pool: str, searched: Iterable[Path] | None = None) -> MountRecord | None:
    """The live mount that has the pool at `pool` (absolute, resolved) open, if any."""
    for _, record in all_records(searched):
        if record.pool == pool and record.alive:
            return record
    return None


def remove_stale(searched: Iterable[Path] | None = None) -> list[MountRecord]:
    """Remove the records of processes that are gone and of whose mount nothing is left; returns them."""
    removed = []
    mounted = set(kvfs_mountpoints())
    for directory, record in list(all_records(searched)):
        if not record.alive and record.mountpoint not in mounted:
            with contextlib.suppress(OSError):
                remove_record(directory, record)
                removed.append(record)
    return removed


def kvfs_mountpoints(mountinfo: str = "/proc/self/mountinfo") -> list[str]:
    """Mountpoints of type fuse.kvfs that the kernel has now (proc_pid_mountinfo(5)), dead ones included."""
    found = []
    with open(mountinfo, "rb") as file:
        for line in file:
            before, _, after = line.partition(b" - ")
            fields, kind = before.split(), after.split()
            if len(fields) >= 5 and kind and kind[0] == b"fuse.kvfs":
                found.append(os.fsdecode(_unescape(fields[4])))
    return found


def _unescape(field: bytes) -> bytes:
    """Undo the octal escapes of mountinfo: space, tab, newline and backslash."""
    for escaped, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(escaped, plain)
    return field


def resolve_mountpoint(path: str) -> str:
    """`path` as it stands in records: absolute, symbolic links resolved, the mountpoint itself never touched.

    A dead or hung mount would answer a stat of its root with an error, or not at all; readlink(2) of a directory
    fails in the kernel without asking the filesystem.
    """
    absolute = os.path.abspath(path)
    for _ in range(SYMLINKS_MAX):
        parent, name = os.path.split(absolute)
        absolute = os.path.join(os.path.realpath(parent), name)
        try:
            target = os.readlink(absolute)
        except OSError:
            break
        absolute = os.path.normpath(os.path.join(os.path.dirname(absolute), target))
    if absolute == "/":
        raise ConfigError("the root directory cannot be a mountpoint; name a directory below it")
    return absolute

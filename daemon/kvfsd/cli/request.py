"""A mount as it was asked for: command line in, checked and absolute values out, before anything is opened."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from kvfs.errors import ConfigError
from kvfsd.admin import mounts
from kvfsd.cli.options import MountOptions, Source, check_split, parse_options, parse_source

FUSE_DEVICE: Final = "/dev/fuse"
NO_SOURCE: Final = ("none", "kvfs")
"""What fstab(5) lines and mount(8) write where there is no source."""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What `kvfs mount` is to do; all paths absolute (the background process works in /)."""

    source: Source
    """With an empty `pool`: the user's private pool."""
    mountpoint: str
    options: MountOptions
    split: bool = False
    """`source.pool` is the socket of a daemon, and `options.credential` a mount credential."""


def parse_request(words: Sequence[str], option_lists: Sequence[str], *, tolerant: bool = False) -> MountRequest:
    """`[SOURCE] MOUNTPOINT` and the -o lists of a command line.

    Raises:
        ConfigError: one of them is wrong; the text names it.
    """
    if not 1 <= len(words) <= 2:
        raise ConfigError(f"expected [SOURCE] MOUNTPOINT, got {len(words)} arguments")
    given = words[0] if len(words) == 2 else ""
    source = Source() if given in ("", *NO_SOURCE) else parse_source(given)
    if source.pool:
        source = replace(source, pool=os.path.realpath(source.pool))
    options = parse_options(list(option_lists), tolerant=tolerant)
    split = is_socket(source.pool)
    if split:
        check_split(options)
        options = replace(options, credential=_credential_file(options.credential))
    files = {name: os.path.abspath(path) for name in ("kek", "passphrase_file") if (path := getattr(options, name))}
    return MountRequest(source, mounts.resolve_mountpoint(words[-1]), replace(options, **files), split)


def is_socket(path: str) -> bool:
    """Whether `path` is a daemon's socket; one that is not there (yet) is known by its name."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return path.endswith((".sock", ".socket"))


def _credential_file(text: str) -> str:
    """A path; a plain name is one of systemd's credentials where there are any."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if text and "/" not in text and directory:
        return os.path.join(directory, text)
    return os.path.abspath(text) if text else ""


def check_machine(device: str = FUSE_DEVICE) -> None:
    """Refuse what cannot work on this machine.

    Raises:
        ConfigError: no FUSE device, no access to it, or no fusermount3 although it is needed.
    """
    if not os.path.exists(device):
        raise ConfigError(f"{device} is missing; load the fuse module (modprobe fuse) or give the container the device")
    if not os.access(device, os.R_OK | os.W_OK):
        raise ConfigError(f"no access to {device}; it should have mode 0666, or run as root")
    if shutil.which("fusermount3") is None:
        raise ConfigError("fusermount3 is not installed; install the package fuse3")


def check_not_mounted(mountpoint: str) -> None:
    """Refuse a mountpoint that a kvfs mount is on already, without touching it.

    Raises:
        ConfigError: it is; the text says whose it is, or how to clear a dead one away.
    """
    if mountpoint not in mounts.kvfs_mountpoints():
        return
    found = mounts.find_by_mountpoint(mountpoint)
    if found is not None and found[1].alive:
        raise ConfigError(
            f"{mountpoint} is already mounted (process {found[1].pid}); run kvfs umount {mountpoint} first"
        )
    raise ConfigError(f"{mountpoint} holds a mount whose process is gone; run kvfs umount {mountpoint} first")

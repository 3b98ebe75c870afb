"""Where kvfs keeps things of one user: keys, private pool, logs, runtime records (XDG base directories).

| what | with the variable set | otherwise |
|---|---|---|
| private pool | $XDG_DATA_HOME/kvfs/pool | ~/.local/share/kvfs/pool |
| keys | $XDG_CONFIG_HOME/kvfs/keys | ~/.config/kvfs/keys |
| logs | $XDG_STATE_HOME/kvfs | ~/.local/state/kvfs |
| runtime records | $XDG_RUNTIME_DIR/kvfs | /run/kvfs (root), /tmp/kvfs-UID (others) |

Relative values of the variables are ignored, as the XDG specification asks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from kvfs.errors import ConfigError

SYSTEM_RUNTIME = Path("/run/kvfs")
SYSTEM_DAEMON_RUNTIME = Path("/run/kvfsd/kvfs")
"""Of the system's daemon, which has a user of its own (systemd/kvfsd.service)."""


def _base(environment: Mapping[str, str], variable: str, fallback: str) -> Path:
    value = environment.get(variable, "")
    return Path(value) if value.startswith("/") else Path(os.path.expanduser(fallback))


def private_pool(environment: Mapping[str, str] = os.environ) -> Path:
    """Directory of the pool that `kvfs mount MOUNTPOINT` uses."""
    return _base(environment, "XDG_DATA_HOME", "~/.local/share") / "kvfs" / "pool"


def keys(environment: Mapping[str, str] = os.environ) -> Path:
    """Directory of key files made by kvfs."""
    return _base(environment, "XDG_CONFIG_HOME", "~/.config") / "kvfs" / "keys"


def logs(environment: Mapping[str, str] = os.environ) -> Path:
    """Directory of the logs of background mounts."""
    return _base(environment, "XDG_STATE_HOME", "~/.local/state") / "kvfs"


def runtime(environment: Mapping[str, str] = os.environ) -> Path:
    """Directory where this process writes its mount record and admin socket."""
    value = environment.get("XDG_RUNTIME_DIR", "")
    if value.startswith("/"):
        return Path(value) / "kvfs"
    return SYSTEM_RUNTIME if os.geteuid() == 0 else Path(f"/tmp/kvfs-{os.geteuid()}")


def runtime_searched(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Directories to look for records in: ours, and the system's (mounts of fstab and systemd, its daemon)."""
    return list(dict.fromkeys((runtime(environment), SYSTEM_RUNTIME, SYSTEM_DAEMON_RUNTIME)))


def ensure_private(directory: Path) -> Path:
    """Make `directory` (mode 0700) if it is missing, and return it.

    Raises:
        ConfigError: it belongs to another user, others may write to it, or it cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {error.strerror}; make it, mode 0700, owned by you") from error
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{directory} belongs to uid {found.st_uid}, not to you; move it away or set its XDG variable"
        )
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise ConfigError(f"others may write to {directory}; run: chmod go-w {directory}")
    return directory

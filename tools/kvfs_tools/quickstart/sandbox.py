"""The temporary directory of one quickstart: what is searched for plaintext, and what is not, are kept apart."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kvfs.errors import ConfigError

DIRECTORY_MARGIN = 1 << 28


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Paths of one run. Everything a kvfs process can write to lies below `searched`."""

    root: Path
    runtime: Path
    """XDG_RUNTIME_DIR of the kvfs processes; apart, because paths of sockets are at most 107 bytes (unix(7))."""

    @classmethod
    def create(cls, needed_bytes: int) -> Sandbox:
        """A fresh one below $TMPDIR, or /var/tmp, which is on a disk where /tmp may be memory.

        Raises ConfigError if it has not `needed_bytes` of room.
        """
        parent = os.environ.get("TMPDIR", "/var/tmp")
        free = shutil.disk_usage(parent).free
        if free < needed_bytes + DIRECTORY_MARGIN:
            raise ConfigError(
                f"{parent} has {free >> 20} MiB free, the quickstart needs {(needed_bytes + DIRECTORY_MARGIN) >> 20}: "
                "set TMPDIR to a directory with more room, or give a smaller --blocks"
            )
        root = Path(tempfile.mkdtemp(prefix="kvfs-quickstart-", dir=parent)).resolve()
        sandbox = cls(root, Path(tempfile.mkdtemp(prefix="kvfs-run-", dir="/tmp")))
        for path in (sandbox.sealed, sandbox.keys, sandbox.logs, sandbox.home, sandbox.temporary):
            path.mkdir()
        for path in (sandbox.mountpoint, sandbox.raw, sandbox.null):
            path.mkdir()
        return sandbox

    @property
    def sealed(self) -> Path:
        """Pool, state, keys, logs, home and temporary directory of the kvfs processes."""
        return self.root / "sealed"

    @property
    def searched(self) -> list[Path]:
        """All that is searched for plaintext."""
        return [self.sealed, self.runtime]

    @property
    def pool(self) -> Path:
        """The pool's directory (made by kvfsctl)."""
        return self.sealed / "pool"

    @property
    def keys(self) -> Path:
        """Where the KEK's file lies, apart from the pool."""
        return self.sealed / "keys"

    @property
    def logs(self) -> Path:
        """Logs of every process."""
        return self.sealed / "logs"

    @property
    def home(self) -> Path:
        """HOME of the kvfs processes."""
        return self.sealed / "home"

    @property
    def temporary(self) -> Path:
        """TMPDIR of the kvfs processes."""
        return self.sealed / "tmp"

    @property
    def mountpoint(self) -> Path:
        """Where the tenant is mounted."""
        return self.root / "mnt"

    @property
    def raw(self) -> Path:
        """The plain directory of the calibration."""
        return self.root / "raw"

    @property
    def null(self) -> Path:
        """Mountpoint of the null filesystem."""
        return self.root / "null"

    def environment(self) -> dict[str, str]:
        """Environment of kvfs processes: nothing they leave behind can escape the search."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        places = {"HOME": str(self.home), "TMPDIR": str(self.temporary), "XDG_RUNTIME_DIR": str(self.runtime)}
        return kept | places

    def remove(self) -> None:
        """Delete everything; the caller has unmounted."""
        shutil.rmtree(self.root)
        shutil.rmtree(self.runtime)

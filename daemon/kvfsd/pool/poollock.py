"""The lock of a pool's state directory: one process at a time may write, several may read a pool that nobody writes."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from kvfs.errors import ConfigError, PoolBusyError

NAME: Final = "lock"
_PID_MAX_BYTES: Final = 32


class PoolLock:
    """flock(2) on `DIRECTORY/lock`: the kernel drops it with the process, however that ends. Make it with `acquire`.

    `live` is True for a reader beside a process that has the pool open for writing; it then holds nothing.
    """

    def __init__(self, descriptor: int, *, live: bool) -> None:
        self._descriptor = descriptor
        self.live = live

    @classmethod
    def acquire(cls, directory: Path, *, read_only: bool = False) -> PoolLock:
        """Take the lock without waiting.

        Raises:
            PoolBusyError: another process has the pool open; the text names its pid.
            ConfigError: the lock file cannot be opened.
        """
        path = directory / NAME
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT)
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if not read_only:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno != errno.EWOULDBLOCK:
                raise ConfigError(f"cannot lock {path}: {error.strerror}") from error
            if read_only:
                return cls(-1, live=True)
            raise PoolBusyError(f"pool {directory} is open in {holder}; it can be open once at a time") from None
        return cls(descriptor, live=False)

    def release(self) -> None:
        """Give the lock back; twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who wrote itself into the lock file last. A reader does not write, so it is named only if nothing else fits."""
    try:
        pid = int(os.pread(descriptor, _PID_MAX_BYTES, 0))
    except (OSError, ValueError):
        return "another process"
    return f"process {pid}" if Path(f"/proc/{pid}").exists() else "another process, which reads it"

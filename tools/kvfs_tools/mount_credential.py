"""A new mount credential, in a file that only its owner can read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from kvfs.errors import ConfigError
from kvfs.handshake import CREDENTIAL_BYTES
from kvfsd.pool.access import credential_digest
from kvfsd.ports import SystemRandomness


@contextlib.contextmanager
def write_new(path: str) -> Iterator[bytes]:
    """Write a fresh credential to a new file (mode 0600) -> its digest. If the block fails, the file is gone again.

    Raises:
        ConfigError: there is something at `path` already, or it cannot be written.
    """
    secret = SystemRandomness().token(CREDENTIAL_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(secret.hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"cannot make {path}: {error.strerror}") from error
    try:
        yield credential_digest(secret)
    except BaseException:
        os.unlink(path)
        raise

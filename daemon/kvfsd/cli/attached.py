"""A mount in split mode: FUSE in this process, keys, catalog and media in the daemon behind a socket.

Nothing here, and nothing that this imports, knows a cipher; a test looks at the modules of a running mount.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from kvfs.commands import StatFilesystem
from kvfs.errors import ConfigError, KvfsError
from kvfs.fuse import mount as fuse_mount
from kvfs.handshake import CREDENTIAL_BYTES
from kvfs.remote import RemoteQueuePair, attached
from kvfs.remotelink import Target
from kvfsd import directories
from kvfsd.admin.admin import Method, Methods, NoParams
from kvfsd.admin.mounts import MountRecord
from kvfsd.cli import mounted
from kvfsd.cli.background import Readiness
from kvfsd.cli.request import MountRequest

STATUS_DEADLINE_S: Final = 2.0
"""A status that waits longer for the daemon says so instead."""


def serve(asked: MountRequest, readiness: Readiness, log_file: str) -> None:
    """Attach, mount, serve until unmounted, SIGTERM or SIGINT, detach.

    Raises:
        KvfsError: the mount did not come about; the text says why.
    """
    trio.run(_serve, asked, readiness, log_file)


async def _serve(asked: MountRequest, readiness: Readiness, log_file: str) -> None:
    runtime = directories.ensure_private(directories.runtime())
    options = mounted.fuse_options(asked, asked.source.pool)
    fuse_mount.check_mountable(asked.mountpoint, options)
    credential = read_credential(asked.options.credential) if asked.options.credential else b""
    target = Target(Path(asked.source.pool), asked.source.tenant, credential)
    async with attached(target) as pair:
        record = mounted.new_record(asked, asked.source.pool, runtime, log_file)
        mount = _Mount(record, pair)
        async with mounted.admin_socket(record, mount.methods(), runtime):
            await fuse_mount.serve(
                pair, asked.mountpoint, options, started=lambda: mounted.started(record, runtime, readiness)
            )
            mounted.begin_end()


@dataclass(frozen=True, slots=True)
class _Mount:
    """What the admin methods of a split mount know."""

    record: MountRecord
    pair: RemoteQueuePair

    async def status(self, _: NoParams) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "state": "serving" if self.pair.connected else "disconnected",
            "attachment": self.pair.attachment,
            "reconnects": self.pair.reconnects,
            "uptime_ns": time.time_ns() - self.record.mounted_at_ns,
        }
        with trio.move_on_after(STATUS_DEADLINE_S):
            try:
                usage = (await self.pair.submit(StatFilesystem())).result
                answer["usage"] = {name: getattr(usage, name) for name in usage.__struct_fields__}
            except KvfsError as error:
                answer["error"] = str(error)
        return answer

    def methods(self) -> Methods:
        methods = Methods()
        methods.add("status", Method("State of this mount, and use of its tenant.", self.status))
        return methods


def read_credential(path: str) -> bytes:
    """The mount credential in a file that nobody else may read: 64 hexadecimal digits.

    Raises:
        ConfigError: it cannot be read, is open to others, or is none.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            text = file.read(4 * CREDENTIAL_BYTES)
    except OSError as error:
        raise ConfigError(f"mount credential {path}: {error.strerror}") from error
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"mount credential {path} is open to other users; run: chmod 600 {path}")
    try:
        secret = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != CREDENTIAL_BYTES:
        raise ConfigError(f"mount credential {path}: want {2 * CREDENTIAL_BYTES} hexadecimal digits")
    return secret

"""What every mount process has, whatever is behind its queue pair: FUSE options, a record, an admin socket, an end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import trio

from kvfs.fuse import mount as fuse_mount
from kvfsd.admin import admin, mounts
from kvfsd.admin.admin import Methods
from kvfsd.admin.mounts import MountRecord
from kvfsd.cli.background import Readiness
from kvfsd.cli.notify import notify
from kvfsd.cli.request import MountRequest

log = logging.getLogger(__name__)

FSNAME_MAX: Final = 255


def fuse_options(asked: MountRequest, pool: str) -> fuse_mount.MountOptions:
    """FUSE options of a mount; `pool` is what mount(8) shows behind the tenant."""
    options = asked.options
    shown = f"{asked.source.tenant}@{pool}"[:FSNAME_MAX]
    return fuse_mount.MountOptions(
        read_only=options.read_only,
        allow_other=options.allow_other,
        verify_at_open_max_bytes=options.verify_at_open_max_bytes,
        fsname="".join(one if " " <= one <= "~" and one != "," else "?" for one in shown),
        kernel=tuple(dict.fromkeys(("nosuid", "nodev", *options.kernel))),
    )


def new_record(asked: MountRequest, pool: str, runtime: Path, log_file: str) -> MountRecord:
    """The record of this process; `pool` is a pool's directory or a daemon's socket."""
    ticks = mounts.process_start_ticks(os.getpid())
    assert ticks is not None
    return MountRecord(
        version=mounts.VERSION,
        pid=os.getpid(),
        started_ticks=ticks,
        mountpoint=asked.mountpoint,
        pool=os.path.realpath(pool),
        tenant=asked.source.tenant,
        admin_socket=str(mounts.socket_path(runtime, asked.mountpoint)),
        log=log_file,
        mounted_at_ns=time.time_ns(),
    )


async def _serve_admin(listener: socket.socket, methods: Methods) -> None:
    try:
        await admin.serve(listener, methods)
    except Exception:
        log.exception("the admin socket failed; everything else goes on without it")


@contextlib.asynccontextmanager
async def admin_socket(record: MountRecord, methods: Methods, runtime: Path) -> AsyncIterator[None]:
    """Serve the admin socket while the block runs; record and socket are gone afterwards."""
    listener = admin.listen(Path(record.admin_socket))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_admin, listener, methods)
            yield
            nursery.cancel_scope.cancel()
    finally:
        mounts.remove_record(runtime, record)


def started(record: MountRecord, runtime: Path, readiness: Readiness) -> None:
    """The mount answers: let others find it, and whoever started it go on."""
    mounts.remove_stale([runtime])
    mounts.write_record(runtime, record)
    readiness.ready()


def begin_end() -> None:
    """Unmounted: what follows must not be cut short by an impatient second signal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    notify("STOPPING=1")

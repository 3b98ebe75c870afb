"""An embedded mount, from an opened pool to an orderly end: the one place where both halves are put together.

pool -> service -> session of the tenant -> queue pair -> FUSE        and beside it the admin socket
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from kvfs.commands import StatFilesystem
from kvfs.errors import NotFoundError, PoolBusyError
from kvfs.fuse import mount as fuse_mount
from kvfsd import directories
from kvfsd.admin import admin, mounts
from kvfsd.admin.admin import Method, Methods, NoParams
from kvfsd.admin.admin_methods import PoolAdmin
from kvfsd.admin.mounts import MountRecord
from kvfsd.cli.background import Readiness
from kvfsd.cli.keysource import kek_source
from kvfsd.cli.notify import notify
from kvfsd.cli.options import MountOptions
from kvfsd.cli.privatepool import ensure_private_pool
from kvfsd.cli.request import MountRequest
from kvfsd.metrics import prometheus_text
from kvfsd.pool.pool import Pool
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service

log = logging.getLogger(__name__)

FSNAME_MAX: Final = 255


def serve(asked: MountRequest, readiness: Readiness, log_file: str) -> None:
    """Open the pool, mount, serve until unmounted, SIGTERM or SIGINT, and put everything in order.

    Raises:
        KvfsError: the mount did not come about, or the pool could not be closed in order; the text says why.
    """
    trio.run(_serve, asked, readiness, log_file)


@dataclass(slots=True)
class _Mount:
    """What the admin methods of a mount know."""

    record: MountRecord
    service: Service
    queue_pair: InProcessQueuePair
    state: str = "starting"

    async def status(self, _: NoParams) -> dict[str, Any]:
        usage = (await self.queue_pair.submit(StatFilesystem())).result
        return {
            "state": "failsafe" if self.service.failsafe_reason else self.state,
            "failsafe_reason": self.service.failsafe_reason,
            "usage": {name: getattr(usage, name) for name in usage.__struct_fields__},
            "metrics": self.service.metrics.snapshot(),
            "warnings": list(self.service.pool.warnings),
            "uptime_ns": time.time_ns() - self.record.mounted_at_ns,
        }

    async def metrics(self, _: NoParams) -> dict[str, Any]:
        return {"text": prometheus_text(self.service.metrics).decode()}

    def methods(self) -> Methods:
        methods = Methods()
        methods.add("status", Method("State, use and counters of this mount.", self.status))
        methods.add("metrics", Method("All metrics in Prometheus' text format.", self.metrics))
        tenant = self.record.tenant
        PoolAdmin(self.service.pool, self.service.quarantine, lambda name: name == tenant).register(methods)
        return methods


async def _serve(asked: MountRequest, readiness: Readiness, log_file: str) -> None:
    runtime = directories.ensure_private(directories.runtime())
    options = _fuse_options(asked, "")
    fuse_mount.check_mountable(asked.mountpoint, options)
    async with contextlib.AsyncExitStack() as undo:
        pool = await _open_pool(asked, readiness)
        undo.push_async_callback(pool.aclose)
        for warning in pool.warnings:
            readiness.note(f"warning: {warning}")
        _apply_quota(pool, asked.source.tenant, asked.options)
        service = await undo.enter_async_context(Service.open(pool))
        queue_pair = InProcessQueuePair(service.attach(asked.source.tenant))
        undo.push_async_callback(queue_pair.aclose)
        record = _record(asked, pool, runtime, log_file)
        mount = _Mount(record, service, queue_pair)
        async with _admin(mount, runtime):
            await fuse_mount.serve(
                queue_pair,
                asked.mountpoint,
                _fuse_options(asked, str(pool.directory)),
                started=lambda: _started(mount, runtime, readiness),
            )
            _begin_end(mount)


def _begin_end(mount: _Mount) -> None:
    """Unmounted: what follows must not be cut short by an impatient second signal."""
    mount.state = "stopping"
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    notify("STOPPING=1")


def _started(mount: _Mount, runtime: Path, readiness: Readiness) -> None:
    mount.state = "serving"
    mounts.remove_stale([runtime])
    mounts.write_record(runtime, mount.record)
    readiness.ready()


async def _open_pool(asked: MountRequest, readiness: Readiness) -> Pool:
    """The pool, open for writing; refusals name what to do."""
    directory = Path(asked.source.pool)
    if not asked.source.pool:
        directory, note = await ensure_private_pool()
        if note:
            readiness.note(note)
    try:
        pool = await Pool.open(directory, kek_source(asked.options.kek_options))
    except PoolBusyError as error:
        raise _busy(directory, error) from error
    except NotFoundError as error:
        raise NotFoundError(f"{error}; make one with kvfsctl pool create {directory}") from error
    try:
        pool.tenants.show(asked.source.tenant)
    except NotFoundError as error:
        await pool.aclose()
        command = f"kvfsctl tenant create {directory} {asked.source.tenant}"
        raise NotFoundError(f"{error}; make it with {command}") from error
    except BaseException:
        await pool.aclose()
        raise
    return pool


def _busy(directory: Path, error: PoolBusyError) -> PoolBusyError:
    """The refusal of a second mount, with what is known of the first."""
    holder = mounts.live_mount_of_pool(os.path.realpath(directory))
    why = "an embedded pool has one mount at a time (several need kvfsd, which is to come)"
    if holder is None:
        return PoolBusyError(f"{error}; {why}")
    where = f"{holder.mountpoint} (process {holder.pid}, tenant {holder.tenant})"
    return PoolBusyError(f"pool {directory} is mounted at {where}; {why}")


def _apply_quota(pool: Pool, tenant: str, options: MountOptions) -> None:
    if options.quota_bytes is not None or options.quota_objects is not None:
        pool.tenants.set(tenant, quota_bytes=options.quota_bytes, quota_objects=options.quota_objects)


def _fuse_options(asked: MountRequest, pool: str) -> fuse_mount.MountOptions:
    options = asked.options
    shown = f"{asked.source.tenant}@{pool}"[:FSNAME_MAX]
    return fuse_mount.MountOptions(
        read_only=options.read_only,
        allow_other=options.allow_other,
        verify_at_open_max_bytes=options.verify_at_open_max_bytes,
        fsname="".join(one if " " <= one <= "~" and one != "," else "?" for one in shown),
        kernel=tuple(dict.fromkeys(("nosuid", "nodev", *options.kernel))),
    )


def _record(asked: MountRequest, pool: Pool, runtime: Path, log_file: str) -> MountRecord:
    ticks = mounts.process_start_ticks(os.getpid())
    assert ticks is not None
    return MountRecord(
        version=mounts.VERSION,
        pid=os.getpid(),
        started_ticks=ticks,
        mountpoint=asked.mountpoint,
        pool=os.path.realpath(pool.directory),
        tenant=asked.source.tenant,
        admin_socket=str(mounts.socket_path(runtime, asked.mountpoint)),
        log=log_file,
        mounted_at_ns=time.time_ns(),
    )


async def _serve_admin(listener: socket.socket, methods: Methods) -> None:
    try:
        await admin.serve(listener, methods)
    except Exception:
        log.exception("the admin socket failed; the mount goes on without it")


@contextlib.asynccontextmanager
async def _admin(mount: _Mount, runtime: Path) -> AsyncIterator[None]:
    """Serve the admin socket while the block runs; record and socket are gone afterwards."""
    listener = admin.listen(Path(mount.record.admin_socket))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_admin, listener, mount.methods())
            yield
            nursery.cancel_scope.cancel()
    finally:
        mounts.remove_record(runtime, mount.record)

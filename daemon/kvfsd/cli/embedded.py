"""An embedded mount, from an opened pool to an orderly end: the one place where both halves are put together.

pool -> service -> session of the tenant -> queue pair -> FUSE        and beside it the admin socket
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from kvfs.commands import StatFilesystem
from kvfs.errors import NotFoundError, PoolBusyError
from kvfs.fuse import mount as fuse_mount
from kvfsd import directories
from kvfsd.admin import mounts
from kvfsd.admin.admin import Method, Methods, NoParams
from kvfsd.admin.admin_methods import PoolAdmin
from kvfsd.admin.mounts import MountRecord
from kvfsd.admin.service_report import metrics_method, service_status
from kvfsd.cli import mounted
from kvfsd.cli.background import Readiness
from kvfsd.cli.keysource import kek_source
from kvfsd.cli.options import MountOptions
from kvfsd.cli.privatepool import ensure_private_pool
from kvfsd.cli.request import MountRequest
from kvfsd.pool.pool import Pool
from kvfsd.pool.tenants import TenantChange
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service

log = logging.getLogger(__name__)


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
            **service_status(self.service, self.state, self.record.mounted_at_ns),
            "usage": {name: getattr(usage, name) for name in usage.__struct_fields__},
        }

    def methods(self) -> Methods:
        methods = Methods()
        methods.add("status", Method("State, use and counters of this mount.", self.status))
        methods.add("metrics", metrics_method(self.service))
        tenant = self.record.tenant
        PoolAdmin(self.service.pool, self.service.quarantine, lambda name: name == tenant).register(methods)
        return methods


async def _serve(asked: MountRequest, readiness: Readiness, log_file: str) -> None:
    runtime = directories.ensure_private(directories.runtime())
    options = mounted.fuse_options(asked, "")
    fuse_mount.check_mountable(asked.mountpoint, options)
    async with contextlib.AsyncExitStack() as undo:
        pool = await _open_pool(asked, readiness)
        undo.push_async_callback(pool.aclose)
        pool.catalog.attachments.forget_kept()
        for warning in pool.warnings:
            readiness.note(f"warning: {warning}")
        _apply_quota(pool, asked.source.tenant, asked.options)
        service = await undo.enter_async_context(Service.open(pool))
        queue_pair = InProcessQueuePair(service.attach(asked.source.tenant))
        undo.push_async_callback(queue_pair.aclose)
        record = mounted.new_record(asked, str(pool.directory), runtime, log_file)
        mount = _Mount(record, service, queue_pair)
        async with mounted.admin_socket(record, mount.methods(), runtime):
            await fuse_mount.serve(
                queue_pair,
                asked.mountpoint,
                mounted.fuse_options(asked, str(pool.directory)),
                started=lambda: _started(mount, runtime, readiness),
            )
            mount.state = "stopping"
            mounted.begin_end()


def _started(mount: _Mount, runtime: Path, readiness: Readiness) -> None:
    mount.state = "serving"
    mounted.started(mount.record, runtime, readiness)


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
    why = "an embedded pool has one mount at a time; several need kvfsd (kvfsd serve POOL)"
    if holder is None:
        return PoolBusyError(f"{error}; {why}")
    if holder.tenant == mounts.EVERY_TENANT:
        where = f"{holder.mountpoint} (process {holder.pid})"
        return PoolBusyError(
            f"pool {directory} is served by kvfsd on {where}; run kvfs mount TENANT@{holder.mountpoint}"
        )
    where = f"{holder.mountpoint} (process {holder.pid}, tenant {holder.tenant})"
    return PoolBusyError(f"pool {directory} is mounted at {where}; {why}")


def _apply_quota(pool: Pool, tenant: str, options: MountOptions) -> None:
    change = TenantChange(
        quota_bytes=options.quota_bytes,
        quota_objects=options.quota_objects,
        eviction=options.eviction,
        layout_guard=options.layout_guard,
    )
    if change != TenantChange():
        pool.tenants.change(tenant, change)

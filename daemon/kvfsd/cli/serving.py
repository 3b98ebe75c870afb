"""A daemon, from an opened pool to an orderly end.

pool -> service -> server on its sockets        and beside it the admin socket and the watchdog
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from kvfs.errors import NotFoundError
from kvfsd import directories
from kvfsd.admin import mounts
from kvfsd.admin.admin import Method, Methods, NoParams, listen
from kvfsd.admin.admin_methods import PoolAdmin
from kvfsd.admin.mounts import MountRecord
from kvfsd.admin.service_report import metrics_method, service_status
from kvfsd.cli import launch, mounted, output
from kvfsd.cli.activation import inherited
from kvfsd.cli.keysource import kek_source
from kvfsd.cli.notify import notify
from kvfsd.cli.options import KekOptions
from kvfsd.pool.pool import Pool
from kvfsd.server.server import Server, ServerOptions
from kvfsd.service.service import Service

log = logging.getLogger(__name__)

SOCKET_NAME: Final = "kvfsd.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """What `kvfsd serve` is to do; all paths absolute."""

    pool: Path
    socket: Path | None
    """None: SOCKET_NAME in the runtime directory."""
    socket_mode: int
    grace_ms: int
    kek: KekOptions


def serve(asked: ServeRequest) -> None:
    """Open the pool, serve until SIGTERM or SIGINT, drain, put everything in order.

    Raises:
        KvfsError: the daemon cannot start, or the pool could not be closed in order; the text says why.
    """
    launch.log_to(logging.StreamHandler(sys.stderr))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold keys and plaintext
    trio.run(_serve, asked)


async def _serve(asked: ServeRequest) -> None:
    runtime = directories.ensure_private(directories.runtime())
    passed = inherited()
    async with contextlib.AsyncExitStack() as undo:
        pool = await _open_pool(asked)
        undo.push_async_callback(pool.aclose)
        for warning in pool.warnings:
            output.warn("kvfsd", f"warning: {warning}")
        service = await undo.enter_async_context(Service.open(pool))
        path = asked.socket or runtime / SOCKET_NAME
        listeners = passed or [listen(path, asked.socket_mode)]
        if passed:
            path = Path(os.fsdecode(passed[0].getsockname()))
        else:
            undo.callback(path.unlink, missing_ok=True)
        daemon = _Daemon(_record(pool, path, runtime), service, Server(service, _options(pool, asked)))
        await daemon.run(listeners, runtime)


def _options(pool: Pool, asked: ServeRequest) -> ServerOptions:
    return ServerOptions(access=pool.tenants.access, grace_ms=asked.grace_ms)


async def _open_pool(asked: ServeRequest) -> Pool:
    try:
        return await Pool.open(asked.pool, kek_source(asked.kek))
    except NotFoundError as error:
        raise NotFoundError(f"{error}; make one with kvfsctl pool create {asked.pool}") from error


def _record(pool: Pool, path: Path, runtime: Path) -> MountRecord:
    ticks = mounts.process_start_ticks(os.getpid())
    assert ticks is not None
    return MountRecord(
        version=mounts.VERSION,
        pid=os.getpid(),
        started_ticks=ticks,
        mountpoint=str(path),
        pool=os.path.realpath(pool.directory),
        tenant=mounts.EVERY_TENANT,
        admin_socket=str(mounts.socket_path(runtime, str(path))),
        log="",
        mounted_at_ns=time.time_ns(),
    )


@dataclass(slots=True)
class _Daemon:
    """A running daemon, and what its admin methods know."""

    record: MountRecord
    service: Service
    server: Server
    state: str = "starting"

    async def run(self, listeners: list[socket.socket], runtime: Path) -> None:
        """Serve until a signal comes, then drain."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with (
                mounted.admin_socket(self.record, self.methods(), runtime),
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self.server.run, listeners)
                nursery.start_soon(_feed_watchdog)
                # in this order: what a killed daemon left has the same names, and is overwritten, not removed
                mounts.write_record(runtime, self.record)
                mounts.remove_stale([runtime])
                self.state = "serving"
                notify(f"READY=1\nMAINPID={os.getpid()}")
                log.info("serving pool %s on %s", self.record.pool, self.record.mountpoint)
                async for number in signals:
                    log.info("%s: draining", signal.Signals(number).name)
                    break
                self.state = "stopping"
                notify("STOPPING=1")
                await self.server.drain()
                nursery.cancel_scope.cancel()
        mounted.begin_end()

    async def status(self, _: NoParams) -> dict[str, Any]:
        names = [tenant.name for tenant in self.service.pool.tenants.list()]
        return {
            **service_status(self.service, self.state, self.record.mounted_at_ns),
            "attachments": {name: count for name in names if (count := self.server.of_tenant(name))},
        }

    def methods(self) -> Methods:
        methods = Methods()
        methods.add("status", Method("State, attachments and counters of this daemon.", self.status))
        methods.add("metrics", metrics_method(self.service))
        service = self.service
        PoolAdmin(service.pool, service.quarantine, lambda name: bool(self.server.of_tenant(name))).register(methods)
        return methods


async def _feed_watchdog() -> None:
    """Tell systemd that the event loop turns, twice per WatchdogSec= (sd_watchdog_enabled(3))."""
    period_us = os.environ.get("WATCHDOG_USEC", "")
    if not period_us.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1")
        await trio.sleep(max(int(period_us), 2) / 2_000_000)

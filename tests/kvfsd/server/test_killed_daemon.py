"""SIGKILL of a real daemon between the commit of each mutating command and its answer: the effect is there once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from kvfs.commands import Commit, ObjectChanged, ReadBlock, StatFilesystem, WriteBlock
from kvfs.remote import attached
from kvfs.remotelink import Target
from kvfsd.admin import admin_client, mounts
from tests import mountlib
from tests.kvfsd.server.test_server import BLOCK, MUTATIONS, prepare
from tests.kvfsd.serving import Host

DYING = [sys.executable, str(Path(__file__).with_name("dying_daemon.py"))]


@pytest.fixture
def pool() -> Iterator[mountlib.PoolFixture]:
    with mountlib.scratch_directory("kvfs-kill-") as base:
        pool = mountlib.PoolFixture.create(base)
        yield pool


async def restart(daemon: mountlib.Daemon) -> None:
    """Wait for the death of the daemon, and start one that lives."""
    assert daemon.process is not None
    assert await trio.to_thread.run_sync(daemon.process.wait, 30) == -9
    daemon.command = (sys.executable, "-m", "kvfsd")
    await trio.to_thread.run_sync(daemon.start)


async def start_dying(pool: mountlib.PoolFixture, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("KVFS_DIE_AT", command)
    pool.daemon.command = DYING
    await trio.to_thread.run_sync(pool.daemon.start)


@pytest.mark.parametrize("kind", MUTATIONS, ids=lambda kind: kind.__name__)
async def test_a_kill_between_commit_and_answer(
    pool: mountlib.PoolFixture, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    """Done twice, each of these commands would fail or count twice."""
    target = Target(pool.daemon.socket, "engine")
    await trio.to_thread.run_sync(pool.daemon.start)
    async with attached(target) as pair:
        host = Host(pair)
        if kind is Commit:  # what it commits must come through the restart as well
            numbers = {"new": await host.allocate()}
            await host.write_block(numbers["new"], 0, b"fresh")
        else:
            numbers = await prepare(host)
        await trio.to_thread.run_sync(pool.daemon.stop)
        await start_dying(pool, monkeypatch, kind.__name__)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restart, pool.daemon)
            await host.submit(MUTATIONS[kind](numbers))
        assert pair.reconnects == 2
        assert ObjectChanged(0) in pair.take_events()
        status = await trio.to_thread.run_sync(ask_status, pool)
        counters = status["metrics"]["counters"]
        assert counters["replayed_completions"] == 1
        if kind is Commit:
            assert await host.load(b"new") == b"fresh"
            usage = (await host.submit(StatFilesystem())).result
            assert (usage.used_bytes, usage.used_objects) == (5, 1)


def ask_status(pool: mountlib.PoolFixture) -> dict:
    record = mounts.live_mount_of_pool(os.path.realpath(pool.pool))
    assert record is not None
    return admin_client.call(record.admin_socket, "status")


@pytest.mark.parametrize("kind", [WriteBlock, ReadBlock], ids=lambda kind: kind.__name__)
async def test_a_kill_with_data_in_flight(
    pool: mountlib.PoolFixture, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    await start_dying(pool, monkeypatch, kind.__name__)
    async with attached(Target(pool.daemon.socket, "engine")) as pair:
        host = Host(pair)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restart, pool.daemon)
            ino = await host.allocate()
            async with trio.open_nursery() as writers:
                for block in range(8):
                    writers.start_soon(partial(host.write_block, ino, block, BLOCK))
            await host.commit(ino, 8 * len(BLOCK), b"file")
            assert await host.load(b"file") == BLOCK * 8
        assert pair.reconnects == 1

"""The catalog's write-ahead log stays bounded under a flood, and a reader that pins it stops nobody for ever."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest
import trio

from kvfs import limits
from kvfs.commands import MakeNode
from kvfsd.catalog import wal
from kvfsd.service.service import Service
from kvfsd.service.walbound import ASK_EVERY, WalBound
from tests.kvfsd.serving import TENANT, TRANSPORTS, Host, make_pool, serving

DIRECTORY = stat.S_IFDIR | 0o755
HARD_BYTES = 4 * limits.MIB
STEP_BYTES = ASK_EVERY * 80 * limits.KIB
"""What is added between two looks, and then some."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "WAL_SOFT_BYTES", limits.MIB)
    monkeypatch.setattr(wal, "WAL_HARD_BYTES", HARD_BYTES)


async def flood(service: Service, count: int) -> int:
    """Make directories without a pause -> the largest that the log has been."""
    host = Host(TRANSPORTS["direct"](service.attach(TENANT)))
    most = 0
    for number in range(count):
        await host.submit(MakeNode(1, b"d%d" % number, DIRECTORY, 0, 0, b""))
        most = max(most, service.catalog.database.wal.size_bytes())
    return most


@pytest.mark.usefixtures("small")
async def test_a_flood_waits_for_the_checkpoint(tmp_path: Path) -> None:
    async with serving(await make_pool(tmp_path)) as service:
        most = await flood(service, 1500)
        assert service.metrics.counters.checkpoint_waits > 0
    assert HARD_BYTES <= most < HARD_BYTES + STEP_BYTES


@pytest.mark.usefixtures("small")
async def test_a_reader_that_pins_the_log_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvfsd.catalog.connection.BUSY_TIMEOUT_S", 0.01)  # how long a checkpoint waits for the reader
    async with serving(await make_pool(tmp_path)) as service:
        reader = sqlite3.connect(service.catalog.database.path)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM inode").fetchone()
        try:
            most = await flood(service, 1500)
        finally:
            reader.close()
        assert most > 2 * HARD_BYTES
        assert service.metrics.counters.checkpoint_waits >= 2
        assert service.metrics.counters.internal_errors == 0


async def test_a_checkpoint_that_failed_ends_the_wait_too() -> None:
    size = wal.WAL_HARD_BYTES
    wakes = []
    bound = WalBound(lambda: size)
    bound.on_progress = lambda: wakes.append(1)
    assert [bound.is_over() for _ in range(ASK_EVERY)] == [False] * (ASK_EVERY - 1) + [True]
    assert bound.is_over()
    with trio.fail_after(1):
        await bound.wait_wanted()
    bound.checkpointed()
    assert bound.is_over(), "that one had begun before"
    bound.begin()
    bound.checkpointed()
    assert wakes == [1]
    assert not any(bound.is_over() for _ in range(2 * ASK_EVERY)), "it is as large, but nothing was added"
    size += wal.WAL_HARD_BYTES
    assert any(bound.is_over() for _ in range(ASK_EVERY))
    size = 0
    bound.begin()
    bound.checkpointed()
    size = wal.WAL_HARD_BYTES
    assert any(bound.is_over() for _ in range(ASK_EVERY))

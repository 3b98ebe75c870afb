"""The database itself: what opens, what is refused, transactions, counters, crashes, readers, checkpoints."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from kvfs.errors import FailsafeError, FormatError, InternalError, KvfsError, NotFoundError, PoolBusyError
from kvfsd.catalog import Catalog, Hooks
from kvfsd.catalog import counters as counters_module
from kvfsd.catalog.check import check
from kvfsd.catalog.connection import Connection
from kvfsd.catalog.database import Database
from kvfsd.catalog.rowmacs import plain_check
from tests.kvfsd.catalog.world import POOL, World, opened_catalog


def alter(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_catalog_keeps_what_was_committed(world: World) -> None:
    ino = world.store("a")
    world.reopen()
    row = world.lookup("a")
    assert row is not None
    assert row.ino == ino
    assert world.catalog.database.meta("pool_uuid") == POOL
    assert (world.path.stat().st_mode & 0o777) == 0o600


def test_clean_and_unclean_ends_are_told_apart(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.catalog.database.was_clean
    world.store("a")
    world.catalog.database.abandon()
    world.catalog = opened_catalog(world.path)
    assert not world.catalog.database.was_clean
    assert world.lookup("a") is not None
    world.reopen()
    assert world.catalog.database.was_clean
    world.catalog.close()
    assert [one.name for one in tmp_path.iterdir()] == ["catalog.db"]


def test_missing_existing_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with pytest.raises(NotFoundError, match=r"catalog\.db: no such file"):
        Catalog.open(path)
    path.write_bytes(b"not a database at all, " * 100)
    for read_only in (False, True):
        with pytest.raises(FormatError, match=r"catalog\.db"):
            Catalog.open(path, read_only=read_only)
    with pytest.raises(FileExistsError):
        Catalog.create(path, POOL)
    path.unlink()
    alter(path, "CREATE TABLE other(x)")
    with pytest.raises(FormatError, match="not a catalog of kvfs"):
        Catalog.open(path)


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("PRAGMA user_version=3", "version"),
        (f"UPDATE meta SET value=4, mac={plain_check('features', 4)} WHERE key='features'", "unknown features 4"),
        (f"UPDATE meta SET value='x', mac={plain_check('features', 'x')} WHERE key='features'", "unknown features 'x'"),
        ("UPDATE meta SET value=4 WHERE key='features'", "meta row 'features' fails its check"),
        ("UPDATE meta SET value=value-1 WHERE key='next_generation'", "meta row 'next_generation' fails its check"),
        ("DELETE FROM meta WHERE key='features'", "features"),
        ("DROP TABLE meta", "meta"),
    ],
)
def test_unknown_versions_and_features_are_refused(tmp_path: Path, statement: str, text: str) -> None:
    world = World(tmp_path)
    world.catalog.close()
    alter(world.path, statement)
    for read_only in (False, True):
        with pytest.raises(FormatError, match=text):
            Catalog.open(world.path, read_only=read_only)


def test_nested_and_missing_transactions_are_bugs(world: World) -> None:
    with pytest.raises(InternalError), world.catalog.transaction(), world.catalog.transaction():
        pass
    with pytest.raises(InternalError):
        world.catalog.namespace.put_entry(world.entry("a"), 5)
    with pytest.raises(InternalError):
        world.catalog.blocks.drop_staged(1, 1, 1, 0)
    assert not world.catalog.database.in_transaction


class CrashError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("where", ["before_commit", "after_commit"])
def test_a_crash_at_every_commit_leaves_a_whole_catalog(tmp_path: Path, where: str) -> None:
    total = 0
    fatal = 0
    while True:
        fatal += 1
        count = 0

        def crash() -> None:
            nonlocal count
            count += 1
            if count == fatal:  # noqa: B023
                raise CrashError

        directory = tmp_path / str(fatal)
        directory.mkdir()
        crashed = False
        try:
            world = World(directory, Hooks(**{where: crash}))
            world.store("a")
            world.store("a", [5])
            ino = world.mkdir("d")
            world.store("b", keep_open=True)
            world.unlink("b", keep_for=7)
            world.mkdir("in", ino)
        except CrashError:
            crashed = True
        catalog = opened_catalog(directory / "catalog.db")
        catalog.attachments.recover()
        assert check(catalog.database) == []
        catalog.close()
        total += 1
        if not crashed:
            break
    assert total > 10


def test_numbers_are_never_used_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters_module, "RANGE_LOW", 0)
    database = Database.create(tmp_path / "catalog.db", POOL)
    for counter in (database._counters.inos, database._counters.generations, database._counters.attachments):
        counter.end = counter.next + 3
    seen = [(database.next_ino(), database.next_generation(), database.next_attachment()) for _ in range(7)]
    database.abandon()
    database = Database.open(tmp_path / "catalog.db")
    seen += [(database.next_ino(), database.next_generation(), database.next_attachment()) for _ in range(3)]
    for numbers in zip(*seen, strict=True):
        assert len(set(numbers)) == 10
        assert min(numbers) >= 1
    assert min(ino for ino, _, _ in seen) == 2
    database.close()


def test_ranges_are_renewed_before_a_transaction_not_inside(world: World) -> None:
    database = world.catalog.database
    database._counters.inos.next = database._counters.inos.end - 1
    with world.catalog.transaction():
        numbers = [database.next_ino() for _ in range(3)]
    assert numbers[1:] == [numbers[0] + 1, numbers[0] + 2]
    database._counters.inos.next = database._counters.inos.end
    with pytest.raises(InternalError, match="next_ino"):
        _take_inside(world)


def _take_inside(world: World) -> None:
    with world.catalog.transaction():
        world.catalog.database._counters.inos.next = world.catalog.database._counters.inos.end
        world.catalog.database.next_ino()


def test_a_tool_reads_beside_a_live_pool_and_writes_nothing(world: World) -> None:
    world.store("a")
    tool = opened_catalog(world.path, read_only=True)
    assert tool.namespace.lookup(*world.entry("a")) is not None
    world.store("b")
    assert tool.namespace.lookup(*world.entry("b")) is not None
    assert check(tool.database) == []
    with pytest.raises(KvfsError):
        tool.database.run("DELETE FROM dirent")
    with pytest.raises(InternalError, match="read-only"):
        tool.database.sync_call()
    tool.close()


def test_a_tool_reads_a_closed_pool_and_leaves_no_files(world: World) -> None:
    world.store("a")
    world.catalog.close()
    tool = opened_catalog(world.path, read_only=True)
    assert tool.namespace.lookup(*world.entry("a")) is not None
    tool.close()
    assert [one.name for one in world.path.parent.iterdir()] == ["catalog.db"]
    world.catalog = opened_catalog(world.path)


def test_a_second_writer_is_kept_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvfsd.catalog.connection.BUSY_TIMEOUT_S", 0.01)
    other = Connection(world.path)
    with world.catalog.transaction(), pytest.raises(PoolBusyError):
        other.run("BEGIN IMMEDIATE")
    other.disconnect()


def test_the_log_is_copied_and_emptied_by_checkpoints(world: World) -> None:
    for number in range(30):
        world.store(f"n{number}")
    wal = world.catalog.database.wal
    size = wal.size_bytes()
    assert size > 0
    world.catalog.database.sync_call()()
    wal.checkpoint_call()()
    assert wal.size_bytes() == size
    wal.checkpoint_call(empty=True)()
    assert wal.size_bytes() == 0
    world.store("after")
    assert wal.size_bytes() > 0


def test_checkpoints_are_due_by_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = world.catalog.database.wal
    assert wal.due_checkpoint() is None
    monkeypatch.setattr("kvfsd.catalog.wal.WAL_SOFT_BYTES", 1)
    monkeypatch.setattr("kvfsd.catalog.wal.WAL_HARD_BYTES", wal.size_bytes())
    due = wal.due_checkpoint()
    assert due is not None
    due()
    assert wal.size_bytes() == 0


def test_a_plain_checkpoint_goes_on_inside_a_transaction_of_the_writer(world: World) -> None:
    world.store("a")
    with world.catalog.transaction():
        world.catalog.namespace.put_entry(world.entry("b"), world.root)
        world.catalog.database.wal.checkpoint_call()()
        world.catalog.namespace.drop_entry(world.entry("b"), world.root)
    assert world.lookup("a") is not None
    assert world.lookup("b") is None


def test_a_failing_sync_says_so(world: World) -> None:
    call = world.catalog.database.sync_call()
    os.close(world.catalog.database.wal._descriptor)
    with pytest.raises(FailsafeError, match="fsync"):
        call()
    world.catalog.database.wal._descriptor = -1


KILLED = """
import os, sys
from pathlib import Path
from tests.kvfsd.catalog.world import World
world = World(Path(sys.argv[1]))
for number in range(1000):
    world.store(f"n{number}")
    os.write(1, b"%d\\n" % number)
    if number == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
"""


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "20"], stdout=subprocess.PIPE, check=False, timeout=60
    )
    assert done.returncode == -9
    catalog = opened_catalog(tmp_path / "catalog.db")
    catalog.attachments.recover()
    assert len(catalog.namespace.list_directory(1, catalog.tenants.get(1).root_ino, 0, 100)[0]) == 21
    assert len(done.stdout.split()) == 21
    assert check(catalog.database) == []
    catalog.close()


@pytest.mark.parametrize("seed", range(16))
def test_damage_is_a_named_error_or_a_problem_never_another_exception(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path)
    for number in range(8):
        world.store(f"n{number}")
    world.catalog.close()
    pick = random.Random(seed)
    data = bytearray(world.path.read_bytes())
    for _ in range(pick.choice([1, 20, 500])):
        data[pick.randrange(len(data))] ^= 1 << pick.randrange(8)
    if seed % 4 == 0:
        del data[pick.randrange(len(data)) :]
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(data)
    shutil.copy(damaged, tmp_path / "copy.db")
    for path, read_only in ((damaged, True), (tmp_path / "copy.db", False)):
        try:
            catalog = opened_catalog(path, read_only=read_only)
            check(catalog.database)
            catalog.namespace.list_directory(1, world.root, 0, 100)
            for number in range(8):
                catalog.namespace.lookup(*world.entry(f"n{number}"))
            catalog.database.abandon()
        except KvfsError as error:
            assert str(error)  # noqa: PT017 - any error of ours will do, and it says something

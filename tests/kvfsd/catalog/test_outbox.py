"""What waits for the metadata log: the sums in memory are those of the table, whatever happens to it."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from kvfsd.catalog import Catalog
from kvfsd.catalog.log_rows import LogRecord
from kvfsd.catalog.rows import Location
from tests.kvfsd.catalog.world import World, opened_catalog


def sums(catalog: Catalog) -> tuple[int, int]:
    """The table itself."""
    found = catalog.database.one("SELECT count(*), coalesce(sum(length(blob)), 0) FROM outbox")
    assert found is not None
    return found[0], found[1]


def assert_exact(catalog: Catalog) -> None:
    size = catalog.database.outbox
    assert (size.rows, size.bytes) == sums(catalog)


def drain_some(world: World, tenant: int, max_bytes: int) -> None:
    rows = world.catalog.log_rows
    queued = rows.pending(tenant, max_bytes)
    if queued.entries:
        record = LogRecord(tenant, world.catalog.database.next_generation(), 100, (Location(0, 0, 1),))
        with world.catalog.transaction():
            rows.append(record, queued)


class RefusedError(Exception):
    """The transaction is given up."""


def refused(world: World) -> None:
    with contextlib.suppress(RefusedError), world.catalog.transaction():
        world.catalog.namespace.insert_node(world.entry("refused"), world.node())
        world.catalog.log_rows.discard(1)
        raise RefusedError


@pytest.mark.parametrize("seed", range(5))
def test_the_sums_follow_every_change(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path)
    world.add_tenant(2)
    chosen = random.Random(seed)
    most = 0
    for number in range(150):
        step = chosen.randrange(6)
        if step < 3:
            world.mkdir(f"d{number}")
        elif step == 3:
            refused(world)
        elif step == 4:
            drain_some(world, 1, chosen.choice([0, 200, 1000, 1 << 20]))
        else:
            drain_some(world, 2, 1 << 20)
        assert_exact(world.catalog)
        most = max(most, world.catalog.log_rows.backlog())
    assert most > 5


def test_they_are_there_again_after_a_kill_and_after_a_close(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(10):
        world.mkdir(f"d{number}")
    want = sums(world.catalog)
    assert want[0] >= 10
    world.catalog.database.abandon()
    catalog = opened_catalog(world.path)
    assert (catalog.database.outbox.rows, catalog.database.outbox.bytes) == want
    catalog.close()
    catalog = opened_catalog(world.path)
    assert_exact(catalog)
    catalog.close()


def test_a_deleted_tenant_takes_its_entries_with_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.mkdir("d")
    with world.catalog.transaction():
        world.catalog.tenants.begin_delete(1)
    more = True
    while more:
        with world.catalog.transaction():
            more = world.catalog.purge.purge_some(1)
        assert_exact(world.catalog)
    assert sums(world.catalog) == (0, 0)


def test_a_commit_that_fails_leaves_the_sums_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sums(world.catalog)
    database = world.catalog.database

    def refuse() -> None:
        raise RefusedError

    monkeypatch.setattr(database, "_hooks", type(database._hooks)(before_commit=refuse))
    with pytest.raises(RefusedError):
        world.mkdir("d")
    assert sums(world.catalog) == before
    assert_exact(world.catalog)


def test_tenants_that_wait_are_found_without_a_scan(world: World) -> None:
    plan = world.catalog.database.all(
        "EXPLAIN QUERY PLAN SELECT tenant FROM outbox WHERE tenant>? ORDER BY tenant LIMIT 1", (0,)
    )
    assert [row[3] for row in plan] == ["SEARCH outbox USING PRIMARY KEY (tenant>?)"]
    world.add_tenant(7)
    assert world.catalog.log_rows.waiting_tenants() == [1, 7]

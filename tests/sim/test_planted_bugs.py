"""The simulation can fail: bugs that are planted into the DPU half are found, each by the cases that are for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvfs.errors import BadRecordError
from kvfsd.catalog.database import Database
from kvfsd.catalog.inodes import Inodes
from kvfsd.catalog.namespace import Namespace
from kvfsd.catalog.rows import InodeRow, ListedEntry
from kvfsd.catalog.tenants import Tenants
from kvfsd.catalog.wholeness import Wholeness
from kvfsd.crypto import sealing
from kvfsd.datapath import pipeline
from kvfsd.metalog.metadata_log import MetadataLog
from kvfsd.ondisk.metalog import DropEntry
from kvfsd.pool.pool import Pool
from kvfsd.segments.appends import SegmentAppender
from kvfsd.segments.moving import RecordMover
from kvfsd.segments.store import SegmentStore
from tests.sim.run import SHARES, Wanted, run

Plant = Callable[[pytest.MonkeyPatch], None]


def a_sync_that_forgets_the_media(patch: pytest.MonkeyPatch) -> None:
    async def sync(pool: Pool) -> None:
        await pool.ports.offload.run(pool.catalog.database.sync_call())

    patch.setattr(Pool, "sync", sync)


def a_sync_that_forgets_the_catalog(patch: pytest.MonkeyPatch) -> None:
    async def sync(pool: Pool) -> None:
        for one in pool.media.values():
            await one.medium.flush()

    patch.setattr(Pool, "sync", sync)


def a_commit_before_the_write(patch: pytest.MonkeyPatch) -> None:
    """A record is written when the next one comes, and its location given out at once."""
    late: list[tuple[Any, int, bytes]] = []
    write = SegmentAppender._write

    async def write_late(appender: SegmentAppender, space: Any, segment: Any, record: memoryview) -> Any:
        for medium, offset, data in late:
            await medium.write(offset, memoryview(data))
        late.clear()

        class Later:
            async def write(self, offset: int, data: memoryview) -> None:
                late.append((medium, offset, bytes(data)))

        medium, space.medium = space.medium, Later()
        try:
            return await write(appender, space, segment, record)
        finally:
            space.medium = medium

    patch.setattr(SegmentAppender, "_write", write_late)


def copies_that_are_not_flushed(patch: pytest.MonkeyPatch) -> None:
    point_to = RecordMover.point_to

    async def hasty(mover: RecordMover, space: Any, copies: list[Any]) -> None:
        class Space:
            class medium:  # noqa: N801
                @staticmethod
                async def flush() -> None:
                    return

        await point_to(mover, Space, copies)  # type: ignore[arg-type]

    patch.setattr(RecordMover, "point_to", hasty)


def a_trim_before_the_barrier(patch: pytest.MonkeyPatch) -> None:
    release = SegmentStore.release_empty

    async def none() -> None:
        return

    async def hasty(store: SegmentStore) -> int:
        store._barrier = none
        return await release(store)

    patch.setattr(SegmentStore, "release_empty", hasty)


def a_reader_that_does_not_check(patch: pytest.MonkeyPatch) -> None:
    decrypt = sealing.decrypt_record

    def trusting(*arguments: Any) -> Any:
        try:
            return decrypt(*arguments)
        except BadRecordError:
            return 0

    patch.setattr(pipeline.sealing, "decrypt_record", trusting)
    patch.setattr(pipeline.sealing, "verify_payload", lambda *_: None)


def a_charge_that_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    charge = Tenants.charge

    def forgetful(tenants: Tenants, tenant: int, delta_bytes: int, delta_objects: int) -> None:
        charge(tenants, tenant, max(0, delta_bytes), delta_objects)

    patch.setattr(Tenants, "charge", forgetful)


def removals_that_are_not_logged(patch: pytest.MonkeyPatch) -> None:
    log = Database.log

    def forgetful(database: Database, tenant: int, change: Any) -> None:
        if not isinstance(change, DropEntry):
            log(database, tenant, change)

    patch.setattr(Database, "log", forgetful)


def an_outbox_that_is_emptied_too_early(patch: pytest.MonkeyPatch) -> None:
    drain = MetadataLog.drain

    async def hasty(log: MetadataLog) -> None:
        with log._catalog.transaction():
            log._database.run("DELETE FROM outbox WHERE sequence % 5 = 0")
        await drain(log)

    patch.setattr(MetadataLog, "drain", hasty)


def a_rollback_that_forgets(patch: pytest.MonkeyPatch) -> None:
    """What a failed transaction did stays, and is committed with the next one."""

    def commit(database: Database) -> None:
        if database._changes:
            database._queue_changes()
        database.run("COMMIT")
        database._hooks.before_commit()

    patch.setattr(Database, "commit", commit)


def rows_that_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Inodes, "checked", lambda inodes, tenant, fetched: InodeRow._make(fetched[:-1]))


def names_that_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Namespace, "_behind", lambda namespace, tenant, parent, name, found: namespace._inodes.find(tenant, found[0])
    )
    patch.setattr(
        Namespace, "_listed", lambda namespace, tenant, parent, row: ListedEntry(*row[:2], InodeRow._make(row[4:-1]))
    )


def holes_that_are_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Wholeness, "hole_steps", lambda wholeness, tenant, ino: iter(()))


SEED = 5

PLANTED: list[tuple[Plant, str, str]] = [
    (a_sync_that_forgets_the_media, "rewrite", "power"),
    (a_sync_that_forgets_the_catalog, "rewrite", "power"),
    (a_commit_before_the_write, "store", "kill"),
    (copies_that_are_not_flushed, "collect", "power"),
    (a_trim_before_the_barrier, "collect", "power"),
    (a_reader_that_does_not_check, "rewrite", "damage"),
    (a_charge_that_is_forgotten, "rewrite", "kill"),
    (removals_that_are_not_logged, "names", "kill"),
    (an_outbox_that_is_emptied_too_early, "log", "kill"),
    (a_rollback_that_forgets, "store", "fail"),
    (rows_that_are_not_checked, "names", "catalog_row"),
    (names_that_are_not_checked, "names", "catalog_row"),
    (holes_that_are_believed, "rewrite", "catalog_row"),
]


@pytest.mark.parametrize(("plant", "scenario", "kind"), PLANTED, ids=[plant.__name__ for plant, *_ in PLANTED])
def test_a_planted_bug_is_found(plant: Plant, scenario: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    damages = () if kind in SHARES else (kind,)
    wanted = Wanted(SEED, 400, (scenario,), ("damage",) if damages else (kind,), damages, stop_at_first=True)
    report = run(wanted)
    assert report.violations, f"{plant.__name__} was not found in {report.total} cases"
    assert "--only" in report.violations[0]

"""Compaction of the metadata log: a snapshot of a tenant through the outbox, and then the older records go.

A snapshot is read some rows at a time, and other changes are queued between them in their places. The old records are
dropped only when all of the snapshot was written and flushed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from kvfs import limits
from kvfs.errors import BadRecordError, KvfsError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.log_rows import SnapshotCursor
from kvfsd.catalog.schema import TenantState
from kvfsd.metalog.backlog import Backlog
from kvfsd.metalog.soundness import Soundness
from kvfsd.ondisk.metalog import SnapshotBegin, SnapshotEnd

LOOK_PERIOD_MS: Final = limits.METADATA_LOG_LAG_MS // 4
"""How often logs that are too large are looked for."""
STEP_PERIOD_MS: Final = 20
"""Instead of LOOK_PERIOD_MS while a snapshot is written: one step of it, about 1 ms, each time."""
COMPACT_FACTOR: Final = 4
"""A log is compacted when it is this many times larger than its last snapshot ..."""
COMPACT_MIN_BYTES: Final = 16 * limits.MIB
"""... and larger than this."""


@dataclass(slots=True)
class _Snapshot:
    """A snapshot being written: where reading is, and which entries begin and end it."""

    name: int
    begin_sequence: int
    cursor: SnapshotCursor | None
    end_sequence: int = 0
    begin_generation: int = 0
    written_bytes: int = 0
    written: bool = False
    """All of it is in records of the log."""


class LogCompaction:
    """The snapshots that are under way, by tenant. `flush`: everything written and committed is on stable storage."""

    def __init__(self, catalog: Catalog, backlog: Backlog, flush: Callable[[], Awaitable[None]]) -> None:
        self._catalog = catalog
        self._rows = catalog.log_rows
        self._database = catalog.database
        self._backlog = backlog
        self._flush = flush
        self._snapshots: dict[int, _Snapshot] = {}
        self._soundness = Soundness(catalog.log_rows)

    async def run(self) -> None:
        """Compact logs that have outgrown their snapshots, until cancelled. What fails is tried again."""
        while True:
            await trio.sleep((STEP_PERIOD_MS if self._snapshots or self._soundness.looking else LOOK_PERIOD_MS) / 1000)
            if not self._backlog.is_over():  # what a snapshot queues can wait, what commands queue cannot
                with contextlib.suppress(KvfsError):
                    await self._some()

    async def _some(self) -> None:
        """One step for every tenant whose log is too large: read some rows of the snapshot, or finish it."""
        for tenant in [row.tenant for row in self._catalog.tenants.all() if row.state == TenantState.ACTIVE]:
            if tenant in self._snapshots:
                await self.step(tenant)
            elif self._is_needed(tenant) and self._soundness.look(tenant):
                self.begin(tenant)

    def _is_needed(self, tenant: int) -> bool:
        """Whether the tenant's log has outgrown what a snapshot would take, and may be replaced."""
        state = self._rows.state(tenant)
        bound = max(COMPACT_MIN_BYTES, COMPACT_FACTOR * state.snapshot_bytes)
        return state.log_bytes > bound and not self._soundness.is_damaged(tenant)

    def is_under_way(self, tenant: int) -> bool:
        """Whether a snapshot of the tenant is being written."""
        return tenant in self._snapshots

    def begin(self, tenant: int, *, lenient: bool = False) -> None:
        """Queue the beginning of a snapshot, unless one is under way.

        `lenient`: what is damaged in the catalog is left out; else it ends the snapshot, and the log stays as it is.
        """
        begun = self._snapshots.get(tenant)
        if begun is not None and not (lenient and begun.cursor is not None and not begun.cursor.lenient):
            return
        name = self._database.next_generation()
        with self._catalog.transaction():
            self._database.log(tenant, SnapshotBegin(name))
        self._snapshots[tenant] = _Snapshot(name, self._database.last_sequence, SnapshotCursor(lenient=lenient))

    async def step(self, tenant: int) -> None:
        """Queue some more of the tenant's snapshot, or end it when all of it was written."""
        snapshot = self._snapshots[tenant]
        if snapshot.cursor is not None:
            self._read_some(tenant, snapshot, snapshot.cursor)
        elif snapshot.written:
            await self._finish(tenant, snapshot)

    def _read_some(self, tenant: int, snapshot: _Snapshot, cursor: SnapshotCursor) -> None:
        try:
            with self._catalog.transaction():
                following = self._rows.snapshot_some(tenant, cursor)
                if following is None:
                    self._database.log(tenant, SnapshotEnd(snapshot.name))
        except BadRecordError as error:
            self._soundness.refuse(tenant, error)
            self.forget(tenant)
            return
        snapshot.cursor = following  # only now: the same rows are read again if the commit fails
        if following is None:
            snapshot.end_sequence = self._database.last_sequence

    def note_batch(self, tenant: int, through: int, generation: int, payload_bytes: int) -> None:
        """The tenant's entries up to sequence `through` are in the log, the last ones in record `generation`."""
        snapshot = self._snapshots.get(tenant)
        if snapshot is None or through < snapshot.begin_sequence:
            return
        snapshot.begin_generation = snapshot.begin_generation or generation
        snapshot.written_bytes += payload_bytes
        snapshot.written = snapshot.written or 0 < snapshot.end_sequence <= through

    def forget(self, tenant: int) -> None:
        """The tenant is being deleted."""
        self._snapshots.pop(tenant, None)
        self._soundness.forget(tenant)

    async def _finish(self, tenant: int, snapshot: _Snapshot) -> None:
        await self._flush()
        more = self._rows.is_active(tenant)  # else it was deleted meanwhile, with its log
        if more:
            with self._catalog.transaction():
                state = self._rows.state(tenant)
                self._rows.set_state(tenant, state._replace(snapshot_bytes=snapshot.written_bytes))
        while more:
            with self._catalog.transaction():
                more = self._rows.drop_before(tenant, snapshot.begin_generation)
            await trio.lowlevel.checkpoint()
        self.forget(tenant)

"""The names of hidden objects: told to the mounts, so that no kernel keeps one, and removed when their time is over.

The catalog finds an object by its name, not names by an object. So names are found by reading all of a tenant's, in a
worker thread on a connection of its own, for many objects at once; hiding itself never waits for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from kvfs.commands import ROOT_INO, EntryGone
from kvfs.errors import FormatError, NotFoundError
from kvfsd.catalog.connection import Connection
from kvfsd.catalog.rows import Entry
from kvfsd.catalog.schema import TenantState

if TYPE_CHECKING:
    from kvfsd.service.service import Service

log = logging.getLogger(__name__)

WAITING_MAX: Final = 4_096
"""Hidden objects whose names are still to be told; the names of others end with the kernel's own timeout."""
PURGE_BATCH: Final = 256
"""Names that one transaction removes."""


class HiddenNames:
    """Finds, tells and removes the names of objects in quarantine. One task runs `run`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._waiting: set[tuple[int, int]] = set()
        self._wanted = trio.Event()

    def note(self, tenant: int, ino: int) -> None:
        """The object was hidden just now."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting.add((tenant, ino))
            self._wanted.set()

    async def run(self) -> None:
        """Tell the names of what is hidden, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            asked, self._waiting = self._waiting, set()
            for entry, _ in await self._find(asked):
                self._tell(entry)

    async def purge(self, before_ns: int) -> int:
        """Remove what was hidden before `before_ns`, all its names and its data -> how many names there were."""
        service = self._service
        old = {
            (row.tenant, row.ino)
            for tenant in service.catalog.tenants.all()
            if tenant.state == TenantState.ACTIVE
            for row in service.catalog.quarantine.all(tenant.tenant)
            if not row.sealed_name and row.time_ns < before_ns
        }
        found = await self._find(old)
        for start in range(0, len(found), PURGE_BATCH):
            with service.catalog.transaction():
                for entry, ino in found[start : start + PURGE_BATCH]:
                    self._remove(entry, ino)
            await trio.lowlevel.checkpoint()
        return len(found)

    async def _find(self, objects: set[tuple[int, int]]) -> list[tuple[Entry, int]]:
        if not objects:
            return []
        return await self._service.pool.ports.offload.run(names_of(self._service.catalog.database.path, objects))

    def _remove(self, entry: Entry, ino: int) -> None:
        now_ns = self._service.pool.ports.clock.wall_ns()
        removed = self._service.catalog.namespace.remove_hidden(entry, ino, now_ns)
        if removed is not None and removed.nlink == 0:  # else it was stored anew, restored or removed meanwhile
            self._service.metrics.counters.purged_objects += 1

    def _tell(self, entry: Entry) -> None:
        service = self._service
        try:
            root_ino = service.catalog.tenants.get(entry.tenant).root_ino
            name = service.pool.ring.names(entry.tenant).open_name(entry.parent, entry.name)
        except (NotFoundError, FormatError) as error:
            log.warning("tenant %d: a hidden name is not told: %s", entry.tenant, error)
            return
        parent = ROOT_INO if entry.parent == root_ino else entry.parent
        service.tell(entry.tenant, EntryGone(parent, name))


def names_of(catalog: Path, objects: Iterable[tuple[int, int]]) -> Callable[[], list[tuple[Entry, int]]]:
    """A blocking call: every name of the (tenant, ino) in `objects`, and whose it is. About 0.2 s per million names."""
    wanted = frozenset(objects)
    tenants = sorted({tenant for tenant, _ in wanted})

    def find() -> list[tuple[Entry, int]]:
        connection = Connection(catalog, read_only=True)
        try:
            found = []
            for tenant in tenants:
                numbers = sorted(ino for owner, ino in wanted if owner == tenant)
                chosen = ",".join(map(str, numbers))
                rows = connection.all(
                    f"SELECT parent, sealed_name, ino FROM dirent WHERE tenant=? AND ino IN ({chosen})", (tenant,)
                )
                found += [(Entry(tenant, parent, name), ino) for parent, name, ino in rows]
            return found
        finally:
            connection.disconnect()

    return find

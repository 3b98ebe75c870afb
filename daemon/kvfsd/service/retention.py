"""What directories say about new objects below them, and how much of a tenant may be pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from kvfs import limits
from kvfs.errors import PinShareError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.renames import DEPTH_MAX
from kvfsd.catalog.retention_flags import Settings, settings_of_directory
from kvfsd.ports import Clock

DIRECTORIES_MAX: Final = 4096
"""Directories of a tenant whose defaults are remembered; one more forgets them all."""
PIN_COUNT_AGE_NS: Final = 1_000_000_000
"""How long a count of pinned objects is used, new pins added, before it is taken anew."""


class _Pinned(NamedTuple):
    counted_ns: int
    bytes: int
    objects: int


class Retention:
    """Defaults and pins of all tenants of a pool; all of it can be read from the catalog again."""

    def __init__(self, catalog: Catalog, clock: Clock, pool_bytes: Callable[[], int]) -> None:
        self._catalog = catalog
        self._clock = clock
        self._pool_bytes = pool_bytes
        self._defaults: dict[int, dict[int, Settings] | None] = {}
        self._pinned: dict[int, _Pinned] = {}

    # --- defaults of directories -----------------------------------------------------------------------

    def defaults(self, tenant: int, directory: int) -> Settings:
        """What holds for a new object in `directory`: the nearest one above it that says something, for each setting.

        Costs nothing to speak of while no directory of the tenant says anything.
        """
        known = self._known(tenant)
        if known is None:
            return Settings()
        found = known.get(directory)
        if found is None:
            if len(known) >= DIRECTORIES_MAX:
                known.clear()
            found = known[directory] = self._walk(tenant, directory)
        return found

    def forget(self, tenant: int) -> None:
        """A directory of the tenant says something else."""
        self._defaults.pop(tenant, None)

    def moved(self, tenant: int) -> None:
        """Something of the tenant was renamed, perhaps a directory: what lies above others may have changed."""
        known = self._defaults.get(tenant)
        if known:
            known.clear()

    def _known(self, tenant: int) -> dict[int, Settings] | None:
        if tenant not in self._defaults:
            some = self._catalog.retention.has_directory_settings(tenant)
            self._defaults[tenant] = {} if some else None
        return self._defaults[tenant]

    def _walk(self, tenant: int, directory: int) -> Settings:
        found = Settings()
        for _ in range(DEPTH_MAX):
            row = self._catalog.inodes.find(tenant, directory)
            if row is None:
                break
            found = found.under(settings_of_directory(row.flags))
            if found.complete or row.parent == directory:
                break
            directory = row.parent
        return found

    # --- pins ------------------------------------------------------------------------------------------

    def pin(self, tenant: int, more_bytes: int) -> None:
        """Count one more pinned object; PinShareError if that is more than the share which may be pinned."""
        row = self._catalog.tenants.get(tenant)
        pinned = self._count(tenant)
        share = limits.PIN_SHARE_PERCENT
        bound_bytes = (row.quota_bytes or self._pool_bytes()) * share // 100
        if pinned.bytes + more_bytes > bound_bytes:
            raise PinShareError(
                f"tenant {tenant}: {pinned.bytes} bytes are pinned, {more_bytes} more are over {share} % of its bound"
            )
        if row.quota_objects and pinned.objects + 1 > row.quota_objects * share // 100:
            raise PinShareError(f"tenant {tenant}: {pinned.objects} objects are pinned, {share} % of its quota")
        self._pinned[tenant] = pinned._replace(bytes=pinned.bytes + more_bytes, objects=pinned.objects + 1)

    def _count(self, tenant: int) -> _Pinned:
        now_ns = self._clock.monotonic_ns()
        pinned = self._pinned.get(tenant)
        if pinned is None or now_ns - pinned.counted_ns > PIN_COUNT_AGE_NS:
            pinned = self._pinned[tenant] = _Pinned(now_ns, *self._catalog.retention.pinned_use(tenant))
        return pinned

    def recount(self, tenant: int) -> None:
        """Pins were taken back: count anew next time."""
        self._pinned.pop(tenant, None)

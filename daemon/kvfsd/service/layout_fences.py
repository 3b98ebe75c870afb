"""Fences: below some directories, blocks that are older than a generation are misses."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final

from kvfs.errors import FormatError
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.renames import DEPTH_MAX
from kvfsd.catalog.rows import InodeRow
from kvfsd.crypto.keys import KeyRing

BLOCK_SUFFIX: Final = b".bin"
DIRECTORIES_MAX: Final = 65_536
"""Directories of which is remembered whether a fence holds there; one more forgets them all."""


class Fences:
    """The fences of all tenants of a pool, in memory; `kvfsd.service.layout_guard` makes and lifts them."""

    def __init__(self, catalog: Catalog, ring: KeyRing) -> None:
        self._catalog = catalog
        self._ring = ring
        self.tops: dict[tuple[int, int], int] = {}
        """(tenant, top directory) -> generation: blocks below it that are older are misses. Empty nearly always."""
        self._memo: dict[tuple[int, int], int] = {}

    def __bool__(self) -> bool:
        return bool(self.tops)

    def set(self, tenant: int, tops: Iterable[int], generation: int) -> None:
        """Fence what is older below these directories; 0: nothing."""
        for top in tops:
            if generation:
                self.tops[tenant, top] = generation
            else:
                self.tops.pop((tenant, top), None)
        self._memo.clear()

    def moved(self) -> None:
        """Something was renamed, perhaps a directory."""
        self._memo.clear()

    def hides(self, tenant: int, directory: int, name: bytes, row: InodeRow) -> bool:
        """Whether the object called `name` in `directory` is fenced."""
        if not name.endswith(BLOCK_SUFFIX) or not stat.S_ISREG(row.mode):
            return False
        return row.generation < self._fence_of(tenant, directory)

    def hides_object(self, tenant: int, row: InodeRow) -> bool:
        """The same of an object whose name is not at hand."""
        names = self._ring.names(tenant)
        for entry in self._catalog.retention.names(tenant, row.ino):
            try:
                if self.hides(tenant, entry.parent, names.open_name(entry.parent, entry.name), row):
                    return True
            except FormatError:  # a damaged name: nobody can ask for it
                continue
        return False

    def _fence_of(self, tenant: int, directory: int) -> int:
        known = self._memo.get((tenant, directory))
        if known is None:
            if len(self._memo) >= DIRECTORIES_MAX:
                self._memo.clear()
            known = self._memo[tenant, directory] = self._walk(tenant, directory)
        return known

    def _walk(self, tenant: int, directory: int) -> int:
        highest = 0
        for _ in range(DEPTH_MAX):
            highest = max(highest, self.tops.get((tenant, directory), 0))
            row = self._catalog.inodes.find(tenant, directory)
            if row is None or row.parent == directory:
                break
            directory = row.parent
        return highest

"""Rows that failed their checks: each is told once, to whoever listens (the service logs, counts and tells mounts)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from kvfs.errors import BadRecordError
from kvfsd.catalog.connection import REPAIR

log = logging.getLogger(__name__)

KNOWN_MAX: Final = 4096
"""Damages that are remembered so that they are told once; past that many they are counted only."""


class RowDamage(NamedTuple):
    """What is damaged: a row of `table`, or what belongs to an object; `ino` is 0 if that is not known."""

    table: str
    tenant: int
    ino: int
    text: str


class DamageReports:
    """Damage that readers of the catalog met since it was opened."""

    def __init__(self) -> None:
        self.count = 0
        """How often damage was met, each row once, as far as it is remembered."""
        self.listener: Callable[[RowDamage], None] | None = None
        self.objects: set[tuple[int, int]] = set()
        """Tenant and number of objects whose rows are damaged, as far as they are remembered."""
        self._known: set[RowDamage] = set()

    def note(self, table: str, tenant: int, ino: int, text: str) -> BadRecordError:
        """Tell the damage, unless it is known -> the error to raise where a miss will not do."""
        damage = RowDamage(table, tenant, ino, text)
        error = BadRecordError(f"catalog: tenant {tenant}: {text}")
        if damage in self._known:
            return error
        self.count += 1
        if len(self._known) < KNOWN_MAX:
            self._known.add(damage)
            if table == "inode":
                self.objects.add((tenant, ino))
            log.error("%s; %s", error, REPAIR)
            if self.listener is not None:
                self.listener(damage)
        return error

    def known(self) -> list[RowDamage]:
        """What was met, at most KNOWN_MAX of it."""
        return sorted(self._known)

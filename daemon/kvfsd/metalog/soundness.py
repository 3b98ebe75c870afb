"""Whether a tenant's catalog is sound, so that its metadata log may be replaced by a snapshot of it.

The log knows what a damaged catalog has lost, and is what a rebuild brings it back from. So the log of a tenant whose
catalog is damaged is kept as it is, and grows.
"""

from __future__ import annotations

import logging

from kvfs.errors import BadRecordError
from kvfsd.catalog.log_rows import LogRows

log = logging.getLogger(__name__)


class Soundness:
    """Which tenants' catalogs were looked through, step by step, and which are damaged."""

    def __init__(self, rows: LogRows) -> None:
        self._rows = rows
        self._after: dict[int, int] = {}
        self._damaged: set[int] = set()

    @property
    def looking(self) -> bool:
        """Whether a tenant's objects are being looked through."""
        return bool(self._after)

    def is_damaged(self, tenant: int) -> bool:
        """Whether damage was found; only a restart forgets that."""
        return tenant in self._damaged

    def look(self, tenant: int) -> bool:
        """Look at some more of the tenant's objects -> whether all were seen by now, and none is damaged."""
        try:
            after = self._rows.check_some(tenant, self._after.get(tenant, 0))
        except BadRecordError as error:
            self.refuse(tenant, error)
            return False
        if after is None:
            self.forget(tenant)
            return True
        self._after[tenant] = after
        return False

    def refuse(self, tenant: int, error: BadRecordError) -> None:
        """Damage was found."""
        log.error("tenant %d: its metadata log is kept as it is, and grows: %s", tenant, error)
        self._damaged.add(tenant)
        self.forget(tenant)

    def forget(self, tenant: int) -> None:
        """Begin anew when the tenant is asked about again."""
        self._after.pop(tenant, None)

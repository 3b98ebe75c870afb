"""What the service does about rows of the catalog that fail their checks: it counts them and tells the mounts.

The catalog has logged them by then. What a damaged row stood for is a miss or an error from now on, for everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfs.commands import ObjectChanged
from kvfsd.catalog.damage import RowDamage

if TYPE_CHECKING:
    from kvfsd.service.service import Service


def follow_damage(service: Service) -> None:
    """Have everything counted that was met since the catalog was opened, and is met from here on."""
    reports, counters = service.catalog.database.damage, service.metrics.counters

    def met(damage: RowDamage) -> None:
        counters.damaged_rows += 1
        if damage.ino:
            service.tell(damage.tenant, ObjectChanged(damage.ino))

    counters.damaged_rows = reports.count
    reports.listener = met

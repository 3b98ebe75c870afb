"""Admission against a tenant's hard quota: what is written and not committed yet is reserved here, in memory.

    used (catalog, exact) + reserved (here) + asked  <=  quota

A reservation turns into use inside the transaction of its Commit, and ends with Discard, with the release of an object
that was never published, or with its attachment. After a crash nothing is reserved; the catalog drops what was staged.
"""

from __future__ import annotations

from kvfs.errors import QuotaExceededError
from kvfsd.catalog.tenants import Tenants
from kvfsd.metrics import Metrics


class Reservation:
    """What one object that is being written holds of its tenant's quota.

    `staged_bytes`: of uncommitted blocks in the catalog. `inflight_bytes`: of blocks on their way there.
    `counts_object`: the object is not in the catalog yet and counts as one.
    """

    __slots__ = ("counts_object", "inflight_bytes", "staged_bytes", "tenant")

    def __init__(self, tenant: int) -> None:
        self.tenant = tenant
        self.staged_bytes = 0
        self.inflight_bytes = 0
        self.counts_object = False

    @property
    def idle(self) -> bool:
        """Nothing is reserved by it."""
        return not (self.staged_bytes or self.inflight_bytes or self.counts_object)


class Admission:
    """Reserved bytes and objects of all tenants of a pool."""

    def __init__(self, tenants: Tenants, metrics: Metrics) -> None:
        self._tenants = tenants
        self._metrics = metrics
        self._bytes: dict[int, int] = {}
        self._objects: dict[int, int] = {}

    def reserved_bytes(self, tenant: int) -> int:
        """Bytes reserved by all attachments of the tenant."""
        return self._bytes.get(tenant, 0)

    def reserved_objects(self, tenant: int) -> int:
        """Objects reserved by all attachments of the tenant."""
        return self._objects.get(tenant, 0)

    def total_reserved(self) -> tuple[int, int]:
        """Bytes and objects reserved by all tenants together."""
        return sum(self._bytes.values()), sum(self._objects.values())

    def check(self, tenant: int, more_bytes: int, more_objects: int) -> None:
        """QuotaExceededError unless so many bytes and objects more fit into the tenant's quota."""
        row = self._tenants.get(tenant)
        if more_bytes and row.quota_bytes:
            wanted = row.used_bytes + self._bytes.get(tenant, 0) + more_bytes
            if wanted > row.quota_bytes:
                self._metrics.counters.quota_refusals += 1
                raise QuotaExceededError(f"tenant {tenant}: {wanted} bytes are over its quota of {row.quota_bytes}")
        if more_objects and row.quota_objects:
            wanted = row.used_objects + self._objects.get(tenant, 0) + more_objects
            if wanted > row.quota_objects:
                self._metrics.counters.quota_refusals += 1
                raise QuotaExceededError(f"tenant {tenant}: {wanted} objects are over its quota of {row.quota_objects}")

    def shortfall(self, tenant: int, more_bytes: int, more_objects: int) -> tuple[int, int]:
        """By how many bytes and objects so many more would exceed the quota; 0 where there is room or no quota."""
        row = self._tenants.get(tenant)
        over_bytes = row.used_bytes + self._bytes.get(tenant, 0) + more_bytes - row.quota_bytes
        over_objects = row.used_objects + self._objects.get(tenant, 0) + more_objects - row.quota_objects
        return max(0, over_bytes) if row.quota_bytes else 0, max(0, over_objects) if row.quota_objects else 0

    def reserve_object(self, reservation: Reservation) -> None:
        """Count the object itself, which is not in the catalog yet. Raises QuotaExceededError."""
        if reservation.counts_object:
            return
        self.check(reservation.tenant, 0, 1)
        reservation.counts_object = True
        self._objects[reservation.tenant] = self._objects.get(reservation.tenant, 0) + 1

    def adopt(self, reservation: Reservation, staged_bytes: int, *, counts_object: bool) -> None:
        """Count what was admitted before the process ended and is in the catalog still."""
        reservation.staged_bytes = staged_bytes
        reservation.counts_object = counts_object
        self._add_bytes(reservation.tenant, staged_bytes)
        self._objects[reservation.tenant] = self._objects.get(reservation.tenant, 0) + counts_object

    def reserve_bytes(self, reservation: Reservation, length: int) -> None:
        """Count `length` bytes that are about to be written. Raises QuotaExceededError."""
        self.check(reservation.tenant, length, 0)
        reservation.inflight_bytes += length
        self._add_bytes(reservation.tenant, length)

    def settle_bytes(self, reservation: Reservation, length: int, grown_bytes: int) -> None:
        """`length` reserved bytes are staged and grew the staged ones by `grown_bytes`; 0 if writing failed."""
        reservation.inflight_bytes -= length
        reservation.staged_bytes += grown_bytes
        self._add_bytes(reservation.tenant, grown_bytes - length)

    def free_staged(self, reservation: Reservation, freed_bytes: int) -> None:
        """`freed_bytes` of staged blocks are committed or discarded."""
        reservation.staged_bytes -= freed_bytes
        self._add_bytes(reservation.tenant, -freed_bytes)

    def free_object(self, reservation: Reservation) -> None:
        """The object is in the catalog now, or will never be."""
        if reservation.counts_object:
            reservation.counts_object = False
            self._objects[reservation.tenant] -= 1

    def free(self, reservation: Reservation) -> None:
        """Everything of it but what is in flight, which settles by itself."""
        self.free_staged(reservation, reservation.staged_bytes)
        self.free_object(reservation)

    def _add_bytes(self, tenant: int, delta: int) -> None:
        self._bytes[tenant] = self._bytes.get(tenant, 0) + delta

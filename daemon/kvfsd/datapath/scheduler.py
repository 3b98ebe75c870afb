"""Whose data command runs next: a bounded number of slots, tenants taking turns.

One tenant alone uses every slot; as soon as several wait, slots that become free go to each of them in turn, whatever
the length of their queues. Rates and weights come later; this is the place for them.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import trio


class Slot:
    """The right to run one data command; give it back with `release`, once."""

    __slots__ = ("_scheduler", "tenant")

    def __init__(self, scheduler: Scheduler, tenant: int) -> None:
        self._scheduler = scheduler
        self.tenant = tenant

    def release(self) -> None:
        """The command is done."""
        self._scheduler.release()


class _Waiter:
    __slots__ = ("event", "granted")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.granted = False


class Scheduler:
    """Hands out `slots` slots. What waits is bounded by the queue pairs' depth."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = slots
        self._waiting: OrderedDict[int, deque[_Waiter]] = OrderedDict()

    @property
    def running(self) -> int:
        """Slots in use."""
        return self.slots - self._free

    @property
    def waiting(self) -> int:
        """Commands that wait for a slot."""
        return sum(len(queue) for queue in self._waiting.values())

    async def acquire(self, tenant: int) -> Slot:
        """A slot for a command of `tenant`; does not suspend when one is free. The caller's scope has the deadline."""
        if self._free and not self._waiting:
            self._free -= 1
            return Slot(self, tenant)
        waiter = _Waiter()
        self._waiting.setdefault(tenant, deque()).append(waiter)
        try:
            await waiter.event.wait()
        except trio.Cancelled:
            self._withdraw(tenant, waiter)
            raise
        return Slot(self, tenant)

    def release(self) -> None:
        """A slot is free: the tenant that has waited longest since its last turn gets it."""
        if not self._waiting:
            self._free += 1
            return
        tenant, queue = next(iter(self._waiting.items()))
        waiter = queue.popleft()
        waiter.granted = True
        waiter.event.set()
        if queue:
            self._waiting.move_to_end(tenant)
        else:
            del self._waiting[tenant]

    def _withdraw(self, tenant: int, waiter: _Waiter) -> None:
        if waiter.granted:  # the slot came while the wait was being cancelled
            self.release()
            return
        queue = self._waiting[tenant]
        queue.remove(waiter)
        if not queue:
            del self._waiting[tenant]

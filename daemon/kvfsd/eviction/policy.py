"""Which objects go: a pure function of candidates and need, behind an interface so that others can take its place.

Also pure and here: which tenant gives when the pool is full, and how much goes ahead of need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol


class Candidate(NamedTuple):
    """An object that may be evicted. `size_bytes` is what its tenant is charged for it; `expires_ns` 0: never."""

    ino: int
    size_bytes: int
    last_use_ns: int
    priority: int = 0
    pinned: bool = False
    expires_ns: int = 0


class Need(NamedTuple):
    """Bytes and objects that are to be freed."""

    bytes: int = 0
    objects: int = 0

    def less(self, freed: Need) -> Need:
        """What is left to be freed."""
        return Need(max(0, self.bytes - freed.bytes), max(0, self.objects - freed.objects))

    def plus(self, other: Need) -> Need:
        """Both together."""
        return Need(self.bytes + other.bytes, self.objects + other.objects)

    @property
    def met(self) -> bool:
        """Nothing is left to be freed."""
        return self.bytes <= 0 and self.objects <= 0


class EvictionPolicy(Protocol):
    """Decides which of a tenant's candidates go."""

    def choose(self, candidates: Sequence[Candidate], need: Need, now_ns: int) -> list[Candidate]:
        """Victims in the order in which they go, as few as meet `need`; all that may go if they do not meet it.

        Never a pinned one, unless its time is over.
        """
        ...


class LeastRecentlyUsed:
    """What has expired, then the lowest priority, then what was used longest ago, then the lower object number."""

    def choose(self, candidates: Sequence[Candidate], need: Need, now_ns: int) -> list[Candidate]:
        """See `EvictionPolicy.choose`. A candidate that frees nothing of what is still needed stays."""
        victims: list[Candidate] = []
        left = need
        for one in sorted((one for one in candidates if _may_go(one, now_ns)), key=lambda one: _order(one, now_ns)):
            if left.met:
                break
            if (left.objects and left.objects > 0) or one.size_bytes:
                victims.append(one)
                left = left.less(Need(one.size_bytes, 1))
        return victims


def _may_go(one: Candidate, now_ns: int) -> bool:
    return not one.pinned or 0 < one.expires_ns <= now_ns


def _order(one: Candidate, now_ns: int) -> tuple[bool, int, int, int]:
    expired = 0 < one.expires_ns <= now_ns
    return not expired, one.priority, one.last_use_ns, one.ino


class TenantUse(NamedTuple):
    """What a tenant has of the pool: `used_bytes` charged or reserved, `min_bytes` guaranteed to it."""

    tenant: int
    used_bytes: int
    min_bytes: int

    @property
    def above_bytes(self) -> int:
        """How far it is above what it is guaranteed."""
        return self.used_bytes - self.min_bytes


def choose_tenant(uses: Iterable[TenantUse], asking: int | None = None) -> TenantUse | None:
    """Who gives when the pool is full: the tenant furthest above its guaranteed minimum; None if there is nobody.

    Nobody is brought below its minimum for others. The one that asks for room gives of its own, below its minimum too,
    when no other is above.
    """
    known = list(uses)
    above = [one for one in known if one.above_bytes > 0]
    if above:
        return max(above, key=lambda one: (one.above_bytes, one.tenant))
    return next((one for one in known if one.tenant == asking), None)


class Watermarks(NamedTuple):
    """Percentages of a bound: above `high` what is used is brought down to `low`. A high one of 100 never acts."""

    high_percent: int
    low_percent: int

    def surplus(self, used: int, bound: int) -> int:
        """How much of `used` goes ahead of need; 0 without a bound or below the high mark."""
        if bound <= 0 or self.high_percent >= 100 or used * 100 <= bound * self.high_percent:
            return 0
        return used - bound * self.low_percent // 100

"""The policies are pure: victims against a plain LRU, the giver of a full pool, the watermarks."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfsd.eviction.policy import (
    Candidate,
    LeastRecentlyUsed,
    Need,
    TenantUse,
    Watermarks,
    choose_tenant,
)

POLICY = LeastRecentlyUsed()
NOW = 1_000
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        ino=st.integers(2, 1 << 40),
        size_bytes=st.integers(0, 5),
        last_use_ns=st.integers(0, 20),
        priority=st.integers(-2, 2),
        pinned=st.booleans(),
        expires_ns=st.sampled_from([0, 0, 0, 500, 1_000, 1_001]),
    ),
    unique_by=lambda one: one.ino,
    max_size=30,
)
NEEDS = st.builds(Need, bytes=st.integers(0, 60), objects=st.integers(0, 12))


class ReferenceLru:
    """The textbook's: an ordered dict, moved to the end at each use, popped from the front."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: OrderedDict[int, None] = OrderedDict()

    def use(self, key: int) -> bool:
        hit = key in self.held
        self.held[key] = None
        self.held.move_to_end(key)
        if len(self.held) > self.capacity:
            self.held.popitem(last=False)
        return hit


@given(st.lists(st.integers(0, 30), max_size=300), st.integers(1, 12))
def test_one_after_another_it_is_lru(uses: list[int], capacity: int) -> None:
    reference, held = ReferenceLru(capacity), dict[int, int]()
    for moment, key in enumerate(uses):
        assert reference.use(key) == (key in held)
        held[key] = moment
        if len(held) > capacity:
            (victim,) = POLICY.choose([Candidate(ino, 1, used) for ino, used in held.items()], Need(objects=1), moment)
            del held[victim.ino]
        assert set(held) == set(reference.held)


@given(CANDIDATES, NEEDS)
def test_victims_meet_the_need_with_nothing_too_much_and_nothing_that_must_stay(
    candidates: list[Candidate], need: Need
) -> None:
    victims = POLICY.choose(candidates, need, NOW)
    freed = Need(sum(one.size_bytes for one in victims), len(victims))
    assert len(set(victims)) == len(victims)
    assert set(victims) <= set(candidates)
    for one in victims:
        assert not one.pinned or 0 < one.expires_ns <= NOW
    if need.less(freed).met:
        if victims:
            last = victims[-1]
            assert not need.less(Need(freed.bytes - last.size_bytes, freed.objects - 1)).met, "one less would do"
    else:
        stay = set(candidates) - set(victims)
        assert all(one.pinned or not one.size_bytes for one in stay if not 0 < one.expires_ns <= NOW or one.pinned)


@given(CANDIDATES, NEEDS)
def test_whoever_stays_is_not_ahead_of_one_that_goes(candidates: list[Candidate], need: Need) -> None:
    victims = POLICY.choose(candidates, need, NOW)

    def rank(one: Candidate) -> tuple[bool, int, int]:
        return (not 0 < one.expires_ns <= NOW, one.priority, one.last_use_ns)

    for stays in set(candidates) - set(victims):
        if stays.pinned and not 0 < stays.expires_ns <= NOW:
            continue
        if stays.size_bytes:  # what frees nothing that is needed may stay, however old
            assert all(rank(goes) <= rank(stays) for goes in victims)
    assert [rank(one) for one in victims] == sorted(rank(one) for one in victims)


def test_what_has_no_bytes_stays_when_bytes_are_needed() -> None:
    empty, old, young = Candidate(1, 0, 1), Candidate(2, 5, 2), Candidate(3, 5, 3)
    assert POLICY.choose([empty, old, young], Need(bytes=1), NOW) == [old]
    assert POLICY.choose([empty, old, young], Need(objects=1), NOW) == [empty]
    assert POLICY.choose([empty, old, young], Need(), NOW) == []


def test_priority_comes_before_age_and_expiry_before_priority_and_pin() -> None:
    low, high = Candidate(1, 1, 9, priority=-1), Candidate(2, 1, 1, priority=1)
    over = Candidate(3, 1, 9, priority=100, pinned=True, expires_ns=NOW)
    later = Candidate(4, 1, 0, priority=-100, pinned=True, expires_ns=NOW + 1)
    chosen = POLICY.choose([high, low, over, later], Need(objects=4), NOW)
    assert [one.ino for one in chosen] == [3, 1, 2]


@given(
    st.lists(
        st.builds(TenantUse, tenant=st.integers(1, 9), used_bytes=st.integers(0, 20), min_bytes=st.integers(0, 20)),
        unique_by=lambda one: one.tenant,
    ),
    st.integers(1, 9),
)
def test_nobody_is_brought_below_its_minimum_for_others(uses: list[TenantUse], asking: int) -> None:
    giver = choose_tenant(uses, asking)
    above = [one for one in uses if one.above_bytes > 0]
    if above:
        assert giver is not None
        assert giver.above_bytes == max(one.above_bytes for one in above)
    else:
        assert giver is None or giver.tenant == asking
        assert (giver is None) == all(one.tenant != asking for one in uses)
    assert choose_tenant(uses) == (giver if above else None)


@pytest.mark.parametrize(
    ("used", "bound", "surplus"),
    [(95, 100, 0), (96, 100, 6), (100, 100, 10), (1000, 0, 0), (0, 100, 0), (20, 10, 11)],
)
def test_watermarks(used: int, bound: int, surplus: int) -> None:
    assert Watermarks(95, 90).surplus(used, bound) == surplus


def test_a_high_watermark_of_100_never_acts() -> None:
    assert Watermarks(100, 50).surplus(1000, 10) == 0

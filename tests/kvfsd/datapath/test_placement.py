from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs.errors import InvalidArgumentError
from kvfsd.datapath.placement import MediumWeight, block_key, place, place_without, rank

KEYS = [block_key(bytes(16), ino, ino % 7) for ino in range(100_000)]


def medium(index: int, weight: int = 1, domain: str = "") -> MediumWeight:
    return MediumWeight(index, bytes([index]) * 16, weight, domain)


def spread(media: list[MediumWeight]) -> Counter[int]:
    return Counter(place(key, media, 1)[0] for key in KEYS)


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 2, 3, 4], [100, 300], [5] * 8])
def test_shares_are_within_5_percent_of_the_weights(weights):
    counts = spread([medium(index, weight) for index, weight in enumerate(weights)])
    for index, weight in enumerate(weights):
        ideal = len(KEYS) * weight / sum(weights)
        assert abs(counts[index] - ideal) <= 0.05 * ideal, (index, counts[index], ideal)


@pytest.mark.parametrize("weight", [1, 3])
def test_a_medium_that_joins_moves_at_most_1_2_times_the_ideal(weight):
    before = [medium(index) for index in range(4)]
    after = [*before, medium(4, weight)]
    moved = 0
    for key in KEYS:
        old, new = place(key, before, 1), place(key, after, 1)
        if old != new:
            assert new == (4,), "keys move to the new medium only"
            moved += 1
    ideal = len(KEYS) * weight / (4 + weight)
    assert 0.9 * ideal <= moved <= 1.2 * ideal


def test_a_medium_that_leaves_moves_only_its_own_keys():
    before = [medium(index) for index in range(5)]
    after = before[:-1]
    for key in KEYS[:20_000]:
        old = place(key, before, 1)
        if old != (4,):
            assert place(key, after, 1) == old


def test_replica_spread_and_movement():
    keys = KEYS[:20_000]
    before = [medium(index, 1, f"rack{index % 3}") for index in range(6)]
    after = [*before, medium(6, 1, "rack0")]
    counts = Counter(index for key in keys for index in place(key, before, 2))
    for index in range(6):
        assert abs(counts[index] - len(keys) / 3) <= 0.05 * len(keys) / 3
    moved = sum(len(set(place(key, after, 2)) - set(place(key, before, 2))) for key in keys)
    assert moved <= 1.2 * len(keys) * 2 / 7


def test_distinct_domains_come_first_then_the_same_domain_again():
    media = [medium(0, 1, "a"), medium(1, 1, "a"), medium(2, 1, "b"), medium(3, 1, "b")]
    for key in KEYS[:2000]:
        first, second, third, fourth = place(key, media, 4)
        assert {first, second, third, fourth} == {0, 1, 2, 3}
        assert first // 2 != second // 2
        assert third // 2 != fourth // 2


def test_empty_domain_is_a_domain_of_its_own():
    media = [medium(0), medium(1), medium(2, 1, "a"), medium(3, 1, "a")]
    for key in KEYS[:2000]:
        assert len({2, 3} & set(place(key, media, 3))) == 1


@given(
    st.binary(min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(["", "a", "b", "c"])), max_size=12),
    st.integers(1, 4),
)
def test_any_pool_gets_distinct_media_that_take_records(key, specs, replicas):
    media = [medium(index, weight, domain) for index, (weight, domain) in enumerate(specs)]
    chosen = place(key, media, replicas)
    assert len(set(chosen)) == len(chosen) == min(replicas, sum(entry.weight > 0 for entry in media))
    assert all(media[index].weight > 0 for index in chosen)
    assert chosen[:1] == place(key, media, 1)
    assert chosen[:1] == tuple(entry.index for entry in rank(key, media)[:1])


@settings(max_examples=30)
@given(st.binary(min_size=1, max_size=40), st.permutations(range(6)))
def test_order_of_the_media_does_not_matter(key, order):
    media = [medium(index, index + 1) for index in range(6)]
    assert place(key, [media[index] for index in order], 3) == place(key, media, 3)


@pytest.mark.parametrize("replicas", [0, 5, -1, 2**63])
def test_replica_counts_are_bounded(replicas):
    with pytest.raises(InvalidArgumentError, match="replicas: want 1 to 4"):
        place(b"key", [medium(0)], replicas)


def test_known_vectors():
    """Placement is part of what a pool relies on: these never change."""
    media = [medium(0), medium(1, 2), medium(2, 3, "a"), medium(3, 4, "a")]
    found = [place(block_key(bytes(range(16)), ino, 0), media, 3) for ino in range(2, 10)]
    assert found == [(2, 1, 0), (2, 1, 0), (0, 2, 1), (3, 0, 1), (3, 0, 1), (3, 1, 0), (2, 1, 0), (2, 0, 1)]


@given(
    st.binary(min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "a", "b", "c"])), max_size=8),
    st.integers(1, 4),
    st.sets(st.integers(0, 7)),
)
def test_a_choice_without_some_media_is_as_safe_or_none(key, specs, replicas, avoid):
    media = [medium(index, weight, domain) for index, (weight, domain) in enumerate(specs)]
    first = place(key, media, replicas)
    chosen = place_without(key, media, replicas, replicas, avoid)
    assert not avoid & set(chosen)
    if chosen:
        assert len(chosen) == len(first)
        assert domains(media, chosen) == domains(media, first)
        assert set(first) - avoid <= set(chosen), "what is good already stays where it is"
    elif first:
        usable = [entry.index for entry in media if entry.weight and entry.index not in avoid]
        assert len(usable) < len(first) or domains(media, usable) < domains(media, first)


def domains(media: list[MediumWeight], chosen: Sequence[int]) -> int:
    return len({media[index].failure_domain or index for index in chosen})


def test_fewer_than_wished_will_do_if_they_are_enough():
    media = [medium(0), medium(1), medium(2)]
    assert set(place_without(b"key", media, 3, 2, {1})) == {0, 2}
    assert place_without(b"key", media, 3, 2, {1, 2}) == ()

"""The trace slice, and what a replay of it must find."""

import json

import pytest

from kvfs.errors import ConfigError
from kvfs_tools.quickstart import trace
from kvfs_tools.quickstart.trace import Request


def test_shipped_slice_is_complete_and_has_reuse() -> None:
    requests = trace.shipped_trace()
    assert len(requests) == 300
    found = trace.expectation(trace.plan_replay(requests, 384))
    assert found.distinct <= 384
    assert found.hits > 100
    assert found.lookups - found.hits > 100


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"hash_ids": ["a"]}', b'{"hash_ids": []}', b"", b"\xff"])
def test_bad_line_is_named(line: bytes) -> None:
    good = json.dumps({"hash_ids": [1]}).encode()
    with pytest.raises(ConfigError, match="here line 2"):
        trace.parse_trace([good, line], "here")


def test_plan_is_bounded_by_distinct_blocks_and_keeps_prefixes() -> None:
    requests = [Request((1, 2, 3, 4, 5)), Request((1, 2, 6)), Request((7, 8))]
    assert trace.plan_replay(requests, 4, 4) == [Request((1, 2, 3, 4))]
    assert trace.plan_replay(requests, 6, 4) == [Request((1, 2, 3, 4)), Request((1, 2, 6)), Request((7,))]
    assert trace.plan_replay(requests, 100, 2) == [Request((1, 2)), Request((1, 2)), Request((7, 8))]


@pytest.mark.parametrize(("blocks", "chain"), [(0, 1), (1, 0), (-1, 4)])
def test_plan_refuses_nothing(blocks: int, chain: int) -> None:
    with pytest.raises(ConfigError):
        trace.plan_replay([Request((1,))], blocks, chain)


def test_expectation_counts_leading_hits_only() -> None:
    plan = [Request((1, 2)), Request((1, 2, 3)), Request((9, 2)), Request((1, 9, 4))]
    assert trace.expectation(plan) == trace.Expectation(lookups=10, hits=4, distinct=5)


@pytest.mark.parametrize(("present", "hits"), [([], 0), ([True], 1), ([True, False, True], 1), ([False, True], 0)])
def test_leading_hits(present: list[bool], hits: int) -> None:
    assert trace.leading_hits(present) == hits

"""Names and values of the attributes that say how long an object is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs import retention
from kvfs.errors import InvalidArgumentError, NotPermittedError


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        (retention.PIN, b"1", 1),
        (retention.PIN, b"0", 0),
        (retention.PRIORITY, b"-100", -100),
        (retention.PRIORITY, b"+7", None),
        (retention.PRIORITY, b"101", None),
        (retention.PIN, b"2", None),
        (retention.PIN, b"", None),
        (retention.PIN, b"1\n", None),
        (retention.TTL, b"-1", None),
        (retention.TTL, b"86400", 86_400),
        (retention.TTL, b"9" * 40, None),
        (b"user.kvfs.other", b"1", None),
    ],
)
def test_values(name: bytes, value: bytes, number: int | None) -> None:
    if number is not None:
        assert retention.parse_setting(name, value) == number
        return
    with pytest.raises(InvalidArgumentError, match="kvfs"):
        retention.parse_setting(name, value)


@given(st.sampled_from(retention.SETTINGS), st.binary(max_size=30))
def test_any_value_is_a_number_in_bounds_or_refused(name: bytes, value: bytes) -> None:
    try:
        number = retention.parse_setting(name, value)
    except InvalidArgumentError:
        return
    assert number == int(value)


def test_the_state_is_read_only_and_in_order() -> None:
    with pytest.raises(NotPermittedError):
        retention.parse_setting(retention.STATE, b"sealed")
    assert retention.state_text({"open", "pinned", "sealed"}) == b"sealed open pinned"

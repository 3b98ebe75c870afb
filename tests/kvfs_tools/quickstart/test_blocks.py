"""Contents are determined by the seed, and every 31 bytes of them contain a whole unit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs_tools.quickstart.blocks import UNIT_BYTES, BlockSource

SOURCE = BlockSource(b"seed", 16 << 10)
UNITS = set(SOURCE.units)


def test_same_seed_same_blocks() -> None:
    again = BlockSource(b"seed", 16 << 10)
    assert SOURCE.content(5) == again.content(5)
    assert SOURCE.digest(5) == again.digest(5)
    assert len(SOURCE.content(5)) == 16 << 10


def test_blocks_and_seeds_differ() -> None:
    assert SOURCE.content(5) != SOURCE.content(6)
    assert SOURCE.content(5) != BlockSource(b"other", 16 << 10).content(5)
    assert SOURCE.digest(5) != SOURCE.digest(6)


@pytest.mark.parametrize("size", [0, -4096, 1000])
def test_size_is_checked(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4096"):
        BlockSource(b"", size)


@given(st.integers(0, 50), st.integers(0, (16 << 10) - 31))
def test_any_31_bytes_contain_a_unit(block: int, start: int) -> None:
    run = SOURCE.content(block)[start : start + 31]
    assert any(run[i : i + UNIT_BYTES] in UNITS for i in range(len(run) - UNIT_BYTES + 1))

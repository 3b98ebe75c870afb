"""Checks of rows: fixed values, and nothing about a row that they do not cover."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.errors import InternalError
from kvfsd.catalog.rowmacs import RowMacs, TenantMacs, plain_check, total
from kvfsd.catalog.rows import InodeRow
from tests.kvfsd.catalog.world import row_key

MACS = TenantMacs(bytes(range(32)))
ROW = InodeRow(
    4711, 0o100644, 1, 1000, 100, 0, 2 << 20, 2 << 20, -5, 10**18, 10**18, 77, 0, 0, b"target", -(1 << 60), 3
)
ENTRY = (2, b"sealed name", 4711)
BLOCK = (1, 78, 1 << 20, 1, bytes(16))
XATTR = (4711, b"sealed name", b"sealed value")
SIGNED = st.integers(-(1 << 63), (1 << 63) - 1)
ANYTHING = st.one_of(SIGNED, st.none(), st.floats(allow_nan=False), st.binary(max_size=20), st.text(max_size=20))


def test_fixed_values() -> None:
    """A change here makes every catalog that there is unreadable: raise `schema.VERSION`."""
    assert MACS.inode(ROW) == 8887432754663459591
    assert MACS.entry(*ENTRY) == -3267071059789654982
    assert MACS.block(4711, BLOCK) == 7657794009434949359
    assert MACS.xattr(*XATTR) == -6297380309428779294
    assert MACS.tenant((1, b"name", 0, 0)) == -4821304065716806144
    assert plain_check("next_ino", 65538) == 8167594510552351512


@given(st.integers(0, len(ROW) - 1), ANYTHING)
def test_every_column_of_an_object_counts(column: int, value: object) -> None:
    other = [*ROW]
    other[column] = value
    same = type(value) is type(ROW[column]) and value == ROW[column]
    assert (MACS.inode(other) == MACS.inode(ROW)) == same


@given(st.integers(0, len(BLOCK) - 1), ANYTHING)
def test_every_column_of_a_block_counts_but_its_places(column: int, value: object) -> None:
    other = [*BLOCK]
    other[column] = value
    same = type(value) is type(BLOCK[column]) and value == BLOCK[column]
    assert (MACS.block(4711, other) == MACS.block(4711, BLOCK)) == same
    assert MACS.block(4711, (*BLOCK, b"places")) == MACS.block(4711, BLOCK)
    assert MACS.block(4712, BLOCK) != MACS.block(4711, BLOCK)


def test_tables_tenants_and_keys_are_kept_apart() -> None:
    other = TenantMacs(bytes(32))
    checks = {MACS.inode(ENTRY), MACS.entry(*ENTRY), MACS.tenant(ENTRY), MACS.xattr(2, b"sealed name", b"")}  # type: ignore[arg-type]
    assert len(checks) == 4
    assert other.entry(*ENTRY) != MACS.entry(*ENTRY)
    assert MACS.entry(2, b"ab", 3) != MACS.entry(2, b"a", 3)


@given(st.lists(SIGNED, max_size=20), st.integers(0, 20))
def test_sums_forget_order_and_what_is_taken_away_again(checks: list[int], split: int) -> None:
    summed = total(*checks)
    assert -(1 << 63) <= summed < 1 << 63
    assert total(*reversed(checks)) == summed
    assert total(total(*checks[:split]), total(*checks[split:])) == summed
    assert total(summed, *[-check for check in checks]) == 0


def test_nothing_is_checked_before_there_are_keys() -> None:
    macs = RowMacs()
    with pytest.raises(InternalError, match="keys"):
        macs.of(1)
    macs.unlock(row_key)
    check = macs.of(1).entry(*ENTRY)
    macs.forget(1)
    assert macs.of(1).entry(*ENTRY) == check != macs.of(2).entry(*ENTRY)
    macs.unlock(lambda tenant: bytes([tenant + 7]) * 32)
    assert macs.of(1).entry(*ENTRY) != check

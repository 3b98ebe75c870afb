"""The codec of log batches and system records: round trips, bounds, and any bytes at all."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs.errors import FormatError, InvalidArgumentError
from kvfsd.ondisk import metalog
from kvfsd.ondisk.metalog import (
    BATCH_MAX_BYTES,
    ENTRY_MAX_BYTES,
    DropBlocks,
    DropEntry,
    DropInode,
    DropXattr,
    LogEntry,
    PutBlock,
    PutEntry,
    PutInode,
    PutXattr,
    SnapshotBegin,
    SnapshotEnd,
    SystemTenant,
    TouchInode,
    decode_batch,
    decode_entry,
    decode_system,
    encode_batch,
    encode_entries,
    encode_system,
)

NUMBER = st.integers(0, 2**63 - 1)
TEXT = st.binary(max_size=40)
CHANGES = st.one_of(
    st.builds(PutInode, *[NUMBER] * 14, TEXT),
    st.builds(TouchInode, *[NUMBER] * 4),
    st.builds(DropInode, NUMBER),
    st.builds(PutEntry, NUMBER, TEXT, NUMBER),
    st.builds(DropEntry, NUMBER, TEXT),
    st.builds(PutXattr, NUMBER, TEXT, TEXT),
    st.builds(DropXattr, NUMBER, TEXT),
    st.builds(PutBlock, *[NUMBER] * 5, TEXT),
    st.builds(DropBlocks, NUMBER, NUMBER),
    st.builds(SnapshotBegin, NUMBER),
    st.builds(SnapshotEnd, NUMBER),
)


@given(st.lists(st.lists(CHANGES, min_size=1, max_size=5), min_size=1, max_size=5), NUMBER)
def test_a_batch_comes_back(transactions: list[list[metalog.Change]], previous: int) -> None:
    entries = [entry for changes in transactions for entry in encode_entries(changes)]
    batch = decode_batch(encode_batch(previous, entries), "test")
    assert batch.previous == previous
    assert [entry.changes for entry in batch.entries] == transactions
    assert all(entry.last for entry in batch.entries)


def test_a_batch_byte_by_byte() -> None:
    entry = encode_entries([DropInode(5)])[0]
    assert entry == bytes.fromhex("92 c3 91 92 03 05")
    assert encode_batch(0x0102, [entry]) == bytes.fromhex(
        "4b564d4c 0100 0000 01000000 00000000 0201000000000000 06000000 92c391920305"
    )


def test_a_large_transaction_is_split_and_only_its_end_says_last() -> None:
    changes = [PutXattr(number, b"n", bytes(60_000)) for number in range(20)]
    changes += [PutBlock(1, number, 1, 1, 1, bytes(16)) for number in range(10_000)]
    pieces = encode_entries(changes)
    assert len(pieces) > 8
    assert max(map(len, pieces)) <= ENTRY_MAX_BYTES
    entries = [decode_entry(piece, "test") for piece in pieces]
    assert [change for entry in entries for change in entry.changes] == changes
    assert [entry.last for entry in entries] == [False] * (len(pieces) - 1) + [True]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        encode_entries([PutXattr(1, b"n", bytes(ENTRY_MAX_BYTES))])
    with pytest.raises(InvalidArgumentError):
        encode_batch(0, [])
    with pytest.raises(InvalidArgumentError):
        encode_batch(0, [bytes(BATCH_MAX_BYTES)])
    with pytest.raises(FormatError):
        decode_entry(bytes(ENTRY_MAX_BYTES + 1), "test")
    many = msgspec.msgpack.encode(LogEntry(True, [DropInode(1)] * (metalog.CHANGES_PER_ENTRY_MAX + 1)))
    with pytest.raises(FormatError, match="4097 changes"):
        decode_entry(many, "test")


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_a_format_error(data: bytes) -> None:
    for decode in (decode_batch, decode_system, decode_entry):
        for payload in (data, metalog.BATCH_MAGIC + data, metalog.SYSTEM_MAGIC + b"\1\0\0\0\1\0\0\0\0\0\0\0" + data):
            with contextlib.suppress(FormatError):
                decode(payload, "test")


@given(st.lists(CHANGES, min_size=1, max_size=4), st.data())
def test_a_batch_with_any_byte_changed_or_cut_is_never_another_exception(
    changes: list[metalog.Change], data: st.DataObject
) -> None:
    payload = bytearray(encode_batch(7, encode_entries(changes)))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(payload), bytes(payload[: data.draw(st.integers(0, len(payload)))])):
        try:
            decode_batch(damaged, "test")
        except FormatError:
            continue


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 0), (4, 2), (6, 1), (8, 0), (8, 2), (12, 1), (24, 5), (24, 7), (25, 255)]
)
def test_each_field_of_the_header_is_checked(offset: int, value: int) -> None:
    payload = bytearray(encode_batch(7, encode_entries([DropInode(5)])))
    payload[offset] = value
    with pytest.raises(FormatError):
        decode_batch(bytes(payload), "test")


def tenant(number: int, slots: int = 2) -> SystemTenant:
    return SystemTenant(number, b"name", 1, 2, 3, 1, 5, [(epoch, bytes(65)) for epoch in range(slots)])


@given(st.integers(1, 40), NUMBER)
def test_a_system_snapshot_comes_back(count: int, snapshot: int) -> None:
    tenants = [tenant(number) for number in range(count)]
    (payload,) = encode_system(snapshot, tenants)
    assert decode_system(payload, "test") == (snapshot, 0, 1, tenants)


def test_many_tenants_take_several_parts() -> None:
    tenants = [tenant(number, slots=60) for number in range(900)]
    payloads = encode_system(9, tenants)
    parts = [decode_system(payload, "test") for payload in payloads]
    assert max(map(len, payloads)) <= BATCH_MAX_BYTES
    assert [(part.snapshot, part.part, part.parts) for part in parts] == [
        (9, index, len(parts)) for index in range(len(parts))
    ]
    assert len(parts) > 1
    assert [one for part in parts for one in part.tenants] == tenants


def test_no_tenants_are_a_system_snapshot_too_and_part_numbers_are_checked() -> None:
    (payload,) = encode_system(1, [])
    assert decode_system(payload, "test").tenants == []
    bad = bytearray(payload)
    bad[12] = 1
    with pytest.raises(FormatError, match="part 1 of 1"):
        decode_system(bytes(bad), "test")


def test_the_document_lists_every_change_as_the_code_has_it() -> None:
    text = (Path(__file__).parents[3] / "docs" / "FORMAT.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\w+) \| ([a-z_, ]+) \|$", text.split("### 6.2 Batch")[1], re.MULTILINE)
    kinds = [PutInode, TouchInode, DropInode, PutEntry, DropEntry, PutXattr, DropXattr, PutBlock, DropBlocks]
    kinds += [SnapshotBegin, SnapshotEnd]
    have = [(str(kind.__struct_config__.tag), kind.__name__, ", ".join(kind.__struct_fields__)) for kind in kinds]
    assert rows == have
    assert [kind.__struct_config__.tag for kind in kinds] == list(range(1, 12))


def test_the_document_lists_the_fields_of_a_tenant() -> None:
    text = " ".join((Path(__file__).parents[3] / "docs" / "FORMAT.md").read_text().split())
    assert f"({', '.join(SystemTenant.__struct_fields__)})" in text


def test_the_change_of_an_inode_has_the_fields_of_its_row() -> None:
    from kvfsd.catalog.rows import LOGGED_FIELDS, InodeRow

    assert PutInode.__struct_fields__ == InodeRow._fields[:LOGGED_FIELDS]

"""Payloads in shared memory: copied before they are looked at, within their bounds, of a size that nobody changes."""

from __future__ import annotations

import os

import pytest

from kvfs import wire
from kvfs.commands import Block, Completion, Lookup, ReadBlock, Request, WriteBlock
from kvfs.errors import ProtocolError
from kvfs.framereader import FrameReader
from kvfs.limits import BLOCK_BYTES
from kvfs.sharedslots import SharedSlots
from tests.kvfs.test_framereader import feed, joined


@pytest.fixture
def both() -> tuple[SharedSlots, SharedSlots]:
    """The daemon's slots, and the host's mapping of the same ones."""
    ours = SharedSlots.create(3)
    theirs = SharedSlots.adopt(os.dup(ours.descriptor), 3)
    ours.close_descriptor()
    return ours, theirs


def reader_of(slots: SharedSlots) -> FrameReader:
    reader = FrameReader()
    reader.shared = slots
    return reader


def test_a_payload_in_a_slot_is_a_copy_when_it_is_seen(both: tuple[SharedSlots, SharedSlots]) -> None:
    ours, theirs = both
    data = os.urandom(BLOCK_BYTES)
    theirs.put(2, data)
    request = Request(0, 1, WriteBlock(2, 0))
    stream = joined(wire.encode_request(request, data, 2))
    assert len(stream) < 100
    reader = reader_of(ours)
    with reader.wanted() as view:
        view[: len(stream)] = stream
    reader.received(len(stream))
    frame = reader.next_frame()
    theirs.put(2, b"changed after the check")
    assert (frame.message, bytes(frame.payload), frame.slot) == (request, data, 2)


def test_an_answer_comes_in_the_slot_that_the_question_named(both: tuple[SharedSlots, SharedSlots]) -> None:
    ours, theirs = both
    (asked,) = feed(reader_of(ours), joined(wire.encode_request(Request(4, 9, ReadBlock(2, 0, False)), b"", 1)), [7])
    assert asked.payload == b""
    ours.put(1, b"plaintext")
    completion = Completion(4, 9, 0, "", Block(9))
    (answer,) = feed(reader_of(theirs), joined(wire.encode_completion(completion, b"plaintext", 1)), [1000])
    assert (answer.message, answer.payload) == (completion, b"plaintext")


@pytest.mark.parametrize("flags", [0x0301, 0xFF01, 0x0002, 0x0003, 0x0100, 0x8000])
def test_a_slot_that_is_not_there_is_refused(both: tuple[SharedSlots, SharedSlots], flags: int) -> None:
    meta = joined(wire.encode_request(Request(0, 1, Lookup(1, b"n"))))[wire.HEADER.size :]
    with pytest.raises(ProtocolError, match="flags"):
        feed(reader_of(both[0]), wire.HEADER.pack(b"KVQP", 1, 1, flags, len(meta), 0) + meta, [1000])


def test_slots_are_refused_where_none_are_shared() -> None:
    with pytest.raises(ProtocolError, match="flags"):
        feed(FrameReader(), joined(wire.encode_request(Request(0, 1, WriteBlock(2, 0)), b"data", 0)), [1000])


def test_a_payload_is_never_longer_than_a_slot(both: tuple[SharedSlots, SharedSlots]) -> None:
    head = wire.HEADER.pack(b"KVQP", 1, 1, 0x0201, 5, BLOCK_BYTES + 1)
    with pytest.raises(ProtocolError, match="payload length"):
        feed(reader_of(both[0]), head, [1000])


def test_nobody_changes_the_size_under_the_other() -> None:
    ours = SharedSlots.create(2)
    for size in (0, BLOCK_BYTES, 3 * BLOCK_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(ours.descriptor, size)
    ours.close_descriptor()
    ours.close_descriptor()


def test_a_host_takes_sealed_slots_of_the_right_size_only() -> None:
    ours = SharedSlots.create(2)
    with pytest.raises(ProtocolError, match="want 3"):
        SharedSlots.adopt(os.dup(ours.descriptor), 3)
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, 2 * BLOCK_BYTES)
    with pytest.raises(ProtocolError, match="sealed"):
        SharedSlots.adopt(unsealed, 2)
    receive, send = os.pipe()
    os.close(send)
    with pytest.raises(ProtocolError):
        SharedSlots.adopt(receive, 0)
    ours.close_descriptor()

"""The queue pair's codec: round trips in any split, every field's offset, bounds before allocation, poison."""

from __future__ import annotations

import itertools
import typing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs import limits, wire
from kvfs.commands import (
    MUTATING,
    Attributes,
    Block,
    Bytes,
    Command,
    Completion,
    DirectoryEntry,
    Done,
    EntryGone,
    Event,
    Lookup,
    ObjectChanged,
    Placement,
    ReadBlock,
    Request,
    Result,
    WriteBlock,
)
from kvfs.errors import ProtocolError, Status

COMMAND_TYPES = typing.get_args(Command)
RESULT_TYPES = typing.get_args(Result)

INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)


def strategy_of(annotation: object) -> st.SearchStrategy[object]:
    if annotation is int:
        return INTEGERS
    if annotation is bool:
        return st.booleans()
    if annotation is bytes:
        return st.binary(max_size=300)
    if annotation == int | None:
        return st.none() | INTEGERS
    if annotation == Placement | None:
        return st.none() | struct_of(Placement)
    if annotation in (Attributes, DirectoryEntry):
        return struct_of(annotation)
    if typing.get_origin(annotation) is tuple:
        inner = typing.get_args(annotation)
        if inner[-1] is Ellipsis:
            return st.lists(strategy_of(inner[0]), max_size=3).map(tuple)
        return st.tuples(*(strategy_of(part) for part in inner))
    raise AssertionError(f"no strategy for {annotation}")


def struct_of(cls: type) -> st.SearchStrategy[object]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{name: strategy_of(hints[name]) for name in cls.__struct_fields__})


COMMANDS = st.one_of([struct_of(cls) for cls in COMMAND_TYPES])
RESULTS = st.one_of([struct_of(cls) for cls in RESULT_TYPES if cls is not Block])


@st.composite
def requests(draw: st.DrawFn) -> tuple[Request, bytes]:
    command = draw(COMMANDS)
    payload = draw(st.binary(min_size=1, max_size=200)) if isinstance(command, WriteBlock) else b""
    cid = draw(st.integers(0, limits.QUEUE_DEPTH - 1))
    return Request(cid, draw(st.integers(1, wire.SEQUENCE_MAX)), command), payload


@st.composite
def completions(draw: st.DrawFn) -> tuple[Completion, bytes]:
    cid, sequence = draw(st.integers(0, limits.QUEUE_DEPTH - 1)), draw(st.integers(1, wire.SEQUENCE_MAX))
    status = draw(st.sampled_from(Status))
    if status is not Status.OK:
        return Completion(cid, sequence, int(status), draw(st.text(max_size=50)), None), b""
    payload = draw(st.binary(max_size=200))
    if payload:
        return Completion(cid, sequence, 0, "", Block(len(payload))), payload
    return Completion(cid, sequence, 0, "", draw(RESULTS)), b""


def joined(buffers: list[bytes]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


def decode_all(stream: bytes, cuts: list[int], *accept: wire.Kind) -> list[wire.Frame]:
    decoder = wire.FrameDecoder(*accept)
    frames = []
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        decoder.receive(stream[start:end])
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame)
    decoder.finish()
    return frames


@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 5000), max_size=8))
@settings(max_examples=150, deadline=None)
def test_requests_round_trip_in_any_splits(items: list[tuple[Request, bytes]], cuts: list[int]) -> None:
    stream = joined([part for request, payload in items for part in wire.encode_request(request, payload)])
    frames = decode_all(stream, cuts, wire.Kind.REQUEST)
    assert [(frame.message, frame.payload) for frame in frames] == items


@given(st.lists(completions(), min_size=1, max_size=4), st.lists(st.integers(0, 5000), max_size=8))
@settings(max_examples=150, deadline=None)
def test_completions_round_trip_in_any_splits(items: list[tuple[Completion, bytes]], cuts: list[int]) -> None:
    stream = joined([part for completion, payload in items for part in wire.encode_completion(completion, payload)])
    frames = decode_all(stream, cuts, wire.Kind.COMPLETION)
    assert [(frame.message, frame.payload) for frame in frames] == items


def test_every_command_type_has_its_own_tag_and_survives_one_byte_at_a_time() -> None:
    for cls in COMMAND_TYPES:
        values = {int: 7, bool: True, bytes: b"n", int | None: None, Placement | None: Placement(1, b"x")}
        hints = typing.get_type_hints(cls)
        command = cls(*(values.get(hints[name], ()) for name in cls.__struct_fields__))
        payload = b"data" if cls is WriteBlock else b""
        stream = joined(wire.encode_request(Request(0, 1, command), payload))
        frames = decode_all(stream, list(range(len(stream))))
        assert frames == [(wire.Kind.REQUEST, Request(0, 1, command), payload, None)]
        assert type(frames[0].message.command) is cls


def test_events_round_trip() -> None:
    events: list[Event] = [EntryGone(1, b"\xff\x00name"), ObjectChanged(0)]
    stream = joined([part for event in events for part in wire.encode_event(event)])
    assert [frame.message for frame in decode_all(stream, [], wire.Kind.EVENT)] == events


@pytest.mark.parametrize(
    ("field", "offset", "size"),
    [("magic", 0, 4), ("version", 4, 1), ("kind", 5, 1), ("flags", 6, 2), ("meta", 8, 4), ("payload", 12, 4)],
)
def test_header_fields_are_where_the_protocol_says(field: str, offset: int, size: int) -> None:
    stream = joined(wire.encode_request(Request(3, 9, WriteBlock(2, 0)), b"abc"))
    expected = {
        "magic": int.from_bytes(b"KVQP", "little"),
        "version": 1,
        "kind": 1,
        "flags": 0,
        "meta": len(stream) - 16 - 3,
        "payload": 3,
    }
    assert int.from_bytes(stream[offset : offset + size], "little") == expected[field]
    assert wire.HEADER.size == 16


def header(
    *, magic: bytes = b"KVQP", version: int = 1, kind: int = 1, flags: int = 0, meta: int = 5, payload: int = 0
) -> bytes:
    return wire.HEADER.pack(magic, version, kind, flags, meta, payload)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (header(magic=b"KVQQ"), "magic"),
        (header(version=2), "version"),
        (header(kind=0), "kind"),
        (header(kind=7), "kind"),
        (header(flags=1), "flags"),
        (header(meta=0), "meta length"),
        (header(meta=limits.FRAME_META_MAX_BYTES + 1), "meta length"),
        (header(meta=0xFFFFFFFF), "meta length"),
        (header(payload=limits.BLOCK_BYTES + 1), "payload length"),
        (header(payload=0xFFFFFFFF), "payload length"),
    ],
)
def test_a_bad_header_is_refused_by_name_before_its_body_is_waited_for(bad: bytes, word: str) -> None:
    decoder = wire.FrameDecoder()
    decoder.receive(bad)
    with pytest.raises(ProtocolError, match=word):
        decoder.next_frame()


def test_the_side_of_a_frame_is_checked() -> None:
    decoder = wire.FrameDecoder(wire.Kind.COMPLETION, wire.Kind.EVENT)
    decoder.receive(joined(wire.encode_request(Request(0, 1, Lookup(1, b"x")))))
    with pytest.raises(ProtocolError, match="request has no place"):
        decoder.next_frame()


def test_an_error_poisons_the_decoder() -> None:
    decoder = wire.FrameDecoder()
    decoder.receive(header(flags=7))
    with pytest.raises(ProtocolError):
        decoder.next_frame()
    assert decoder.buffered_bytes == 0
    good = joined(wire.encode_request(Request(0, 1, Lookup(1, b"x"))))
    with pytest.raises(ProtocolError, match="poisoned"):
        decoder.receive(good)
    with pytest.raises(ProtocolError, match="poisoned"):
        decoder.next_frame()


def test_what_is_buffered_is_bounded() -> None:
    decoder = wire.FrameDecoder()
    decoder.receive(bytes(wire.BUFFERED_MAX_BYTES))
    with pytest.raises(ProtocolError, match="buffered"):
        decoder.receive(b"x")
    assert decoder.buffered_bytes == 0


def test_the_largest_block_fits_and_one_byte_more_does_not() -> None:
    request = Request(0, 1, WriteBlock(2, 0))
    payload = bytes(limits.BLOCK_BYTES)
    frames = decode_all(joined(wire.encode_request(request, payload)), [17, 500_000])
    assert frames[0].payload == payload
    with pytest.raises(ProtocolError, match="WriteBlock"):
        wire.encode_request(request, bytes(limits.BLOCK_BYTES + 1))
    with pytest.raises(ProtocolError, match="WriteBlock"):
        wire.encode_request(request, b"")


@pytest.mark.parametrize("cid", [-1, limits.QUEUE_DEPTH, 1 << 62])
def test_a_cid_outside_the_queue_is_refused(cid: int) -> None:
    with pytest.raises(ProtocolError, match="cid"):
        wire.encode_request(Request(cid, 1, Lookup(1, b"x")))


@pytest.mark.parametrize("sequence", [0, -1, 1 << 63])
def test_a_sequence_starts_at_one(sequence: int) -> None:
    with pytest.raises(ProtocolError, match="sequence"):
        wire.encode_request(Request(0, sequence, Lookup(1, b"x")))


@pytest.mark.parametrize(
    ("completion", "payload"),
    [
        (Completion(0, 1, 0, "", None), b""),
        (Completion(0, 1, int(Status.NOT_FOUND), "", Done()), b""),
        (Completion(0, 1, 999, "", None), b""),
        (Completion(0, 1, 0, "", Block(4)), b"abc"),
        (Completion(0, 1, 0, "", Bytes(b"abc")), b"abc"),
        (Completion(limits.QUEUE_DEPTH, 1, 0, "", Done()), b""),
    ],
)
def test_a_completion_that_contradicts_itself_is_refused(completion: Completion, payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.encode_completion(completion, payload)
    meta = msgspec.msgpack.encode(completion)
    decoder = wire.FrameDecoder()
    decoder.receive(header(kind=2, meta=len(meta), payload=len(payload)) + meta + payload)
    with pytest.raises(ProtocolError):
        decoder.next_frame()


def test_a_payload_where_none_belongs_is_refused() -> None:
    with pytest.raises(ProtocolError, match="ReadBlock"):
        wire.encode_request(Request(0, 1, ReadBlock(2, 0, False)), b"x")
    meta = msgspec.msgpack.encode(ObjectChanged(3))
    decoder = wire.FrameDecoder()
    decoder.receive(header(kind=3, meta=len(meta), payload=1) + meta + b"x")
    with pytest.raises(ProtocolError, match="event"):
        decoder.next_frame()


def test_an_oversized_message_is_refused_by_its_sender() -> None:
    with pytest.raises(ProtocolError, match="encoded"):
        wire.encode_request(Request(0, 1, Lookup(1, bytes(limits.FRAME_META_MAX_BYTES))))


def test_a_stream_that_ends_inside_a_frame_is_an_error() -> None:
    stream = joined(wire.encode_request(Request(0, 1, Lookup(1, b"x"))))
    decoder = wire.FrameDecoder()
    decoder.receive(stream[:-1])
    assert decoder.next_frame() is None
    with pytest.raises(ProtocolError, match="inside a frame"):
        decoder.finish()


@given(st.binary(max_size=600))
@settings(max_examples=300, deadline=None)
def test_any_message_bytes_are_a_message_or_a_protocol_error(meta: bytes) -> None:
    for kind in wire.Kind:
        decoder = wire.FrameDecoder()
        decoder.receive(header(kind=kind, meta=max(1, len(meta))) + (meta or b"\xc0"))
        try:
            decoder.next_frame()
        except ProtocolError:
            pass
        else:
            assert decoder.buffered_bytes == 0


@given(requests(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_frame_is_a_message_or_a_protocol_error(item: tuple[Request, bytes], data: st.DataObject) -> None:
    stream = bytearray(joined(wire.encode_request(*item)))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= 1 << data.draw(st.integers(0, 7))
    decoder = wire.FrameDecoder()
    decoder.receive(stream)
    try:
        decoder.next_frame()
    except ProtocolError:
        assert decoder.buffered_bytes == 0


def test_mutating_commands_are_commands() -> None:
    assert set(COMMAND_TYPES) >= MUTATING

"""The reader that receives payloads in place: the same frames and errors as `FrameDecoder`, whatever the splits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs import limits, wire
from kvfs.commands import Block, Completion, Lookup, Names, Request, WriteBlock
from kvfs.errors import ProtocolError
from kvfs.framereader import START_BYTES, FrameReader
from kvfs.handshake import Farewell, Hello, Welcome


def feed(reader: FrameReader, stream: bytes, cuts: list[int]) -> list[wire.Frame]:
    """Receive `stream` in pieces of at most the sizes in `cuts`, in turn."""
    frames = []
    position = turn = 0
    while position < len(stream):
        with reader.wanted() as view:
            count = min(len(view), cuts[turn % len(cuts)], len(stream) - position)
            view[:count] = stream[position : position + count]
        reader.received(count)
        position += count
        turn += 1
        while (frame := reader.next_frame()) is not None:
            frames.append(wire.Frame(frame.kind, frame.message, bytes(frame.payload)))
    return frames


def joined(buffers: list) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


requests = st.builds(
    lambda cid, sequence, block, data: (Request(cid, sequence, WriteBlock(2, block)), data),
    st.integers(0, limits.QUEUE_DEPTH - 1),
    st.integers(1, wire.SEQUENCE_MAX),
    st.integers(0, 100),
    st.binary(min_size=1, max_size=3000),
) | st.builds(lambda cid, name: (Request(cid, 1, Lookup(1, name)), b""), st.integers(0, 255), st.binary(max_size=255))


@given(st.lists(requests, max_size=8), st.lists(st.integers(1, 5000), min_size=1, max_size=5))
def test_any_splits_give_the_frames_that_were_sent(sent: list, cuts: list[int]) -> None:
    stream = b"".join(joined(wire.encode_request(request, data)) for request, data in sent)
    reader = FrameReader(wire.Kind.REQUEST)
    frames = feed(reader, stream, cuts)
    assert [(frame.message, frame.payload) for frame in frames] == sent
    reader.finish()


@given(st.binary(max_size=200), st.lists(st.integers(1, 50), min_size=1, max_size=3))
def test_nonsense_is_refused_as_the_decoder_refuses_it(data: bytes, cuts: list[int]) -> None:
    decoder, reader = wire.FrameDecoder(), FrameReader()
    decoder.receive(data)
    texts = []
    for attempt in (lambda: decoder.next_frame(), lambda: feed(reader, data, cuts)):
        try:
            attempt()
            texts.append("")
        except ProtocolError as error:
            texts.append(str(error).partition("poisoned: ")[2] or str(error))
    assert texts[0] == texts[1]


def test_a_large_block_and_a_large_message_arrive_whole() -> None:
    data = bytes(range(256)) * 4096
    names = Names(tuple(b"%08d" % number for number in range(40_000)))
    stream = joined(wire.encode_completion(Completion(0, 1, 0, "", names)))
    stream += joined(wire.encode_completion(Completion(1, 2, 0, "", Block(len(data))), data))
    stream += joined(wire.encode_completion(Completion(2, 3, 1, "no", None)))
    frames = feed(FrameReader(), stream, [7000])
    assert len(stream) > START_BYTES
    assert frames[0].message.result == names
    assert frames[1].payload == data
    assert frames[2].message.status == 1


def test_a_payload_is_received_into_the_buffer_that_was_given() -> None:
    given_buffers = []

    def take(length: int) -> memoryview:
        given_buffers.append(bytearray(length))
        return memoryview(given_buffers[-1])

    reader = FrameReader(take_payload=take)
    feed(reader, joined(wire.encode_request(Request(0, 1, WriteBlock(2, 0)), b"x" * 100_000)), [1 << 20])
    assert given_buffers == [bytearray(b"x" * 100_000)]


def test_no_buffer_is_taken_for_a_payload_whose_frame_is_wrong() -> None:
    def take(length: int) -> memoryview:
        raise AssertionError

    reader = FrameReader(wire.Kind.REQUEST, take_payload=take)
    meta = joined(wire.encode_request(Request(0, 1, Lookup(1, b"n"))))[wire.HEADER.size :]
    stream = wire.HEADER.pack(b"KVQP", 1, 1, 0, len(meta), 5) + meta + b"12345"
    with pytest.raises(ProtocolError, match="Lookup"):
        feed(reader, stream, [1000])
    with pytest.raises(ProtocolError, match="poisoned"):
        reader.next_frame()


def test_the_end_inside_a_frame_is_an_error() -> None:
    stream = joined(wire.encode_request(Request(0, 1, WriteBlock(2, 0)), b"x" * 100))
    for length in (1, 20, len(stream) - 1):
        reader = FrameReader()
        feed(reader, stream[:length], [64])
        with pytest.raises(ProtocolError, match="inside a frame"):
            reader.finish()


def test_kinds_are_accepted_by_turn_and_handshakes_are_short() -> None:
    reader = FrameReader(wire.Kind.HELLO)
    hello = Hello(0, "blue", b"c" * 32, 7, b"t" * 16)
    assert feed(reader, joined(wire.encode_hello(hello)), [5])[0].message == hello
    reader.accept(wire.Kind.FAREWELL)
    assert feed(reader, joined(wire.encode_farewell()), [5])[0].message == Farewell()
    with pytest.raises(ProtocolError, match="no place"):
        feed(reader, joined(wire.encode_hello(hello)), [99])
    with pytest.raises(ProtocolError, match="meta length"):
        feed(FrameReader(), wire.HEADER.pack(b"KVQP", 1, 4, 0, wire.HANDSHAKE_META_MAX_BYTES + 1, 0), [99])


@pytest.mark.parametrize(
    "bad",
    [
        Hello(-1, "a"),
        Hello(0, ""),
        Hello(0, "x" * 65),
        Hello(0, "a", b"short"),
        Hello(0, "a", b"", 1, b""),
        Hello(0, "a", b"", 0, b"t" * 16),
    ],
)
def test_a_hello_out_of_bounds_is_refused(bad: Hello) -> None:
    with pytest.raises(ProtocolError, match="hello"):
        wire.encode_hello(bad)


@pytest.mark.parametrize("bad", [Welcome(99), Welcome(-1), Welcome(0), Welcome(0, "", 0, 5, b"t" * 16, False, 0, 0)])
def test_a_welcome_out_of_bounds_is_refused(bad: Welcome) -> None:
    with pytest.raises(ProtocolError, match="welcome"):
        wire.encode_welcome(bad)


def test_a_payload_where_none_belongs_is_refused() -> None:
    meta = joined(wire.encode_completion(Completion(0, 1, 1, "", None)))[wire.HEADER.size :]
    with pytest.raises(ProtocolError, match="payload"):
        feed(FrameReader(), wire.HEADER.pack(b"KVQP", 1, 2, 0, len(meta), 3) + meta + b"abc", [99])

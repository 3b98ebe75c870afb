import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.errors import NotFoundError, ProtocolError
from kvfsd.admin import jsonrpc
from kvfsd.admin.jsonrpc import Call, Refusal, TextStream

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)


@given(st.lists(OBJECTS, min_size=1, max_size=4), st.sampled_from(["", " ", "\n", "\r\n\t"]), st.booleans())
def test_texts_come_out_whole_however_the_stream_is_cut(objects, gap, escaped):
    texts = [json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass") for value in objects]
    stream = TextStream()
    got = []
    for byte in gap.encode().join(texts):
        got += stream.feed(bytes([byte]))
    assert got == texts
    assert TextStream().feed(gap.encode().join(texts)) == texts


def test_brackets_and_escapes_inside_strings_do_not_end_a_text():
    text = rb'{"a": "}]\"\\", "b": ["[{"]}'
    assert TextStream().feed(text + text) == [text, text]


def test_garbage_between_texts_ends_the_stream():
    with pytest.raises(ProtocolError, match="begins with"):
        TextStream().feed(b'{"a":1} x')


def test_an_oversized_text_is_refused_before_it_is_whole():
    stream = TextStream(max_bytes=64)
    with pytest.raises(ProtocolError, match="longer than 64 bytes"):
        stream.feed(b'{"a": "' + b"x" * 64)


@given(st.binary(max_size=200))
def test_any_bytes_give_texts_or_a_protocol_error_and_parse_never_raises(data):
    try:
        texts = TextStream().feed(data)
    except ProtocolError:
        return
    for text in texts:
        jsonrpc.parse_message(text)


@given(OBJECTS)
def test_parse_answers_any_object(value):
    message = jsonrpc.parse_message(json.dumps(value).encode())
    assert len(message.items) == 1


def test_deep_nesting_is_a_parse_error_not_a_crash():
    text = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    assert jsonrpc.parse_message(text).items[0] == Refusal(jsonrpc.PARSE_ERROR, "not valid JSON")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"{nonsense}", jsonrpc.PARSE_ERROR),
        (b"[]", jsonrpc.INVALID_REQUEST),
        (b"[" + b"{}," * 64 + b"{}]", jsonrpc.INVALID_REQUEST),
        (b'{"method": "m", "id": 1}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc": "1.0", "method": "m", "id": 1}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": 7, "id": 1}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": "m", "id": [1]}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": "m", "id": true}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": "m", "params": [1], "id": 1}', jsonrpc.INVALID_PARAMS),
    ],
)
def test_what_is_wrong_has_the_code_of_the_specification(text, code):
    (item,) = jsonrpc.parse_message(text).items
    assert isinstance(item, Refusal)
    assert item.code == code


def test_a_batch_keeps_order_and_its_bad_members():
    text = b'[{"jsonrpc":"2.0","method":"a","id":1}, 5, {"jsonrpc":"2.0","method":"b"}]'
    message = jsonrpc.parse_message(text)
    assert message.batch
    first, second, third = message.items
    assert first == Call("a", {}, 1, notification=False)
    assert isinstance(second, Refusal)
    assert third == Call("b", {}, None, notification=True)


def test_a_request_comes_back_as_its_call():
    text = jsonrpc.encode_request("tenant_list", {"path": "/\udcff"}, 3)
    (stream_text,) = TextStream().feed(text)
    assert jsonrpc.parse_message(stream_text).items == (
        Call("tenant_list", {"path": "/\udcff"}, 3, notification=False),
    )


def test_domain_errors_carry_their_status():
    answer = jsonrpc.domain_error_object(4, NotFoundError("no tenant x"))
    assert answer["error"] == {"code": -32001, "message": "no tenant x", "data": {"status": "NOT_FOUND"}}


def test_notifications_alone_get_no_answer():
    assert jsonrpc.encode_answers([], batch=True) == b""

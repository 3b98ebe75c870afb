import json
import os
import stat
from pathlib import Path

import msgspec
import pytest
import trio

from kvfs.errors import ConfigError, DeadlineExceededError, NotFoundError, ProtocolError
from kvfsd.admin import admin, admin_client, jsonrpc
from kvfsd.admin.admin import Method, Methods


class EchoParams(msgspec.Struct, forbid_unknown_fields=True):
    text: str


async def echo(params: EchoParams) -> dict[str, str]:
    return {"text": params.text}


async def miss(_: admin.NoParams) -> None:
    raise NotFoundError("no tenant blue")


async def bug(_: admin.NoParams) -> None:
    raise ZeroDivisionError("secret")


def some_methods() -> Methods:
    methods = Methods()
    methods.add("echo", Method("Say it again.", echo, EchoParams))
    methods.add("miss", Method("Nothing there.", miss))
    methods.add("bug", Method("A bug.", bug))
    return methods


async def answer(text: bytes) -> object:
    reply = await some_methods().answer(jsonrpc.parse_message(text))
    return json.loads(reply) if reply else None


def request(method: str, **params: object) -> bytes:
    return jsonrpc.encode_request(method, params, 1)


async def test_a_call_gets_its_result():
    assert await answer(request("echo", text="hi")) == {"jsonrpc": "2.0", "id": 1, "result": {"text": "hi"}}


async def test_rpc_get_methods_lists_every_method():
    assert (await answer(request("rpc_get_methods")))["result"] == ["bug", "echo", "miss", "rpc_get_methods"]


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (request("nothing"), jsonrpc.METHOD_NOT_FOUND, "nothing"),
        (request("echo"), jsonrpc.INVALID_PARAMS, "text"),
        (request("echo", text=5), jsonrpc.INVALID_PARAMS, "Expected"),
        (request("echo", text="a", typo=1), jsonrpc.INVALID_PARAMS, "typo"),
        (request("miss"), -32001, "no tenant blue"),
        (request("bug"), jsonrpc.INTERNAL_ERROR, "internal error"),
    ],
)
async def test_errors_have_code_and_text(text, code, says):
    error = (await answer(text))["error"]
    assert error["code"] == code
    assert says in error["message"]
    assert "secret" not in error["message"]


async def test_a_notification_runs_without_an_answer():
    assert await answer(b'{"jsonrpc":"2.0","method":"echo","params":{"text":"x"}}') is None


async def test_a_method_that_hangs_is_ended_by_its_deadline(autojump_clock):
    methods = Methods()

    async def hang(_: admin.NoParams) -> None:
        await trio.sleep_forever()

    methods.add("hang", Method("Hang.", hang))
    reply = json.loads(await methods.answer(jsonrpc.parse_message(request("hang"))))
    assert "30000 ms" in reply["error"]["message"]


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="twice"):
        some_methods().add("echo", Method("Again.", echo))


@pytest.fixture
async def socket_at(tmp_path: Path, nursery: trio.Nursery) -> Path:
    path = tmp_path / "admin.sock"
    nursery.start_soon(admin.serve, admin.listen(path), some_methods())
    return path


async def in_thread(path: Path, method: str, **params: object) -> object:
    return await trio.to_thread.run_sync(lambda: admin_client.call(str(path), method, params, deadline_ms=5000))


async def test_client_and_server_over_a_socket(socket_at):
    assert await in_thread(socket_at, "echo", text="\udcff\n{") == {"text": "\udcff\n{"}
    assert stat.S_IMODE(os.stat(socket_at).st_mode) == 0o600
    with pytest.raises(NotFoundError, match="no tenant blue"):
        await in_thread(socket_at, "miss")
    with pytest.raises(ProtocolError, match="no method"):
        await in_thread(socket_at, "nothing")


async def test_garbage_is_answered_and_closes_only_its_connection(socket_at):
    async with await trio.open_unix_socket(str(socket_at)) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        answered = b""
        with trio.fail_after(5):
            async for data in stream:  # ends when the server closes
                answered += data
    assert json.loads(answered)["error"]["code"] == jsonrpc.PARSE_ERROR
    assert await in_thread(socket_at, "echo", text="still here") == {"text": "still here"}


async def test_a_bug_in_a_connection_costs_that_connection_only(tmp_path, nursery, monkeypatch, caplog):
    methods = some_methods()
    answer = methods.answer

    async def broken(message: jsonrpc.Message) -> bytes:
        if message.batch:
            raise AttributeError("planted")
        return await answer(message)

    monkeypatch.setattr(methods, "answer", broken)
    path = tmp_path / "admin.sock"
    nursery.start_soon(admin.serve, admin.listen(path), methods)
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(b"[{}]")
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
    assert await in_thread(path, "echo", text="a") == {"text": "a"}
    assert "planted" in caplog.text


async def test_more_connections_than_slots_wait_and_a_silent_one_is_closed(tmp_path, nursery):
    path = tmp_path / "admin.sock"
    nursery.start_soon(admin.serve, admin.listen(path), some_methods(), 50)
    silent = [await trio.open_unix_socket(str(path)) for _ in range(admin.CONNECTIONS_MAX)]
    assert await in_thread(path, "echo", text="a") == {"text": "a"}
    for stream in silent:
        await stream.aclose()


async def test_a_peer_that_stays_silent_makes_the_client_give_up(tmp_path):
    path = tmp_path / "mute.sock"
    listener = admin.listen(path)
    try:
        with pytest.raises(DeadlineExceededError):
            admin_client.call(str(path), "echo", deadline_ms=20)
    finally:
        listener.close()


def test_nobody_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match="nobody answers"):
        admin_client.call(str(tmp_path / "none.sock"), "status")


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path):
    path = tmp_path / "a.sock"
    admin.listen(path).close()
    listener = admin.listen(path)
    try:
        with pytest.raises(ConfigError, match="another process answers"):
            admin.listen(path)
    finally:
        listener.close()


def test_what_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        admin.listen(path)
    assert path.read_text() == "mine"


def test_a_path_that_is_too_long_is_named(tmp_path):
    with pytest.raises(ConfigError, match="107 bytes"):
        admin.listen(tmp_path / ("x" * 120))

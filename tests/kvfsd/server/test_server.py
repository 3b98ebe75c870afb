"""A daemon's server over real sockets: broken connections, orderly restarts, refusals, hostile and slow mounts."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from kvfs import framestream, limits, wire
from kvfs.commands import (
    Command,
    Commit,
    Found,
    Link,
    Lookup,
    MakeNode,
    ObjectChanged,
    Placement,
    ReadBlock,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    Request,
    SetAttributes,
    SetXattr,
    StatFilesystem,
    Sync,
    Unlink,
    WriteBlock,
)
from kvfs.errors import (
    DeadlineExceededError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    StaleError,
    TooManyOpenError,
)
from kvfs.framestream import FrameStream
from kvfs.handshake import Hello, Welcome
from kvfs.remote import attached
from kvfs.remotelink import Resume, Target, UnreachableError, connect
from kvfsd.admin.admin import listen
from kvfsd.pool.access import Access, credential_digest
from kvfsd.server import attachments, server
from kvfsd.server.connection import DATA_DEPTH, Connection
from kvfsd.server.server import ServerOptions
from kvfsd.service.service import Service
from tests.kvfsd.serving import FILE_MODE, OTHER, TENANT, Host, Layout, listening, make_pool, reopen_pool, serving

DIRECTORY = stat.S_IFDIR | 0o755
BLOCK = os.urandom(limits.BLOCK_BYTES)


def no_payload(length: int) -> memoryview:
    return memoryview(bytearray(length))


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(await make_pool(tmp_path, Layout(medium_bytes=256 * limits.MIB))) as service:
        yield service


@dataclass
class Cutter:
    """Breaks the connection instead of answering a command of one type, after it was carried out."""

    command: type | None = None
    cuts: int = 0


@pytest.fixture
def cutter(monkeypatch: pytest.MonkeyPatch) -> Cutter:
    cutter = Cutter()
    original = Connection._answer

    async def answer(self: Connection, request: Request, done: tuple, slot: int | None = None) -> None:
        if type(request.command) is cutter.command:
            cutter.command = None
            cutter.cuts += 1
            self._stream.close()
        await original(self, request, done, slot)

    monkeypatch.setattr(Connection, "_answer", answer)
    return cutter


# --- exactly once --------------------------------------------------------------------------------------


async def prepare(host: Host) -> dict[str, int]:
    """Objects that the commands below work on."""
    numbers = {"file": (await host.store(b"file", b"data")).ino}
    for name in (b"dir", b"empty"):
        found = (await host.submit(MakeNode(1, name, DIRECTORY, 0, 0, b""))).result
        assert isinstance(found, Found)
        numbers[name.decode()] = found.attributes.ino
    await host.submit(SetXattr(numbers["file"], b"user.old", b"1", 0))
    numbers["new"] = await host.allocate()
    await host.write_block(numbers["new"], 0, b"fresh")
    return numbers


def commit_of(ino: int) -> Commit:
    return Commit(ino, Placement(1, b"new"), 5, 0, FILE_MODE, 0, 0, 1, 1, 1, (), False)


MUTATIONS: dict[type, Callable[[dict[str, int]], Command]] = {
    MakeNode: lambda numbers: MakeNode(1, b"made", DIRECTORY, 0, 0, b""),
    SetAttributes: lambda numbers: SetAttributes(numbers["file"], 0o600, None, None, None, None, 9),
    SetXattr: lambda numbers: SetXattr(numbers["file"], b"user.once", b"v", 1),
    RemoveXattr: lambda numbers: RemoveXattr(numbers["file"], b"user.old"),
    Unlink: lambda numbers: Unlink(1, b"file", False),
    RemoveDirectory: lambda numbers: RemoveDirectory(1, b"empty"),
    Rename: lambda numbers: Rename(1, b"file", 1, b"renamed", 0, False),
    Link: lambda numbers: Link(numbers["file"], 1, b"second"),
    Commit: lambda numbers: commit_of(numbers["new"]),
}


@pytest.mark.parametrize("kind", MUTATIONS, ids=lambda kind: kind.__name__)
async def test_a_connection_that_breaks_before_the_answer_costs_nothing(
    service: Service, cutter: Cutter, kind: type
) -> None:
    """Done again, each of these would fail or change something: the stored completion is the answer."""
    async with listening(service) as (_, path), attached(Target(path, TENANT)) as pair:
        host = Host(pair)
        command = MUTATIONS[kind](await prepare(host))
        cutter.command = kind
        await host.submit(command)
        assert (cutter.cuts, pair.reconnects) == (1, 1)
        assert service.metrics.counters.replayed_completions == 1
        assert pair.take_events() == [ObjectChanged(0)], "events may have been lost with the connection"
        if kind is Commit:
            assert await host.load(b"new") == b"fresh"


async def test_data_in_flight_is_sent_again(service: Service, cutter: Cutter) -> None:
    async with listening(service) as (_, path), attached(Target(path, TENANT)) as pair:
        host = Host(pair)
        ino = await host.allocate()
        cutter.command = WriteBlock
        async with trio.open_nursery() as nursery:
            for block in range(2 * DATA_DEPTH):
                nursery.start_soon(host.write_block, ino, block, BLOCK)
        await host.commit(ino, 2 * DATA_DEPTH * limits.BLOCK_BYTES, b"file")
        cutter.command = ReadBlock
        assert await host.load(b"file") == BLOCK * (2 * DATA_DEPTH)
        assert cutter.cuts == 2
        assert pair.in_flight == 0


async def test_a_block_given_up_by_the_mount_is_not_staged_later(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A WriteBlock that hangs, is cancelled, and then would go on: after a Discard it must not come back."""
    async with listening(service) as (_, path), attached(Target(path, TENANT)) as pair:
        host = Host(pair)
        attributes = await host.store(b"file", b"old")
        go_on = trio.Event()
        append = service.store.append_each

        async def slow(*args: object) -> object:
            await go_on.wait()
            return await append(*args)

        monkeypatch.setattr(service.store, "append_each", slow)
        with trio.move_on_after(0.05):
            await host.write_block(attributes.ino, 0, b"stale")
        monkeypatch.undo()
        go_on.set()
        await host.write_block(attributes.ino, 0, b"new")
        await host.commit(attributes.ino, 3, base=0)
        assert await host.load(b"file") == b"new"
        assert pair.reconnects == 1


# --- attachments ---------------------------------------------------------------------------------------


async def test_a_farewell_drops_what_is_not_committed_at_once(service: Service) -> None:
    async with listening(service) as (served, path):
        async with attached(Target(path, TENANT)) as pair:
            host = Host(pair)
            await host.write_block(await host.allocate(), 0, b"staged")
            assert served.of_tenant(TENANT) == 1
        assert served.of_tenant(TENANT) == 0
        assert service.catalog.blocks.staged_bytes(1) == 0
        assert service.catalog.attachments.kept() == []
        with pytest.raises(ProtocolError, match="detached"):
            await pair.submit(StatFilesystem())


async def test_an_attachment_that_does_not_come_back_is_dropped_after_its_grace(service: Service) -> None:
    async with listening(service, ServerOptions(grace_ms=50)) as (served, path):
        stream, _ = await connect(Target(path, TENANT), Resume(), no_payload)
        assert served.of_tenant(TENANT) == 1
        stream.close()
        with trio.fail_after(10):
            while served.of_tenant(TENANT):  # noqa: ASYNC110 - polled from outside
                await trio.sleep(0.01)
        assert service.catalog.attachments.kept() == []


async def test_only_who_has_the_token_resumes(service: Service) -> None:
    async with listening(service) as (_, path):
        stream, welcome = await connect(Target(path, TENANT), Resume(), no_payload)
        for target, token in ((Target(path, TENANT), b"x" * 16), (Target(path, OTHER), welcome.token)):
            with pytest.raises(PermissionDeniedError, match="token"):
                await connect(target, Resume(welcome.attachment, token), no_payload)
        again, resumed = await connect(Target(path, TENANT), Resume(welcome.attachment, welcome.token), no_payload)
        assert (resumed.resumed, resumed.attachment) == (True, welcome.attachment)
        assert await stream.receive() is None, "the older connection gave way"
        for one in (stream, again):
            one.close()


async def test_attachments_of_a_tenant_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "ATTACHMENTS_PER_TENANT_MAX", 1)
    async with listening(service) as (_, path), attached(Target(path, TENANT)):
        with pytest.raises(TooManyOpenError):
            await connect(Target(path, TENANT), Resume(), no_payload)
        async with attached(Target(path, OTHER)):
            pass


# --- restarts ------------------------------------------------------------------------------------------


async def test_an_orderly_restart_is_gone_through_by_an_open_file(tmp_path: Path) -> None:
    """Staged blocks, numbers of new files, reserved quota and identities go on in the next daemon."""
    sock = listen(tmp_path / "s")
    async with trio.open_nursery() as nursery:
        async with serving(await make_pool(tmp_path)) as service, trio.open_nursery() as first:
            served = server.Server(service)
            first.start_soon(served.run, [sock.dup()])
            pair = await nursery.start(keep_attached, Target(tmp_path / "s", TENANT))
            host = Host(pair)
            half, empty = await host.allocate(), await host.allocate()
            await host.write_block(half, 0, BLOCK)
            await host.store(b"old", b"x" * 100)
            published = (await host.lookup(b"old")).ino
            await host.write_block(published, 0, b"y" * 50)
            await served.drain()
        async with serving(await reopen_pool(tmp_path)) as service, trio.open_nursery() as second:
            served = server.Server(service)
            second.start_soon(served.run, [sock])
            usage = (await host.submit(StatFilesystem())).result
            assert (usage.used_bytes, usage.used_objects) == (100 + limits.BLOCK_BYTES + 50, 2)
            await host.write_block(half, 1, b"tail")
            await host.commit(half, limits.BLOCK_BYTES + 4, b"half")
            await host.commit(empty, 0, b"empty")
            await host.commit(published, 50, base=0)
            assert await host.load(b"half") == BLOCK + b"tail"
            assert await host.load(b"old") == b"y" * 50
            assert await host.load(b"empty") == b""
            with pytest.raises(NotFoundError):
                await host.commit(half + 50_000, 0, b"never-given")
            usage = (await host.submit(StatFilesystem())).result
            assert (usage.used_bytes, usage.used_objects) == (limits.BLOCK_BYTES + 54, 3)
            assert pair.reconnects == 1
            await pair.aclose()
            await served.drain()
        nursery.cancel_scope.cancel()


async def keep_attached(target: Target, task_status: trio.TaskStatus) -> None:
    async with attached(target) as pair:
        task_status.started(pair)
        await trio.sleep_forever()


async def test_a_lost_attachment_is_told_before_anything_else_goes_out(service: Service) -> None:
    async with listening(service) as (served, path), attached(Target(path, TENANT)) as pair:
        host = Host(pair)
        ino = await host.allocate()
        await host.write_block(ino, 0, b"acknowledged")
        told: list[str] = []
        pair.on_state_lost(lambda: told.append("lost"))
        before = pair.attachment
        (attachment,) = served.table._attachments.values()
        await served.table.end(attachment)
        attachment.connection._stream.close()
        results: list[object] = []

        async def try_commit() -> None:
            try:
                await host.commit(ino, 12, b"holed")
            except StaleError as error:
                results.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_commit)
            assert (await host.submit(StatFilesystem())).result is not None, "a look goes on"
        assert told == ["lost"]
        assert len(results) == 1
        assert pair.attachment != before
        with pytest.raises(NotFoundError):
            await host.lookup(b"holed")
        with pytest.raises(NotFoundError):
            await host.commit(ino, 12, b"holed")


async def test_a_command_waits_for_the_daemon_until_its_deadline(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMMAND_DEADLINE_MS", 200)
    async with listening(service) as (served, path), attached(Target(path, TENANT)) as pair:
        await served.drain()
        with pytest.raises(DeadlineExceededError):
            await pair.submit(Lookup(1, b"x"))
        assert not pair.connected
        with pytest.raises(UnreachableError):
            await connect(Target(path, TENANT), Resume(), no_payload)


# --- refusals ------------------------------------------------------------------------------------------


async def test_a_stranger_is_refused_in_one_line_and_counted(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server.os, "geteuid", lambda: 4711)
    secret = b"s" * 32
    access = {TENANT: Access(credential_digests=frozenset({credential_digest(secret)}))}
    async with listening(service, ServerOptions(access=access.get)) as (_, path):
        for target in (Target(path, TENANT), Target(path, OTHER), Target(path, TENANT, b"w" * 32)):
            with pytest.raises(PermissionDeniedError):
                await connect(target, Resume(), no_payload)
        assert service.metrics.counters.attachments_refused == 3
        assert [record.levelname for record in caplog.records if record.name == "kvfsd.audit"] == ["WARNING"] * 3
        async with attached(Target(path, TENANT, secret)) as pair:
            await pair.submit(StatFilesystem())


async def raw(path: Path) -> FrameStream:
    """A connection that says what it likes."""
    connection = trio.socket.socket(trio.socket.AF_UNIX)
    await connection.connect(str(path))
    return FrameStream(socket.socket(fileno=connection.detach()))


async def test_who_does_not_say_hello_is_thrown_out(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HELLO_DEADLINE_MS", 100)
    async with listening(service) as (_, path), attached(Target(path, TENANT)) as pair:
        silent, wrong, garbage = [await raw(path) for _ in range(3)]
        await wrong.send(wire.encode_request(Request(0, 1, Lookup(1, b"x"))))
        await garbage.send([b"GET / HTTP/1.1\r\n\r\n"])
        with trio.fail_after(10):
            for stream in (silent, wrong, garbage):
                frame = await stream.receive()
                assert isinstance(frame.message, Welcome)
                assert frame.message.status != 0
                assert await stream.receive() is None
        await pair.submit(StatFilesystem())


async def test_strangers_of_one_user_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STRANGERS_PER_UID_MAX", 3)
    async with listening(service) as (_, path):
        waiting = [await raw(path) for _ in range(3)]
        one_more = await raw(path)
        with trio.fail_after(10):
            assert "too many" in (await one_more.receive()).message.detail
        for stream in (*waiting, one_more):
            stream.close()
        with trio.fail_after(10):
            async with attached(Target(path, TENANT)) as pair:
                await pair.submit(StatFilesystem())


async def let_in(path: Path, tenant: str = TENANT) -> FrameStream:
    stream = await raw(path)
    await stream.send(wire.encode_hello(Hello(0, tenant)))
    frame = await stream.receive()
    assert isinstance(frame.message, Welcome)
    assert frame.message.status == 0
    return stream


@pytest.mark.parametrize("nonsense", [b"x" * 64, wire.HEADER.pack(b"KVQP", 1, 2, 0, 5, 0), b"KVQP\x01\x01"])
async def test_nonsense_costs_the_sender_its_connection_and_nobody_else(
    service: Service, monkeypatch: pytest.MonkeyPatch, nonsense: bytes
) -> None:
    monkeypatch.setattr(framestream, "HALF_FRAME_DEADLINE_MS", 100)
    async with listening(service) as (_, path), attached(Target(path, OTHER)) as pair:
        stream = await let_in(path)
        await stream.send([nonsense])
        with trio.fail_after(10):
            assert await stream.receive() is None
        await pair.submit(StatFilesystem())


async def test_a_mount_that_takes_no_answers_is_dropped_and_bounded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framestream, "SEND_DEADLINE_MS", 300)
    async with listening(service) as (served, path), attached(Target(path, OTHER)) as pair:
        host = Host(pair)
        async with attached(Target(path, TENANT)) as own:
            attributes = await Host(own).store(b"file", BLOCK)
        stream = await let_in(path)
        taken = 0
        with trio.move_on_after(5):
            for sequence in range(1, 1000):
                request = Request(sequence % 256, sequence, ReadBlock(attributes.ino, 0, False))
                try:
                    await stream.send(wire.encode_request(request))
                except framestream.ConnectionLostError:
                    break
                taken += 1
                (slow,) = [one for one in served._connections if one._session.tenant == 1] or [None]
                assert slow is None or len(slow._running) <= DATA_DEPTH
                await trio.lowlevel.checkpoint()
        with trio.fail_after(10):
            while len(served._connections) > 1:  # noqa: ASYNC110 - polled from outside
                await trio.sleep(0.01)
        assert taken >= DATA_DEPTH
        await host.store(b"other", b"goes on")
        stream.close()


async def test_a_slot_with_two_commands_is_a_breach(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = trio.Event()

    async def slow(self: object) -> None:
        await gate.wait()

    monkeypatch.setattr(Service, "sync", slow)
    async with listening(service) as (_, path):
        stream = await let_in(path)
        for sequence in (1, 2):
            await stream.send(wire.encode_request(Request(0, sequence, Sync())))
        with trio.fail_after(10):
            assert await stream.receive() is None
        stream.close()


async def test_commands_in_flight_are_answered_when_the_daemon_drains(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = trio.Event()
    begun = trio.Event()

    async def slow(self: object) -> None:
        begun.set()
        await gate.wait()

    monkeypatch.setattr(Service, "sync", slow)
    async with listening(service) as (served, path), trio.open_nursery() as nursery:
        stream = await let_in(path)
        await stream.send(wire.encode_request(Request(0, 1, Sync())))
        await begun.wait()
        nursery.start_soon(served.drain)
        await trio.testing.wait_all_tasks_blocked()
        await stream.send(wire.encode_request(Request(1, 2, Lookup(1, b"x"))))
        gate.set()
        frame = await stream.receive()
        assert (frame.message.cid, frame.message.status) == (0, 0)
        with pytest.raises(framestream.ConnectionLostError):  # what came after the drain began is not answered
            await stream.receive()
        stream.close()
    assert len(service.catalog.attachments.kept()) == 1, "it may be resumed"


async def test_without_shared_slots_everything_goes_through_the_stream(service: Service, cutter: Cutter) -> None:
    async with listening(service) as (_, path), attached(Target(path, TENANT, features=0)) as pair:
        host = Host(pair)
        cutter.command = WriteBlock
        ino = await host.allocate()
        async with trio.open_nursery() as nursery:
            for block in range(DATA_DEPTH):
                nursery.start_soon(host.write_block, ino, block, BLOCK)
        await host.commit(ino, DATA_DEPTH * limits.BLOCK_BYTES, b"file")
        assert await host.load(b"file") == BLOCK * DATA_DEPTH
        assert cutter.cuts == 1


async def test_connections_leave_no_descriptors_behind(service: Service) -> None:
    async with listening(service) as (_, path):
        counts = []
        for _ in range(3):
            async with attached(Target(path, TENANT)) as pair:
                await Host(pair).store(b"file", BLOCK)
            await trio.testing.wait_all_tasks_blocked()
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[1] == counts[2]

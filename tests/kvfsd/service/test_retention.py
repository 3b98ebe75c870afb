"""user.kvfs.*: pins, priorities, time to live, defaults of directories, state; over restarts and rewrites."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from kvfs import retention
from kvfs.commands import (
    CloseObject,
    Commit,
    EntryGone,
    GetXattr,
    ListXattrs,
    MakeNode,
    OpenObject,
    Placement,
    ReadDirectory,
    RemoveXattr,
    Rename,
    SetXattr,
)
from kvfs.errors import InvalidArgumentError, KvfsError, NotFoundError, NotPermittedError, NoXattrError, Status
from kvfsd.catalog import retention_flags
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.kvfsd.serving import FILE_MODE, TENANT, Host, Layout, SteppingClock, make_pool, ports, reopen_pool, serving


class Ward(Host):
    """A host with attributes."""

    def __init__(self, service: Service) -> None:
        super().__init__(InProcessQueuePair(service.attach(TENANT)))
        self.service = service
        self.clock = service.pool.ports.clock
        self.now_ns = self.clock.wall_ns

    async def set(self, ino: int, name: bytes, value: bytes) -> None:
        await self.submit(SetXattr(ino, name, value, 0))

    async def get(self, ino: int, name: bytes) -> bytes:
        return (await self.submit(GetXattr(ino, name))).result.value

    async def listed(self, ino: int) -> set[bytes]:
        return set((await self.submit(ListXattrs(ino))).result.names)

    async def keep(self, name: bytes, attribute: bytes, value: bytes, size: int = 100) -> int:
        ino = (await self.store(name, bytes(size))).ino
        await self.set(ino, attribute, value)
        return ino

    async def there(self, *names: bytes, parent: int = 1) -> set[bytes]:
        found = set()
        for name in names:
            try:
                await self.lookup(name, parent)
            except NotFoundError:
                continue
            found.add(name)
        return found

    async def mkdir(self, name: bytes, parent: int = 1) -> int:
        return (await self.submit(MakeNode(parent, name, 0o040755, 0, 0, b""))).result.attributes.ino

    async def store_with(self, name: bytes, xattrs: tuple[tuple[bytes, bytes], ...], parent: int = 1) -> int:
        ino = await self.allocate()
        await self.write_block(ino, 0, bytes(100))
        now = self.now_ns()
        entry = Placement(parent, name)
        await self.submit(Commit(ino, entry, 100, 0, FILE_MODE, 1, 1, now, now, now, xattrs, keep_open=False))
        return ino


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    clock = SteppingClock()
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=1000), the_ports=ports(clock))) as service:
        yield Ward(service)


# --- pins and priorities -------------------------------------------------------------------------------


async def test_a_pinned_object_is_never_evicted_until_it_is_unpinned(ward: Ward) -> None:
    ino = await ward.keep(b"pinned", retention.PIN, b"1")
    assert await ward.get(ino, retention.STATE) == b"sealed pinned"
    for number in range(20):
        await ward.store(b"%d" % number, bytes(100))
    assert await ward.there(b"pinned", b"0") == {b"pinned"}
    await ward.set(ino, retention.PIN, b"0")
    for number in range(20, 30):
        await ward.store(b"%d" % number, bytes(100))
    assert await ward.there(b"pinned") == set()


async def test_pins_take_a_share_of_the_quota_at_most(ward: Ward) -> None:
    for number in range(5):
        await ward.keep(b"%d" % number, retention.PIN, b"1")
    ino = (await ward.store(b"one too many", bytes(100))).ino
    with pytest.raises(KvfsError) as raised:
        await ward.set(ino, retention.PIN, b"1")
    assert raised.value.status is Status.QUOTA_EXCEEDED
    assert await ward.listed(ino) == set()
    for number in range(20):
        await ward.store(b"more%d" % number, bytes(100))
    assert await ward.there(*(b"%d" % number for number in range(5))) == {b"%d" % number for number in range(5)}
    assert ward.service.metrics.counters.evicted_objects > 0
    pinned = (await ward.lookup(b"0")).ino
    await ward.submit(RemoveXattr(pinned, retention.PIN))
    ino = (await ward.store(b"another", bytes(100))).ino
    await ward.set(ino, retention.PIN, b"1")


async def test_what_has_a_lower_priority_goes_first(ward: Ward) -> None:
    await ward.keep(b"high", retention.PRIORITY, b"5")
    for number in range(8):
        await ward.store(b"%d" % number, bytes(100))
    await ward.keep(b"low", retention.PRIORITY, b"-5")
    await ward.load(b"low")
    await ward.store(b"x", bytes(300))
    assert await ward.there(b"low", b"0", b"1", b"2", b"high") == {b"2", b"high"}


# --- time to live --------------------------------------------------------------------------------------


async def test_what_has_expired_is_a_miss_at_once(ward: Ward) -> None:
    ino = await ward.keep(b"short", retention.TTL, b"10")
    await ward.store(b"stays", b"")
    assert await ward.get(ino, retention.STATE) == b"sealed expiring"
    ward.clock.advance_ms(9_000)
    assert await ward.there(b"short") == {b"short"}
    ward.clock.advance_ms(1_500)
    listing = (await ward.submit(ReadDirectory(1, 0, 100))).result
    assert [entry.name for entry in listing.entries] == [b"stays"]
    with pytest.raises(NotFoundError):
        await ward.submit(OpenObject(ino, serial=1))
    assert ward.service.pool.tenants.show(TENANT).used_objects == 1
    assert EntryGone(1, b"short") in ward.pair.take_events()
    assert ward.service.metrics.counters.expired_objects == 1
    await ward.mkdir(b"short")


async def test_an_expired_name_can_be_stored_anew_and_lives_on_when_it_is_rewritten(ward: Ward) -> None:
    await ward.keep(b"short", retention.TTL, b"10")
    ward.clock.advance_ms(20_000)
    assert await ward.there(b"short") == set()
    ino = await ward.keep(b"short", retention.TTL, b"10")
    ward.clock.advance_ms(7_000)
    await ward.write_block(ino, 0, b"new")
    await ward.commit(ino, 3)
    ward.clock.advance_ms(7_000)
    assert await ward.load(b"short") == b"new"
    await ward.set(ino, retention.TTL, b"0")
    ward.clock.advance_ms(70_000)
    assert await ward.there(b"short") == {b"short"}


async def test_the_background_removes_what_has_expired(ward: Ward, autojump_clock: trio.testing.MockClock) -> None:
    ino = await ward.keep(b"short", retention.TTL, b"10")
    await ward.set(ino, retention.PIN, b"1")
    await trio.sleep(1)
    assert ward.service.metrics.counters.expired_objects == 0
    ward.clock.advance_ms(10_500)
    await trio.sleep(1)
    assert ward.service.metrics.counters.expired_objects == 1
    assert ward.service.pool.tenants.show(TENANT).used_bytes == 0


async def test_what_expires_while_it_is_open_is_readable_until_it_is_closed(ward: Ward) -> None:
    ino = await ward.keep(b"short", retention.TTL, b"10")
    await ward.submit(OpenObject(ino, serial=1))
    ward.clock.advance_ms(11_000)
    assert await ward.there(b"short") == set()
    assert await ward.read_block(ino) == bytes(100)
    assert ward.service.pool.tenants.show(TENANT).used_bytes == 100
    await ward.submit(CloseObject(ino, 1))
    assert ward.service.pool.tenants.show(TENANT).used_bytes == 0
    with pytest.raises(NotFoundError):
        await ward.read_block(ino)


# --- defaults of directories ---------------------------------------------------------------------------


async def test_new_objects_get_what_the_nearest_directory_says(ward: Ward) -> None:
    upper = await ward.mkdir(b"upper")
    lower = await ward.mkdir(b"lower", upper)
    before = await ward.store_with(b"before", (), lower)
    await ward.set(upper, retention.PRIORITY, b"7")
    await ward.set(upper, retention.TTL, b"100")
    await ward.set(lower, retention.PRIORITY, b"-3")
    assert await ward.get(upper, retention.PRIORITY) == b"7"
    assert await ward.get(upper, retention.STATE) == b"directory expiring"
    after = await ward.store_with(b"after", (), lower)
    own = await ward.store_with(b"own", ((retention.TTL, b"5"), (b"user.other", b"x")), lower)
    assert await ward.listed(before) == set()
    assert await ward.listed(after) == {retention.PRIORITY, retention.TTL}
    assert (await ward.get(after, retention.PRIORITY), await ward.get(after, retention.TTL)) == (b"-3", b"100")
    assert await ward.get(own, retention.TTL) == b"5"
    assert await ward.get(own, b"user.other") == b"x"
    ward.clock.advance_ms(6_000)
    assert await ward.there(b"before", b"after", b"own", parent=lower) == {b"before", b"after"}
    ward.clock.advance_ms(100_000)
    assert await ward.there(b"before", b"after", parent=lower) == {b"before"}


async def test_a_directory_that_moves_brings_others_above_it(ward: Ward) -> None:
    pinning, plain = await ward.mkdir(b"pinning"), await ward.mkdir(b"plain")
    child = await ward.mkdir(b"child", pinning)
    await ward.set(pinning, retention.PIN, b"1")
    assert b"pinned" in await ward.get(await ward.store_with(b"1", (), child), retention.STATE)
    await ward.submit(Rename(pinning, b"child", plain, b"child", 0, keep_open=False))
    assert await ward.get(await ward.store_with(b"2", (), child), retention.STATE) == b"sealed"
    await ward.set(plain, retention.PIN, b"1")
    await ward.set(child, retention.PIN, b"0")
    assert await ward.get(await ward.store_with(b"3", (), child), retention.STATE) == b"sealed"
    await ward.submit(RemoveXattr(child, retention.PIN))
    assert b"pinned" in await ward.get(await ward.store_with(b"4", (), child), retention.STATE)


async def test_a_default_pin_without_room_is_left_out_and_told(ward: Ward, caplog: pytest.LogCaptureFixture) -> None:
    directory = await ward.mkdir(b"pinning")
    await ward.set(directory, retention.PIN, b"1")
    for number in range(6):
        await ward.store_with(b"%d" % number, (), directory)
    assert await ward.listed((await ward.lookup(b"5", directory)).ino) == set()
    assert ward.service.metrics.counters.pins_refused == 1
    assert "is not pinned" in caplog.text


# --- refusals, state, restarts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (retention.PIN, b"yes", InvalidArgumentError),
        (retention.TTL, b"-5", InvalidArgumentError),
        (b"user.kvfs.unknown", b"1", InvalidArgumentError),
        (retention.STATE, b"sealed", NotPermittedError),
    ],
)
async def test_bad_settings_are_refused_with_a_line_in_the_log(
    ward: Ward, name: bytes, value: bytes, error: type[KvfsError], caplog: pytest.LogCaptureFixture
) -> None:
    ino = (await ward.store(b"file", b"x")).ino
    with pytest.raises(error):
        await ward.set(ino, name, value)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert name.decode() in caplog.text
    assert await ward.listed(ino) == set()
    with pytest.raises(error):
        await ward.store_with(b"new", ((name, value),))
    with pytest.raises(NoXattrError):
        await ward.submit(RemoveXattr(ino, name))
    link = (await ward.submit(MakeNode(1, b"link", 0o120777, 0, 0, b"file"))).result.attributes.ino
    with pytest.raises(InvalidArgumentError):
        await ward.set(link, retention.PIN, b"1")


async def test_settings_survive_restarts_and_are_in_the_metadata_log(tmp_path: Path) -> None:
    clock = SteppingClock()
    async with serving(await make_pool(tmp_path, Layout(quota_bytes=1000), the_ports=ports(clock))) as service:
        ward = Ward(service)
        ino = await ward.keep(b"pinned", retention.PIN, b"1")
        await ward.set(ino, retention.PRIORITY, b"-9")
    async with serving(await reopen_pool(tmp_path, the_ports=ports(clock))) as service:
        ward = Ward(service)
        assert await ward.listed(ino) == {retention.PIN, retention.PRIORITY}
        row = service.catalog.inodes.get(1, ino)
        assert row.flags & retention_flags.PINNED
        assert retention_flags.priority_of(row.flags) == -9
        for number in range(12):
            await ward.store(b"%d" % number, bytes(100))
        assert await ward.there(b"pinned") == {b"pinned"}
        await ward.write_block(ino, 0, bytes(50))
        await ward.commit(ino, 50)
        assert service.catalog.inodes.get(1, ino).flags == row.flags, "a rewrite leaves them"
        await ward.submit(OpenObject(ino, serial=3))
        assert await ward.get(ino, retention.STATE) == b"sealed open pinned"

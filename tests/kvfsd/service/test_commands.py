"""Every command through the queue pair, in process and through the codec: results, statuses, bounds."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvfs import limits
from kvfs.commands import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Commit,
    Discard,
    Done,
    FilesystemUsage,
    Found,
    GetAttributes,
    GetXattr,
    Link,
    ListXattrs,
    Lookup,
    MakeNode,
    OpenObject,
    Placement,
    ReadBlock,
    ReadDirectory,
    ReadLink,
    ReleaseUnlinked,
    Removed,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    StatFilesystem,
    Unlink,
    WriteBlock,
)
from kvfs.errors import (
    ExistsError,
    FileTooLargeError,
    InvalidArgumentError,
    IsDirectoryError,
    KvfsError,
    NameTooLongError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    NoXattrError,
    XattrTooLargeError,
)
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.kvfsd.serving import ALL_TRANSPORTS, FILE_MODE, OTHER, TENANT, Host, host_of, make_pool, serving

DIRECTORY = stat.S_IFDIR | 0o755
LINK = stat.S_IFLNK | 0o777
BAD_NAMES = [b"", b".", b"..", b"a/b", b"a\0b"]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(await make_pool(tmp_path)) as service:
        yield service


@pytest.fixture(params=ALL_TRANSPORTS)
async def host(request: pytest.FixtureRequest, service: Service) -> AsyncIterator[Host]:
    async with host_of(request.param, service) as host:
        yield host


async def make_directory(host: Host, name: bytes, parent: int = 1) -> int:
    result = (await host.submit(MakeNode(parent, name, DIRECTORY, 5, 6, b""))).result
    assert isinstance(result, Found)
    return result.attributes.ino


async def names_in(host: Host, ino: int = 1, limit: int = 100) -> list[bytes]:
    names: list[bytes] = []
    cookie, end = 0, False
    while not end:
        listing = (await host.submit(ReadDirectory(ino, cookie, limit))).result
        names += [entry.name for entry in listing.entries]
        cookie = listing.entries[-1].cookie if listing.entries else cookie
        end = listing.end
    return sorted(names)


# --- names ---------------------------------------------------------------------------------------------


async def test_the_root_is_ino_1_whatever_it_is_inside(host: Host, service: Service) -> None:
    found = (await host.submit(GetAttributes(1))).result
    assert isinstance(found, Found)
    assert found.attributes.ino == 1
    assert stat.S_ISDIR(found.attributes.mode)
    assert service.pool.tenants.show(TENANT).root_ino != 1


async def test_lookup_finds_what_was_made_and_misses_the_rest(host: Host) -> None:
    ino = await make_directory(host, b"d")
    attributes = await host.lookup(b"d")
    assert (attributes.ino, attributes.mode, attributes.uid, attributes.gid) == (ino, DIRECTORY, 5, 6)
    for name in (b"D", b"d ", b"\xff\xfe", b"x" * 255):
        with pytest.raises(NotFoundError):
            await host.lookup(name)
    with pytest.raises(NotFoundError):
        await host.lookup(b"d", parent=ino)
    with pytest.raises(NotFoundError):
        await host.lookup(b"d", parent=1 << 40)


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_names_that_no_directory_has_are_refused(host: Host, name: bytes) -> None:
    for command in (
        Lookup(1, name),
        MakeNode(1, name, DIRECTORY, 0, 0, b""),
        Unlink(1, name, False),
        RemoveDirectory(1, name),
        Rename(1, b"a", 1, name, 0, False),
        Rename(1, name, 1, b"a", 0, False),
        Link(2, 1, name),
    ):
        with pytest.raises(InvalidArgumentError):
            await host.submit(command)


async def test_a_name_of_255_bytes_is_the_longest(host: Host) -> None:
    await make_directory(host, b"n" * 255)
    assert await names_in(host) == [b"n" * 255]
    with pytest.raises(NameTooLongError):
        await make_directory(host, b"n" * 256)
    with pytest.raises(NameTooLongError):
        await host.lookup(b"n" * 256)


async def test_every_byte_but_slash_and_nul_may_be_in_a_name(host: Host) -> None:
    names = sorted(bytes([byte, 65]) for byte in range(1, 256) if byte != ord("/"))
    for name in names:
        await make_directory(host, name)
    assert await names_in(host, limit=7) == names


async def test_tenants_do_not_see_each_other(service: Service) -> None:
    one, other = (Host(InProcessQueuePair(service.attach(name))) for name in (TENANT, OTHER))
    attributes = await one.store(b"secret", b"data")
    with pytest.raises(NotFoundError):
        await other.lookup(b"secret")
    for command in (
        GetAttributes(attributes.ino),
        OpenObject(attributes.ino),
        ReadBlock(attributes.ino, 0, False),
        ListXattrs(attributes.ino),
        Link(attributes.ino, 1, b"mine"),
        WriteBlock(attributes.ino, 0),
        SetAttributes(attributes.ino, 0o777, None, None, None, None, 1),
    ):
        with pytest.raises(NotFoundError):
            await other.submit(command, b"x" if isinstance(command, WriteBlock) else b"")
    await other.submit(ReleaseUnlinked(attributes.ino))
    await other.submit(Discard(attributes.ino, 0))
    assert await one.load(b"secret") == b"data"
    root = service.pool.tenants.show(TENANT).root_ino
    with pytest.raises(NotFoundError):
        await other.lookup(b"secret", parent=root)


async def test_links_targets_and_removal(host: Host) -> None:
    attributes = await host.store(b"file", b"data")
    linked = (await host.submit(Link(attributes.ino, 1, b"second"))).result
    assert linked.attributes.nlink == 2
    assert (await host.submit(Unlink(1, b"file", False))).result == Removed(attributes.ino, 1)
    assert await host.load(b"second") == b"data"
    made = (await host.submit(MakeNode(1, b"link", LINK, 0, 0, b"../target\xff"))).result
    assert made.attributes.size == len(b"../target\xff")
    assert (await host.submit(ReadLink(made.attributes.ino))).result.value == b"../target\xff"
    with pytest.raises(InvalidArgumentError):
        await host.submit(ReadLink(attributes.ino))
    directory = await make_directory(host, b"dir")
    await make_directory(host, b"inner", directory)
    with pytest.raises(NotEmptyError):
        await host.submit(RemoveDirectory(1, b"dir"))
    with pytest.raises(IsDirectoryError):
        await host.submit(Unlink(1, b"dir", False))
    with pytest.raises(NotDirectoryError):
        await host.submit(RemoveDirectory(1, b"second"))
    await host.submit(RemoveDirectory(directory, b"inner"))
    assert (await host.submit(RemoveDirectory(1, b"dir"))).result == Removed(directory, 0)
    with pytest.raises(NotFoundError):
        await host.submit(Unlink(1, b"file", False))


async def test_renames_carry_names_into_other_directories(host: Host) -> None:
    directory = await make_directory(host, b"dir")
    one, two = await host.store(b"one", b"1"), await host.store(b"two", b"2")
    assert (await host.submit(Rename(1, b"one", directory, b"moved", 0, False))).result == Removed(0, 0)
    assert (await host.lookup(b"moved", directory)).ino == one.ino
    assert await names_in(host, directory) == [b"moved"]
    with pytest.raises(ExistsError):
        await host.submit(Rename(1, b"two", directory, b"moved", RENAME_NOREPLACE, False))
    await host.submit(Rename(1, b"two", directory, b"moved", RENAME_EXCHANGE, False))
    assert (await host.lookup(b"two")).ino == one.ino
    replaced = (await host.submit(Rename(1, b"two", directory, b"moved", 0, False))).result
    assert replaced == Removed(two.ino, 0)
    with pytest.raises(InvalidArgumentError):
        await host.submit(Rename(1, b"dir", directory, b"inside itself", 0, False))
    for flags in (3, 4, -1, 1 << 40):
        with pytest.raises(InvalidArgumentError):
            await host.submit(Rename(1, b"dir", 1, b"x", flags, False))


async def test_a_listing_is_resumed_by_cookie_and_bounded(host: Host) -> None:
    for number in range(40):
        await host.store(b"f%d" % number, b"")
    listing = (await host.submit(ReadDirectory(1, 0, 7))).result
    assert 7 <= len(listing.entries) < 10
    assert not listing.end
    assert len(await names_in(host, limit=7)) == 40
    assert (await host.submit(ReadDirectory(1, 0, 1 << 60))).result.end
    for cookie, limit in ((-1, 5), (1 << 63, 5), (0, 0), (0, -1)):
        with pytest.raises(InvalidArgumentError):
            await host.submit(ReadDirectory(1, cookie, limit))


# --- attributes ----------------------------------------------------------------------------------------


async def test_attributes_are_set_one_by_one(host: Host) -> None:
    ino = (await host.store(b"file", b"data")).ino
    result = (await host.submit(SetAttributes(ino, 0o100600, 7, None, 11, None, 13))).result
    assert isinstance(result, Found)
    after = result.attributes
    assert (after.mode, after.uid, after.gid) == (stat.S_IFREG | 0o600, 7, 1000)
    assert (after.atime_ns, after.mtime_ns, after.ctime_ns) == (11, 2, 13)
    root = (await host.submit(SetAttributes(1, 0o700, None, None, None, None, 5))).result
    assert root.attributes.ino == 1
    for bad in (
        SetAttributes(ino, -1, None, None, None, None, 0),
        SetAttributes(ino, None, 1 << 32, None, None, None, 0),
        SetAttributes(ino, None, None, -1, None, None, 0),
        SetAttributes(ino, None, None, None, 1 << 63, None, 0),
        SetAttributes(ino, None, None, None, None, None, -(1 << 63)),
    ):
        with pytest.raises(InvalidArgumentError):
            await host.submit(bad)


async def test_times_before_1970_are_kept(host: Host) -> None:
    ino = (await host.store(b"file", b"data")).ino
    await host.submit(SetAttributes(ino, None, None, None, -5, -7, 3))
    after = await host.lookup(b"file")
    assert (after.atime_ns, after.mtime_ns) == (-5, -7)


async def test_xattrs(host: Host) -> None:
    ino = (await host.store(b"file", b"data")).ino
    await host.submit(SetXattr(ino, b"user.crc", b"\x00\xff", 1))
    await host.submit(SetXattr(ino, b"user.empty", b"", 0))
    with pytest.raises(ExistsError):
        await host.submit(SetXattr(ino, b"user.crc", b"x", 1))
    with pytest.raises(NoXattrError):
        await host.submit(SetXattr(ino, b"user.none", b"x", 2))
    assert (await host.submit(GetXattr(ino, b"user.crc"))).result.value == b"\x00\xff"
    assert (await host.submit(GetXattr(ino, b"user.empty"))).result.value == b""
    assert sorted((await host.submit(ListXattrs(ino))).result.names) == [b"user.crc", b"user.empty"]
    await host.submit(RemoveXattr(ino, b"user.crc"))
    for gone in (GetXattr(ino, b"user.crc"), RemoveXattr(ino, b"user.crc")):
        with pytest.raises(NoXattrError):
            await host.submit(gone)
    with pytest.raises(XattrTooLargeError):
        await host.submit(SetXattr(ino, b"user.big", bytes(limits.XATTR_VALUE_MAX_BYTES + 1), 0))
    with pytest.raises(NameTooLongError):
        await host.submit(SetXattr(ino, b"n" * 256, b"", 0))
    for name in (b"", b"a\0b"):
        with pytest.raises(InvalidArgumentError):
            await host.submit(GetXattr(ino, name))


async def test_xattrs_come_with_a_commit(host: Host) -> None:
    ino = await host.allocate()
    xattrs = ((b"user.a", b"1"), (b"user.b", b"2"))
    await host.submit(Commit(ino, Placement(1, b"file"), 0, 0, FILE_MODE, 0, 0, 1, 2, 3, xattrs, False))
    assert (await host.submit(GetXattr(ino, b"user.b"))).result.value == b"2"
    other = await host.allocate()
    many = tuple((b"user.%d" % number, bytes(60_000)) for number in range(3))
    with pytest.raises(XattrTooLargeError):
        await host.submit(Commit(other, Placement(1, b"other"), 0, 0, FILE_MODE, 0, 0, 1, 2, 3, many, False))


async def test_a_read_shows_in_the_access_time_at_once(host: Host) -> None:
    ino = (await host.store(b"file", b"data")).ino
    before = (await host.lookup(b"file")).atime_ns
    opened = (await host.submit(OpenObject(ino))).result
    assert opened.attributes.atime_ns > before
    assert (await host.lookup(b"file")).atime_ns == opened.attributes.atime_ns


# --- files ---------------------------------------------------------------------------------------------


async def test_nothing_is_visible_before_the_commit(host: Host) -> None:
    ino = await host.allocate()
    await host.write_block(ino, 0, b"data")
    assert await names_in(host) == []
    with pytest.raises(NotFoundError):
        await host.submit(GetAttributes(ino))
    assert await host.read_block(ino, staged=True) == b"data"
    attributes = await host.commit(ino, 4, b"file")
    assert attributes == await host.lookup(b"file")
    assert (attributes.size, attributes.stored_bytes, attributes.nlink) == (4, 4, 1)
    assert (attributes.atime_ns, attributes.mtime_ns, attributes.ctime_ns) == (1, 2, 3)
    assert await names_in(host) == [b"file"]


async def test_commits_replace_cut_and_extend(host: Host) -> None:
    size = 3 * limits.BLOCK_BYTES
    data = os.urandom(size)
    first = await host.store(b"file", data)
    await host.write_block(first.ino, 1, b"short")
    second = await host.commit(first.ino, size, base=size)
    assert second.generation > first.generation
    assert second.stored_bytes == 2 * limits.BLOCK_BYTES + 5
    assert await host.read_block(first.ino, 1) == b"short"
    assert await host.read_block(first.ino, 2) == data[2 * limits.BLOCK_BYTES :]
    third = await host.commit(first.ino, 10, base=10)
    assert (third.size, third.stored_bytes) == (10, limits.BLOCK_BYTES)
    assert await host.read_block(first.ino, 1) == b""
    sparse = await host.commit(first.ino, limits.FILE_MAX_BYTES, base=10)
    assert sparse.size == limits.FILE_MAX_BYTES
    replaced = await host.store(b"file", b"new")
    assert replaced.ino != first.ino
    with pytest.raises(NotFoundError):
        await host.submit(GetAttributes(first.ino))


async def test_discard_forgets_what_was_not_committed(host: Host) -> None:
    attributes = await host.store(b"file", b"committed")
    for block in range(3):
        await host.write_block(attributes.ino, block, b"staged")
    await host.submit(Discard(attributes.ino, 1))
    assert await host.read_block(attributes.ino, 0, staged=True) == b"staged"
    assert await host.read_block(attributes.ino, 1, staged=True) == b""
    await host.submit(Discard(attributes.ino, 0))
    assert await host.read_block(attributes.ino, 0, staged=True) == b"committed"


async def test_an_unlinked_file_that_is_open_stays_until_its_release(host: Host) -> None:
    attributes = await host.store(b"file", b"data")
    assert (await host.submit(Unlink(1, b"file", True))).result == Removed(attributes.ino, 0)
    assert await host.read_block(attributes.ino) == b"data"
    assert (await host.submit(GetAttributes(attributes.ino))).result.attributes.nlink == 0
    usage = (await host.submit(StatFilesystem())).result
    assert isinstance(usage, FilesystemUsage)
    assert (usage.used_bytes, usage.used_objects) == (4, 1)
    assert (await host.submit(ReleaseUnlinked(attributes.ino))).result == Done()
    with pytest.raises(NotFoundError):
        await host.read_block(attributes.ino)
    assert (await host.submit(StatFilesystem())).result.used_bytes == 0
    await host.submit(ReleaseUnlinked(attributes.ino))
    await host.submit(ReleaseUnlinked(1 << 50))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"size": -1}, FileTooLargeError),
        ({"size": limits.FILE_MAX_BYTES + 1}, FileTooLargeError),
        ({"base_limit_bytes": -1}, FileTooLargeError),
        ({"base_limit_bytes": 1 << 63}, FileTooLargeError),
        ({"mode": DIRECTORY}, InvalidArgumentError),
        ({"mode": -1}, InvalidArgumentError),
        ({"mode": FILE_MODE | 1 << 20}, InvalidArgumentError),
        ({"uid": -1}, InvalidArgumentError),
        ({"gid": 1 << 40}, InvalidArgumentError),
        ({"mtime_ns": 1 << 63}, InvalidArgumentError),
        ({"ino": 0}, InvalidArgumentError),
        ({"ino": -5}, InvalidArgumentError),
        ({"ino": 1}, NotFoundError),
        ({"ino": 1 << 40}, NotFoundError),
        ({"entry": Placement(1, b"a/b")}, InvalidArgumentError),
        ({"entry": Placement(1 << 41, b"a")}, NotFoundError),
        ({"entry": None}, InvalidArgumentError),
        ({"xattrs": ((b"", b""),)}, InvalidArgumentError),
    ],
)
async def test_commits_that_make_no_sense_change_nothing(
    host: Host, changed: dict[str, object], error: type[KvfsError]
) -> None:
    ino = await host.allocate()
    await host.write_block(ino, 0, b"data")
    good: dict[str, object] = {
        "ino": ino,
        "entry": Placement(1, b"file"),
        "size": 4,
        "base_limit_bytes": 0,
        "mode": FILE_MODE,
        "uid": 0,
        "gid": 0,
        "atime_ns": 1,
        "mtime_ns": 1,
        "ctime_ns": 1,
        "xattrs": (),
        "keep_open": False,
    }
    with pytest.raises(error):
        await host.submit(Commit(**(good | changed)))
    assert await names_in(host) == []
    await host.submit(Commit(**good))
    assert await host.load(b"file") == b"data"


async def test_an_object_is_published_once_and_only_by_who_allocated_it(service: Service, host: Host) -> None:
    other = Host(InProcessQueuePair(service.attach(TENANT)))
    ino = await host.allocate()
    with pytest.raises(NotFoundError):
        await other.commit(ino, 0, b"stolen")
    with pytest.raises(NotFoundError):
        await other.write_block(ino, 0, b"x")
    await host.commit(ino, 0, b"file")
    with pytest.raises(NotFoundError):
        await host.commit(ino, 0, b"again")


@pytest.mark.parametrize("ino", [0, -1, 1 << 63, 1 << 70])
async def test_numbers_that_no_object_has_are_refused(service: Service, ino: int) -> None:
    host = Host(InProcessQueuePair(service.attach(TENANT)))
    for command in (
        GetAttributes(ino),
        ReadDirectory(ino, 0, 1),
        OpenObject(ino),
        ReadBlock(ino, 0, True),
        Discard(ino, 0),
        ReleaseUnlinked(ino),
        Lookup(ino, b"x"),
        SetXattr(ino, b"user.a", b"", 0),
        Link(ino, 1, b"x"),
    ):
        with pytest.raises(InvalidArgumentError):
            await host.submit(command)
    with pytest.raises(InvalidArgumentError):
        await host.submit(WriteBlock(ino, 0), b"x")


async def test_nodes_of_other_kinds_are_refused(host: Host) -> None:
    for mode, target in (
        (stat.S_IFREG | 0o644, b""),
        (stat.S_IFBLK | 0o644, b""),
        (0o755, b""),
        (DIRECTORY | 1 << 20, b""),
        (LINK, b""),
        (DIRECTORY, b"target"),
        (LINK, b"a\0b"),
    ):
        with pytest.raises(InvalidArgumentError):
            await host.submit(MakeNode(1, b"node", mode, 0, 0, target))
    with pytest.raises(NameTooLongError):
        await host.submit(MakeNode(1, b"node", LINK, 0, 0, b"x" * (limits.SYMLINK_MAX_BYTES + 1)))
    await host.submit(MakeNode(1, b"fifo", stat.S_IFIFO | 0o644, 0, 0, b""))


async def test_data_in_a_directory_is_refused(host: Host) -> None:
    ino = await make_directory(host, b"d")
    for number in (ino, 1):
        with pytest.raises((InvalidArgumentError, NotFoundError)):
            await host.write_block(number, 0, b"x")
        with pytest.raises((InvalidArgumentError, NotFoundError)):
            await host.commit(number, 0)

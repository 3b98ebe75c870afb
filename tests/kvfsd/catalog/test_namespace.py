"""Names, links and removal, by the rules of the system calls."""

from __future__ import annotations

import stat

import pytest

from kvfs import limits
from kvfs.errors import (
    ExistsError,
    IsDirectoryError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
    QuotaExceededError,
    TooManyLinksError,
)
from kvfsd.catalog.inodes import AttributeChange
from kvfsd.catalog.rows import Entry, RemovedName, cookie_of
from tests.kvfsd.catalog.world import ATTACHMENT, DIRECTORY, FULL, World, sealed


def test_a_miss_is_none_and_a_hit_is_the_row(world: World) -> None:
    assert world.lookup("a") is None
    ino = world.store("a")
    row = world.lookup("a")
    assert row is not None
    assert (row.ino, row.nlink, row.size, row.stored_bytes) == (ino, 1, 2 * FULL, 2 * FULL)


def test_another_tenant_finds_nothing(world: World) -> None:
    other_root = world.add_tenant(2)
    ino = world.store("a")
    namespace, inodes = world.catalog.namespace, world.catalog.inodes
    assert namespace.lookup(2, world.root, sealed("a")) is None
    assert namespace.lookup(2, other_root, sealed("a")) is None
    assert world.catalog.blocks.locate(2, ino, 0) is None
    for call in (
        lambda: inodes.get(2, ino),
        lambda: namespace.list_directory(2, world.root, 0, 10),
        lambda: namespace.add_link(Entry(2, other_root, sealed("x")), ino, 1),
        lambda: namespace.insert_node(Entry(2, world.root, sealed("x")), world.node()),
        lambda: world.catalog.xattrs.set(2, ino, (b"n", b"v"), 0, 1),
        lambda: inodes.set_attributes(2, ino, AttributeChange(ctime_ns=1, mode=0)),
        lambda: namespace.remove_entry(Entry(2, world.root, sealed("a")), 1),
    ):
        with pytest.raises(NotFoundError), world.catalog.transaction():
            call()


def test_a_directory_counts_its_subdirectories_and_dates_its_changes(world: World) -> None:
    first = world.mkdir("d")
    world.mkdir("sub", first)
    row = world.catalog.inodes.get(1, first)
    assert (row.nlink, row.parent) == (3, world.root)
    assert row.mtime_ns == row.ctime_ns == world.clock
    assert world.catalog.inodes.get(1, world.root).nlink == 3


def test_taken_names_and_parents_that_are_none(world: World) -> None:
    ino = world.store("file")
    with pytest.raises(ExistsError):
        world.mkdir("file")
    with pytest.raises(NotDirectoryError):
        world.mkdir("below", ino)
    with pytest.raises(NotFoundError):
        world.mkdir("nowhere", 999)


def test_listing_resumes_exactly_and_each_name_comes_once(world: World) -> None:
    names = {sealed(f"n{number}") for number in range(40)}
    for number in range(40):
        world.mkdir(f"n{number}")
    listed = list(world.names())
    assert len(listed) == 40
    assert set(listed) == names
    assert listed == sorted(listed, key=cookie_of)


def test_listing_is_not_moved_by_names_that_come_and_go(world: World) -> None:
    for number in range(20):
        world.mkdir(f"n{number}")
    namespace = world.catalog.namespace
    batch, end = namespace.list_directory(1, world.root, 0, 10)
    assert not end
    with world.catalog.transaction():
        namespace.remove_directory(Entry(1, world.root, batch[9].name), 5)
        namespace.remove_directory(Entry(1, world.root, batch[0].name), 5)
    rest, _ = namespace.list_directory(1, world.root, batch[-1].cookie, 50)
    assert len({one.name for one in batch} | {one.name for one in rest}) == 20


def test_names_that_share_a_cookie_come_in_one_batch(world: World) -> None:
    twins = [b"\x80" * 8 + bytes([number]) for number in range(5)]
    for name in twins:
        with world.catalog.transaction():
            world.catalog.namespace.insert_node(Entry(1, world.root, name), world.node())
    batch, end = world.catalog.namespace.list_directory(1, world.root, 0, 2)
    assert [one.name for one in batch] == twins
    assert not end
    assert world.catalog.namespace.list_directory(1, world.root, batch[-1].cookie, 2) == ([], True)
    assert all(world.catalog.namespace.lookup(1, world.root, name) for name in twins)


@pytest.mark.parametrize("name", [b"", b"\0", b"\0" * 30, b"\xff" * 300])
def test_a_cookie_fits_its_range_whatever_the_name(name: bytes) -> None:
    assert 1 <= cookie_of(name) < 1 << 62


def test_the_last_unlink_frees_object_blocks_and_charge(world: World) -> None:
    ino = world.store("a")
    assert world.catalog.tenants.get(1).used_bytes == 2 * FULL
    assert world.unlink("a") == RemovedName(ino, 0)
    assert world.catalog.inodes.find(1, ino) is None
    assert world.catalog.blocks.locate(1, ino, 0) is None
    tenant = world.catalog.tenants.get(1)
    assert (tenant.used_bytes, tenant.used_objects) == (0, 0)
    assert world.catalog.segments.get(0, 0).live_bytes == 0


def test_hard_links_share_object_and_charge(world: World) -> None:
    ino = world.store("a")
    with world.catalog.transaction():
        row = world.catalog.namespace.add_link(world.entry("b"), ino, world.now())
    assert row.nlink == 2
    assert world.catalog.tenants.get(1).used_bytes == 2 * FULL
    assert world.unlink("a") == RemovedName(ino, 1)
    found = world.lookup("b")
    assert found is not None
    assert found.nlink == 1
    assert found.ctime_ns == world.clock


def test_links_that_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = world.mkdir("d")
    ino = world.store("a")
    with pytest.raises(NotPermittedError), world.catalog.transaction():
        world.catalog.namespace.add_link(world.entry("x"), directory, 1)
    with pytest.raises(ExistsError), world.catalog.transaction():
        world.catalog.namespace.add_link(world.entry("d"), ino, 1)
    monkeypatch.setattr(limits, "LINKS_MAX", 1)
    with pytest.raises(TooManyLinksError), world.catalog.transaction():
        world.catalog.namespace.add_link(world.entry("x"), ino, 1)


def test_an_object_that_is_open_outlives_its_last_name_and_stays_charged(world: World) -> None:
    ino = world.store("a")
    assert world.unlink("a", keep_for=ATTACHMENT) == RemovedName(ino, 0)
    assert world.lookup("a") is None
    assert world.catalog.inodes.get(1, ino).nlink == 0
    assert world.catalog.tenants.get(1).used_bytes == 2 * FULL
    with pytest.raises(NotFoundError), world.catalog.transaction():
        world.catalog.namespace.add_link(world.entry("again"), ino, 1)
    with world.catalog.transaction():
        assert not world.catalog.inodes.release_unlinked(ATTACHMENT + 1, 1, 12345)
        assert world.catalog.inodes.release_unlinked(ATTACHMENT, 1, ino)
    assert world.catalog.tenants.get(1).used_bytes == 0


def test_unlink_and_rmdir_mind_the_type(world: World) -> None:
    world.store("file")
    directory = world.mkdir("d")
    world.mkdir("sub", directory)
    with pytest.raises(IsDirectoryError):
        world.unlink("d")
    with pytest.raises(NotFoundError):
        world.unlink("none")
    for name, error in (("file", NotDirectoryError), ("d", NotEmptyError), ("none", NotFoundError)):
        with pytest.raises(error), world.catalog.transaction():
            world.catalog.namespace.remove_directory(world.entry(name), world.now())
    with world.catalog.transaction():
        world.catalog.namespace.remove_directory(world.entry("sub", directory), world.now())
        world.catalog.namespace.remove_directory(world.entry("d"), world.now())
    assert world.catalog.inodes.get(1, world.root).nlink == 2


def test_attributes_change_only_where_asked(world: World) -> None:
    ino = world.store("a")
    before = world.catalog.inodes.get(1, ino)
    with world.catalog.transaction():
        row = world.catalog.inodes.set_attributes(
            1, ino, AttributeChange(ctime_ns=77, mode=stat.S_IFDIR | 0o4711, gid=9)
        )
    assert row == before._replace(ctime_ns=77, mode=stat.S_IFREG | 0o4711, gid=9)
    assert world.catalog.inodes.get(1, ino) == row


def test_access_times_only_go_forward(world: World) -> None:
    ino = world.store("a")
    for given in (5000, 4000):
        with world.catalog.transaction():
            world.catalog.inodes.note_access(1, ino, given)
        assert world.catalog.inodes.get(1, ino).atime_ns == 5000


def test_object_quota_is_exact(world: World) -> None:
    with world.catalog.transaction():
        world.catalog.tenants.set_quota(1, 0, 2)
    world.mkdir("one")
    world.store("two")
    with pytest.raises(QuotaExceededError, match="2\\+1 of 2 objects"):
        world.mkdir("three")
    assert world.lookup("three") is None
    world.unlink("two")
    world.mkdir("three")


def test_a_failed_change_leaves_nothing_behind(world: World) -> None:
    backlog = world.catalog.log_rows.backlog()

    def insert_twice() -> None:
        with world.catalog.transaction():
            world.catalog.namespace.insert_node(world.entry("a"), world.node(DIRECTORY))
            world.catalog.namespace.insert_node(world.entry("a"), world.node(DIRECTORY))

    with pytest.raises(ExistsError):
        insert_twice()
    assert world.lookup("a") is None
    assert world.catalog.log_rows.backlog() == backlog

"""Objects put aside: hidden for every lookup, restored or expired, charged until then."""

from __future__ import annotations

import pytest

from kvfs.errors import ExistsError, IsDirectoryError, NotFoundError
from kvfsd.catalog.rows import Entry, RemovedName
from tests.kvfsd.catalog.world import ATTACHMENT, FULL, World


def hide(world: World, ino: int) -> None:
    with world.catalog.transaction():
        world.catalog.quarantine.hide(1, ino, "tag does not match", world.now())


def test_a_hidden_object_is_a_miss_everywhere_and_comes_back(world: World) -> None:
    ino = world.store("a")
    hide(world, ino)
    assert world.lookup("a") is None
    assert list(world.names()) == []
    for call in (
        lambda: world.catalog.inodes.get(1, ino),
        lambda: world.catalog.xattrs.names(1, ino),
        lambda: world.unlink("a"),
        lambda: world.publish(ino, None, 0),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert world.catalog.tenants.get(1).used_bytes == 2 * FULL
    assert [row.reason for row in world.catalog.quarantine.all(1)] == ["tag does not match"]
    with world.catalog.transaction():
        world.catalog.quarantine.unhide(1, ino)
    assert world.lookup("a") is not None
    assert world.catalog.quarantine.all(1) == []


@pytest.mark.parametrize("how", ["store", "mkdir", "rename", "link"])
def test_a_hidden_name_gives_way_to_whatever_takes_it(world: World, how: str) -> None:
    hidden = world.store("a")
    hide(world, hidden)
    if how == "store":
        world.store("a", [5])
    elif how == "mkdir":
        world.mkdir("a")
    else:
        ino = world.store("b", [5])
        with world.catalog.transaction():
            if how == "link":
                world.catalog.namespace.add_link(world.entry("a"), ino, 5)
            else:
                removed = world.catalog.renames.rename(world.entry("b"), world.entry("a"), 1, 5)
                assert removed == RemovedName()
    assert world.lookup("a") is not None
    assert world.catalog.inodes.find(1, hidden) is None
    assert world.catalog.quarantine.all(1) == []
    assert world.catalog.tenants.get(1).used_bytes in (0, 5)


def test_a_directory_with_only_hidden_names_can_be_removed(world: World) -> None:
    directory = world.mkdir("d")
    ino = world.store("a")
    with world.catalog.transaction():
        world.catalog.renames.rename(world.entry("a"), world.entry("a", directory), 0, 5)
    hide(world, ino)
    with world.catalog.transaction():
        world.catalog.namespace.remove_directory(world.entry("d"), 6)
    assert world.catalog.inodes.find(1, ino) is None
    assert world.catalog.tenants.get(1).used_objects == 0


def test_an_unlink_that_follows_a_fault_is_undone(world: World) -> None:
    ino = world.store("a")
    with world.catalog.transaction():
        world.catalog.xattrs.set(1, ino, (b"n", b"v"), 0, 5)
        assert world.catalog.quarantine.unlink_into(world.entry("a"), "fault", 10) == RemovedName(ino, 0)
    assert world.lookup("a") is None
    assert world.catalog.tenants.get(1).used_bytes == 2 * FULL
    with world.catalog.transaction():
        assert world.catalog.quarantine.restore(1, ino, 20) == world.entry("a")
    row = world.lookup("a")
    assert row is not None
    assert (row.nlink, row.stored_bytes) == (1, 2 * FULL)
    assert world.catalog.xattrs.get(1, ino, b"n") == b"v"


def test_what_cannot_be_restored(world: World) -> None:
    directory = world.mkdir("d")
    ino = world.store("a")
    entry = world.entry("a", directory)
    with world.catalog.transaction():
        world.catalog.renames.rename(world.entry("a"), entry, 0, 5)
        world.catalog.quarantine.unlink_into(entry, "fault", 10)
    with pytest.raises(NotFoundError), world.catalog.transaction():
        world.catalog.quarantine.restore(1, 999, 5)
    world.mkdir("a", directory)
    with pytest.raises(ExistsError), world.catalog.transaction():
        world.catalog.quarantine.restore(1, ino, 5)
    with world.catalog.transaction():
        world.catalog.namespace.remove_directory(entry, 5)
        world.catalog.namespace.remove_directory(world.entry("d"), 5)
    with pytest.raises(NotFoundError), world.catalog.transaction():
        world.catalog.quarantine.restore(1, ino, 5)
    with pytest.raises(IsDirectoryError), world.catalog.transaction():
        world.catalog.quarantine.unlink_into(Entry(1, world.root, _directory(world)), "fault", 10)


def _directory(world: World) -> bytes:
    world.catalog.namespace.insert_node(world.entry("again"), world.node())
    return world.entry("again").name


def test_it_expires_by_age(world: World) -> None:
    for name, time_ns in (("old", 10), ("new", 30)):
        world.store(name)
        with world.catalog.transaction():
            world.catalog.quarantine.unlink_into(world.entry(name), "fault", time_ns)
    hide(world, world.store("hidden"))
    with world.catalog.transaction():
        assert world.catalog.quarantine.expire(20) == 1
        assert world.catalog.quarantine.expire(20) == 0
    assert world.catalog.tenants.get(1).used_objects == 2
    with world.catalog.transaction():
        world.catalog.quarantine.expire(1 << 60)
    assert world.catalog.tenants.get(1).used_objects == 1


def test_quarantine_outlives_the_last_close(world: World) -> None:
    ino = world.store("a")
    with world.catalog.transaction():
        world.catalog.quarantine.unlink_into(world.entry("a"), "fault", 10, keep_for=ATTACHMENT)
        assert not world.catalog.inodes.release_unlinked(ATTACHMENT, 1, ino)
    world.catalog.attachments.recover()
    with world.catalog.transaction():
        world.catalog.quarantine.restore(1, ino, 20)
    assert world.lookup("a") is not None


def test_one_of_several_names_just_goes(world: World) -> None:
    ino = world.store("a")
    with world.catalog.transaction():
        world.catalog.namespace.add_link(world.entry("b"), ino, 5)
        assert world.catalog.quarantine.unlink_into(world.entry("a"), "fault", 10) == RemovedName(ino, 1)
    assert world.catalog.quarantine.all(1) == []

"""rename(2): what it replaces, what it refuses, and the link counts it leaves."""

from __future__ import annotations

import pytest

from kvfs.commands import RENAME_EXCHANGE, RENAME_NOREPLACE
from kvfs.errors import (
    ExistsError,
    InvalidArgumentError,
    IsDirectoryError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
)
from kvfsd.catalog.rows import RemovedName
from tests.kvfsd.catalog.world import ATTACHMENT, World


def rename(
    world: World, source: tuple[str, int], target: tuple[str, int], flags: int = 0, keep_for: int | None = None
) -> RemovedName:
    with world.catalog.transaction():
        return world.catalog.renames.rename(world.entry(*source), world.entry(*target), flags, world.now(), keep_for)


def test_a_file_moves_and_both_directories_are_dated(world: World) -> None:
    directory = world.mkdir("d")
    ino = world.store("a")
    assert rename(world, ("a", world.root), ("b", directory)) == RemovedName()
    assert world.lookup("a") is None
    moved = world.lookup("b", directory)
    assert moved is not None
    assert (moved.ino, moved.ctime_ns) == (ino, world.clock)
    for number in (world.root, directory):
        assert world.catalog.inodes.get(1, number).mtime_ns == world.clock


def test_an_existing_file_is_replaced_and_freed(world: World) -> None:
    old = world.store("b")
    new = world.store("a")
    assert rename(world, ("a", world.root), ("b", world.root)) == RemovedName(old, 0)
    found = world.lookup("b")
    assert found is not None
    assert found.ino == new
    assert world.catalog.inodes.find(1, old) is None


def test_a_replaced_file_that_is_open_stays_nameless(world: World) -> None:
    old = world.store("b")
    world.store("a")
    rename(world, ("a", world.root), ("b", world.root), keep_for=ATTACHMENT)
    assert world.catalog.inodes.get(1, old).nlink == 0
    assert world.catalog.tenants.get(1).used_objects == 2


def test_noreplace_and_exchange(world: World) -> None:
    directory = world.mkdir("d")
    first, second = world.store("a"), world.mkdir("sub", directory)
    with pytest.raises(ExistsError):
        rename(world, ("a", world.root), ("sub", directory), RENAME_NOREPLACE)
    with pytest.raises(NotFoundError):
        rename(world, ("a", world.root), ("none", directory), RENAME_EXCHANGE)
    rename(world, ("a", world.root), ("sub", directory), RENAME_EXCHANGE)
    moved, other = world.lookup("sub", directory), world.lookup("a")
    assert moved is not None
    assert other is not None
    assert (moved.ino, other.ino, other.parent) == (first, second, world.root)
    assert world.catalog.inodes.get(1, directory).nlink == 2
    assert world.catalog.inodes.get(1, world.root).nlink == 4
    rename(world, ("a", world.root), ("free", world.root), RENAME_NOREPLACE)
    assert world.lookup("free") is not None


@pytest.mark.parametrize("flags", [RENAME_NOREPLACE | RENAME_EXCHANGE, 4, -1])
def test_unknown_flags(world: World, flags: int) -> None:
    world.store("a")
    with pytest.raises(InvalidArgumentError):
        rename(world, ("a", world.root), ("b", world.root), flags)


def test_two_names_of_one_object_stay_as_they_are(world: World) -> None:
    ino = world.store("a")
    with world.catalog.transaction():
        world.catalog.namespace.add_link(world.entry("b"), ino, world.now())
    assert rename(world, ("a", world.root), ("b", world.root)) == RemovedName()
    rename(world, ("a", world.root), ("a", world.root))
    assert world.lookup("a") == world.lookup("b")


def test_directories_replace_only_empty_directories(world: World) -> None:
    first, second = world.mkdir("first"), world.mkdir("second")
    world.store("file")
    world.mkdir("in", second)
    with pytest.raises(NotEmptyError):
        rename(world, ("first", world.root), ("second", world.root))
    with pytest.raises(IsDirectoryError):
        rename(world, ("file", world.root), ("first", world.root))
    with pytest.raises(NotDirectoryError):
        rename(world, ("first", world.root), ("file", world.root))
    assert rename(world, ("second", world.root), ("first", world.root)) == RemovedName(first, 0)
    found = world.lookup("first")
    assert found is not None
    assert found.ino == second
    assert world.catalog.inodes.get(1, world.root).nlink == 3


def test_a_directory_does_not_move_into_itself(world: World) -> None:
    top = world.mkdir("top")
    middle = world.mkdir("middle", top)
    low = world.mkdir("low", middle)
    for target in (("x", top), ("x", low)):
        with pytest.raises(InvalidArgumentError):
            rename(world, ("top", world.root), target)
    with pytest.raises(InvalidArgumentError):
        rename(world, ("low", middle), ("top", world.root), RENAME_EXCHANGE)
    with pytest.raises(NotEmptyError):
        rename(world, ("low", middle), ("top", world.root))
    rename(world, ("low", middle), ("low", world.root))
    assert world.catalog.inodes.get(1, low).parent == world.root
    assert [world.catalog.inodes.get(1, ino).nlink for ino in (world.root, top, middle)] == [4, 3, 2]

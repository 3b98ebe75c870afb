"""Extended attributes by the rules of setxattr(2), within their limits."""

from __future__ import annotations

import pytest

from kvfs import limits
from kvfs.errors import ExistsError, InvalidArgumentError, NotFoundError, NoXattrError, XattrTooLargeError
from kvfsd.catalog.xattrs import CREATE_ONLY, REPLACE_ONLY
from tests.kvfsd.catalog.world import World


def put(world: World, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
    with world.catalog.transaction():
        world.catalog.xattrs.set(1, ino, (name, value), flags, world.now())


def test_set_get_list_remove(world: World) -> None:
    ino = world.store("a")
    xattrs = world.catalog.xattrs
    put(world, ino, b"n", b"v")
    put(world, ino, b"n", b"", REPLACE_ONLY)
    put(world, ino, b"m", b"w", CREATE_ONLY)
    assert xattrs.get(1, ino, b"n") == b""
    assert sorted(xattrs.names(1, ino)) == [b"m", b"n"]
    assert world.catalog.inodes.get(1, ino).ctime_ns == world.clock
    with world.catalog.transaction():
        xattrs.remove(1, ino, b"n", world.now())
    with pytest.raises(NoXattrError):
        xattrs.get(1, ino, b"n")
    with pytest.raises(NoXattrError), world.catalog.transaction():
        xattrs.remove(1, ino, b"n", world.now())


def test_flags_and_missing_objects(world: World) -> None:
    ino = world.store("a")
    put(world, ino, b"n", b"v")
    with pytest.raises(ExistsError):
        put(world, ino, b"n", b"v", CREATE_ONLY)
    with pytest.raises(NoXattrError):
        put(world, ino, b"m", b"v", REPLACE_ONLY)
    with pytest.raises(InvalidArgumentError):
        put(world, ino, b"m", b"v", 3)
    for call in (world.catalog.xattrs.names, lambda tenant, ino: world.catalog.xattrs.get(tenant, ino, b"n")):
        with pytest.raises(NotFoundError):
            call(1, 999)
    with pytest.raises(NotFoundError):
        put(world, 999, b"n", b"v")


def test_value_and_total_are_bounded(world: World) -> None:
    ino = world.store("a")
    with pytest.raises(XattrTooLargeError):
        put(world, ino, b"n", bytes(limits.XATTR_VALUE_MAX_BYTES + 100))
    put(world, ino, b"n", bytes(limits.XATTR_VALUE_MAX_BYTES + 17))
    with pytest.raises(XattrTooLargeError):
        put(world, ino, b"m", bytes(limits.XATTR_VALUE_MAX_BYTES + 17))
    assert world.catalog.xattrs.names(1, ino) == [b"n"]


def test_attributes_come_and_go_with_their_object(world: World) -> None:
    ino = world.catalog.database.next_ino()
    world.publish(ino, "a", 0, xattrs=[(b"n", b"v")])
    assert world.catalog.xattrs.get(1, ino, b"n") == b"v"
    world.unlink("a")
    assert world.catalog.database.one("SELECT count(*) FROM xattr") == (0,)

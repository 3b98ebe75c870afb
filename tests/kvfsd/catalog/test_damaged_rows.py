"""Rows that were changed, moved, swapped or lost: a clean miss or a named error, told once; all else goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfs.errors import BadRecordError, FailsafeError, NotFoundError
from kvfsd.catalog.check import check
from kvfsd.catalog.damage import RowDamage
from kvfsd.catalog.rows import Entry, InodeRow
from kvfsd.catalog.schema import TenantState
from kvfsd.catalog.wholeness import BLOCKS_PER_HOLE, STEP_BLOCKS, LostBlocksError
from tests.kvfsd.catalog.world import FULL, World, opened_catalog, row_key, sealed

CHANGES = {
    "ino": "UPDATE inode SET ino=ino+1000000 WHERE ino=:file",
    "tenant": "UPDATE inode SET tenant=2 WHERE ino=:file",
    "mode": "UPDATE inode SET mode=mode+2 WHERE ino=:file",
    "uid": "UPDATE inode SET uid=uid+64 WHERE ino=:file",
    "size": "UPDATE inode SET size=size+1048576 WHERE ino=:file",
    "stored_bytes": "UPDATE inode SET stored_bytes=0 WHERE ino=:file",
    "mtime_ns": "UPDATE inode SET mtime_ns=mtime_ns+1 WHERE ino=:file",
    "flags": "UPDATE inode SET flags=flags+1 WHERE ino=:file",
    "members": "UPDATE inode SET members=members+1 WHERE ino=:file",
    "mac": "UPDATE inode SET mac=mac+1 WHERE ino=:file",
    "type": "UPDATE inode SET mode='text', gid=1.5, target=7 WHERE ino=:file",
    "object_lost": "DELETE FROM inode WHERE ino=:file",
    "name_ino": "UPDATE dirent SET ino=:other WHERE ino=:file",
    "name_parent": "UPDATE dirent SET parent=:sub WHERE ino=:file",
    "name_tenant": "UPDATE dirent SET tenant=2 WHERE ino=:file",
    "name_mac": "UPDATE dirent SET mac=mac+1 WHERE ino=:file",
    "name_cookie": "UPDATE dirent SET cookie=cookie+1 WHERE ino=:file",
    "name_text": "UPDATE dirent SET sealed_name='a text' WHERE ino=:file",
    "name_lost": "DELETE FROM dirent WHERE ino=:file",
    "names_swapped": "UPDATE dirent SET ino=CASE ino WHEN :file THEN :other ELSE :file END WHERE ino<>:sub",
}


class Struck(World):
    """A world with two files, a directory, and one change behind the catalog's back."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.numbers = {"file": self.store("file"), "other": self.store("other"), "sub": self.mkdir("sub")}
        self.seen: list[RowDamage] = []
        self.catalog.database.damage.listener = self.seen.append

    def strike(self, sql: str) -> None:
        for name, number in self.numbers.items():
            sql = sql.replace(f":{name}", str(number))
        assert self.catalog.database.run(sql)


@pytest.fixture
def struck(tmp_path: Path) -> Iterator[Struck]:
    made = Struck(tmp_path)
    yield made
    made.catalog.database.abandon()


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_row_is_a_miss_that_is_told_and_gives_way(struck: Struck, change: str) -> None:
    swapped = change == "names_swapped"
    struck.strike(CHANGES[change])
    assert struck.lookup("file") is None
    assert set(struck.names()) == {sealed("sub")} | (set() if swapped else {sealed("other")})
    assert struck.seen
    known = len(struck.seen)
    assert struck.lookup("file") is None
    assert len(struck.seen) == known
    assert check(struck.catalog.database) != []
    assert (struck.lookup("other") is None) == swapped
    anew = struck.store("file")  # an engine that missed stores it anew
    row = struck.lookup("file")
    assert row is not None
    assert row.ino == anew
    assert struck.unlink("file") == (anew, 0)


@pytest.mark.parametrize("change", ["mode", "type", "members"])
def test_a_damaged_object_is_an_error_by_its_number(struck: Struck, change: str) -> None:
    struck.strike(CHANGES[change])
    inodes, ino = struck.catalog.inodes, struck.numbers["file"]
    with pytest.raises(BadRecordError, match=f"row of object {ino} fails its check"):
        inodes.get(1, ino)
    with struck.catalog.transaction():
        inodes.note_access(1, ino, 1 << 40)
        inodes.adjust(1, ino, members_delta=5)
        assert not inodes.release_unlinked(7, 1, ino)
    with pytest.raises(BadRecordError):
        inodes.get(1, ino)


def test_names_in_a_damaged_directory_are_errors_and_the_directory_gives_way(struck: Struck) -> None:
    struck.strike("UPDATE inode SET gid=7 WHERE ino=:sub")
    sub = struck.numbers["sub"]
    with pytest.raises(BadRecordError):
        struck.mkdir("below", sub)
    with pytest.raises(BadRecordError):
        struck.catalog.namespace.list_directory(1, sub, 0, 10)
    assert struck.mkdir("sub") != sub


def test_a_removed_directory_tells_that_names_in_it_were_lost(struck: Struck) -> None:
    struck.mkdir("below", struck.numbers["sub"])
    struck.strike("DELETE FROM dirent WHERE parent=:sub")
    with struck.catalog.transaction():
        struck.catalog.namespace.remove_directory(struck.entry("sub"), struck.now())
    assert [damage.table for damage in struck.seen] == ["names"]


def test_a_rename_over_a_damaged_name_works(struck: Struck) -> None:
    struck.strike(CHANGES["mode"])
    with struck.catalog.transaction():
        removed = struck.catalog.renames.rename(struck.entry("other"), struck.entry("file"), 0, struck.now())
    assert removed.ino == 0
    row = struck.lookup("file")
    assert row is not None
    assert row.ino == struck.numbers["other"]


# --- blocks --------------------------------------------------------------------------------------------

BLOCK_CHANGES = {
    "lost": "DELETE FROM block WHERE ino=:file AND block=1",
    "moved": "UPDATE block SET block=7 WHERE ino=:file AND block=1",
    "to another": "UPDATE block SET ino=:other, block=9 WHERE ino=:file AND block=1",
    "length": "UPDATE block SET length=length-1 WHERE ino=:file AND block=1",
    "generation": "UPDATE block SET generation=generation-1 WHERE ino=:file AND block=1",
    "tag": "UPDATE block SET tag=x'00' WHERE ino=:file AND block=1",
}


@pytest.mark.parametrize("change", BLOCK_CHANGES)
def test_blocks_that_are_not_those_of_the_object_are_told_when_it_is_opened(struck: Struck, change: str) -> None:
    struck.strike(BLOCK_CHANGES[change])
    wholeness, inodes = struck.catalog.wholeness, struck.catalog.inodes
    row = inodes.get(1, struck.numbers["file"])
    with pytest.raises(LostBlocksError, match="are lost or damaged"):
        wholeness.opened(1, row)
    with pytest.raises(LostBlocksError):
        list(wholeness.hole_steps(1, row.ino))
    struck.publish(row.ino, None, 5)  # written anew, all of it: what was lost before does not matter any more
    wholeness.opened(1, inodes.get(1, row.ino))


def test_where_a_block_lies_is_not_in_its_check(struck: Struck) -> None:
    struck.strike("UPDATE block SET locations=x'00000000000000000099' WHERE ino=:file")
    struck.catalog.wholeness.opened(1, struck.catalog.inodes.get(1, struck.numbers["file"]))


def test_holes_and_objects_of_other_kinds_are_whole(world: World) -> None:
    wholeness, inodes = world.catalog.wholeness, world.catalog.inodes
    sparse = world.catalog.database.next_ino()
    world.stage(sparse, [world.block(3)])
    world.publish(sparse, "sparse", 100 * FULL)
    directory = world.mkdir("d")
    world.mkdir("below", directory)
    for ino in (sparse, directory, world.store("empty", []), 999_999):
        assert list(wholeness.hole_steps(1, ino)) == []
    wholeness.opened(1, inodes.get(1, directory))


def test_a_large_object_is_looked_at_in_steps_and_anew_after_a_commit(world: World) -> None:
    ino = world.catalog.database.next_ino()
    blocks = 2 * STEP_BLOCKS + 10
    with world.catalog.transaction():
        for number in range(blocks):
            world.catalog.blocks.stage(7, 1, ino, world.block(number, 4096))
    world.publish(ino, "large", blocks * FULL)
    steps = world.catalog.wholeness.hole_steps(1, ino)
    next(steps)
    world.stage(ino, [world.block(1, 4096)])
    world.publish(ino, None, blocks * FULL, base_limit_bytes=blocks * FULL)
    assert sum(1 for _ in steps) == 2

    def steps_of_a_hole() -> int:
        return sum(1 for _ in world.catalog.wholeness.hole_steps(1, ino))

    believed = blocks // BLOCKS_PER_HOLE
    assert [steps_of_a_hole() for _ in range(believed + 2)] == [*[0] * believed, 2, 0]
    world.catalog.wholeness.opened(1, world.catalog.inodes.get(1, ino))
    assert steps_of_a_hole() == 2, "who opens it does not rely on what another one saw"
    world.unlink("large")
    with world.catalog.transaction():
        while world.catalog.doomed.reap():
            pass


def test_an_object_whose_blocks_rows_are_nonsense_can_be_written_anew_and_removed(struck: Struck) -> None:
    ino = struck.numbers["file"]
    struck.strike("UPDATE block SET locations=x'00', epoch='text' WHERE ino=:file AND block=0")
    struck.strike("UPDATE block SET locations=x'00000000000900000099' WHERE ino=:file AND block=1")
    with pytest.raises(BadRecordError, match=f"block 0 of object {ino} is damaged"):
        struck.catalog.blocks.locate(1, ino, 0)
    assert len(struck.catalog.blocks.live_in_segment(0, 0)) == 2
    struck.publish(ino, None, 0)
    assert struck.unlink("file") == (ino, 0)


# --- extended attributes, recovery, purge, tenants --------------------------------------------------------


def test_lost_and_foreign_attributes_are_errors(struck: Struck) -> None:
    xattrs, ino = struck.catalog.xattrs, struck.numbers["file"]
    with struck.catalog.transaction():
        xattrs.set(1, ino, (b"one", b"1"), 0, 5)
        xattrs.set(1, ino, (b"two", b"2"), 0, 5)
        xattrs.remove(1, ino, b"two", 6)
    assert xattrs.names(1, ino) == [b"one"]
    struck.strike("DELETE FROM xattr")
    for call in (lambda: xattrs.names(1, ino), lambda: xattrs.get(1, ino, b"one")):
        with pytest.raises(BadRecordError, match="extended attributes of object"):
            call()
    struck.catalog.database.run("INSERT INTO xattr VALUES(1, ?, x'00', x'00')", (ino,))
    with pytest.raises(BadRecordError):
        xattrs.names(1, ino)


def test_recovery_goes_on_past_a_damaged_object(struck: Struck) -> None:
    struck.unlink("file", keep_for=3)
    struck.strike("UPDATE inode SET uid=9 WHERE ino=:file")
    struck.catalog.attachments.recover()
    assert struck.catalog.database.one("SELECT count(*) FROM open_unlinked") == (0,)


def test_a_deleted_tenant_is_purged_without_its_keys_whatever_is_damaged(struck: Struck) -> None:
    struck.unlink("other", keep_for=3)
    struck.strike("UPDATE inode SET uid=9, stored_bytes='much' WHERE ino=:file")
    struck.strike("DELETE FROM dirent WHERE ino=:sub")
    catalog = struck.catalog
    with catalog.transaction():
        catalog.tenants.begin_delete(1)
    catalog.database.macs.unlock(system_key)
    more = True
    while more:
        with catalog.transaction():
            more = catalog.purge.purge_some(1)
    for table in ("inode", "dirent", "block", "tenant", "quarantine", "open_unlinked"):
        assert catalog.database.one(f"SELECT count(*) FROM {table}") == (0,)


def system_key(tenant: int) -> bytes:
    assert tenant == 0, "the key is gone"
    return row_key(0)


TENANT_CHANGES = {
    "quota": "UPDATE tenant SET quota_bytes=quota_bytes+1",
    "root": "UPDATE tenant SET root_ino=root_ino+1",
    "name": "UPDATE tenant SET sealed_name=x'00'",
    "state": f"UPDATE tenant SET state={TenantState.DELETING}",
    "a key is changed": "UPDATE key_slot SET wrapped=x'00' WHERE epoch=0",
    "a key is lost": "DELETE FROM key_slot WHERE epoch=1",
    "a key comes back": "INSERT INTO key_slot VALUES(1, 2, x'00')",
}


@pytest.mark.parametrize("change", TENANT_CHANGES)
def test_a_damaged_tenant_is_refused_with_advice(struck: Struck, change: str) -> None:
    struck.catalog.close()
    opened = opened_catalog(struck.path)
    opened.database.run(TENANT_CHANGES[change])
    opened.database.abandon()
    for read_only in (True, False):
        with pytest.raises(FailsafeError, match=r"row of tenant 1 .*kvfsctl rebuild --force"):
            opened_catalog(struck.path, read_only=read_only)


def test_use_that_was_damaged_at_rest_is_counted_anew(struck: Struck) -> None:
    want = struck.catalog.tenants.get(1)
    struck.catalog.close()
    catalog = opened_catalog(struck.path)
    catalog.database.run("UPDATE tenant SET used_bytes=used_bytes+1048576, used_objects=7")
    catalog.database.run("UPDATE tenant SET use_mac=use_mac+1")
    catalog.database.close()  # marked clean, and nothing sealed: as damage of a closed catalog would leave it
    struck.catalog = opened_catalog(struck.path)
    assert struck.catalog.tenants.get(1) == want
    assert struck.catalog.database.damage.count == 1
    assert check(struck.catalog.database) == []
    struck.catalog.close()
    struck.catalog = opened_catalog(struck.path)
    assert struck.catalog.database.damage.count == 0


def test_another_tenants_object_cannot_be_put_under_a_name(struck: Struck) -> None:
    struck.add_tenant(2)
    foreign = struck.catalog.database.next_ino()
    with struck.catalog.transaction():
        row = InodeRow(foreign, 0o100644, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1)
        struck.catalog.inodes.insert(2, row)
        struck.catalog.namespace.put_entry(Entry(2, 5, sealed("theirs")), foreign)
    struck.catalog.database.run("UPDATE dirent SET tenant=1, parent=? WHERE ino=?", (struck.root, foreign))
    assert struck.lookup("theirs") is None
    with pytest.raises(NotFoundError):
        struck.catalog.inodes.get(1, foreign)

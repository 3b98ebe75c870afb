"""Every rule of the full check is broken once, and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfsd.catalog.check import check
from kvfsd.catalog.rowmacs import plain_check
from tests.kvfsd.catalog.world import World

BREAKS = {
    "tenant_bytes": "UPDATE tenant SET used_bytes=used_bytes+1",
    "tenant_objects": "UPDATE tenant SET used_objects=used_objects-1",
    "stored_bytes": "UPDATE inode SET stored_bytes=stored_bytes-1 WHERE ino=:file",
    "size": "UPDATE inode SET size=-1 WHERE ino=:file",
    "block_beyond_size": "UPDATE inode SET size=1048576 WHERE ino=:file",
    "dangling_name": "DELETE FROM inode WHERE ino=:file",
    "name_in_no_directory": "UPDATE dirent SET parent=:file WHERE ino=:sub",
    "file_links": "UPDATE inode SET nlink=2 WHERE ino=:file",
    "directory_links": "UPDATE inode SET nlink=9 WHERE ino=:directory",
    "directory_parent": "UPDATE inode SET parent=:directory WHERE ino=:directory",
    "directory_names": "INSERT INTO dirent VALUES(1, :root, 77, x'aa', :sub, 0)",
    "unreachable_directory": "UPDATE inode SET parent=:sub WHERE ino=:directory",
    "root": "UPDATE tenant SET root_ino=:file",
    "orphan_object": "UPDATE inode SET nlink=0 WHERE ino=:file",
    "object_of_no_tenant": "DELETE FROM tenant",
    "orphan_block": "DELETE FROM inode WHERE ino=:file",
    "orphan_xattr": "DELETE FROM inode WHERE ino=:file",
    "orphan_quarantine": "INSERT INTO quarantine VALUES(1, 999, 0, x'', 'reason', 0)",
    "orphan_open_unlinked": "INSERT INTO open_unlinked VALUES(1, :file, 7)",
    "segment_live_bytes": "UPDATE segment SET live_bytes=live_bytes-4096",
    "segment_write_offset": "UPDATE segment SET write_offset=4096",
    "record_in_free_segment": "DELETE FROM segment",
    "counter_ino": f"UPDATE meta SET value=2, mac={plain_check('next_ino', 2)} WHERE key='next_ino'",
    "counter_generation": f"UPDATE meta SET value=1, mac={plain_check('next_generation', 1)}"
    " WHERE key='next_generation'",
    "meta_row": "UPDATE meta SET value=value+1 WHERE key='next_ino'",
    "type": "UPDATE inode SET size='large' WHERE ino=:file",
    # what only the checks of rows tell
    "damaged_object": "UPDATE inode SET uid=uid+1 WHERE ino=:file",
    "damaged_name": "UPDATE dirent SET mac=mac+1 WHERE ino=:file",
    "lost_names": "DELETE FROM dirent WHERE ino=:file",
    "damaged_blocks": "UPDATE block SET tag=x'00000000000000000000000000000000' WHERE ino=:file AND block=1",
    "damaged_attributes": "DELETE FROM xattr",
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_rule_is_named(tmp_path: Path, kind: str) -> None:
    world = World(tmp_path)
    numbers = {"root": world.root, "file": world.store("file"), "directory": world.mkdir("d")}
    numbers["sub"] = world.mkdir("sub", numbers["directory"])
    with world.catalog.transaction():
        world.catalog.xattrs.set(1, numbers["file"], (b"name", b"value"), 0, 5)
    assert check(world.catalog.database) == []
    sql = BREAKS[kind]
    for name, number in numbers.items():
        sql = sql.replace(f":{name}", str(number))
    world.catalog.database.run(sql)
    problems = check(world.catalog.database)
    assert kind in {problem.kind for problem in problems}
    assert all("kvfsctl rebuild" in problem.advice for problem in problems)
    assert not world.catalog.database.in_transaction


def test_every_rule_is_broken_here() -> None:
    from kvfsd.catalog import check as module

    assert set(module._RULES) | set(module._COUNTERS) <= set(BREAKS)


def test_open_uncommitted_and_quarantined_objects_are_no_problems(world: World) -> None:
    ino = world.store("open")
    world.unlink("open", keep_for=3)
    world.stage(ino, [world.block(5)])
    world.stage(9999, [world.block(0)])
    hidden = world.store("hidden")
    with world.catalog.transaction():
        world.catalog.quarantine.hide(1, hidden, "bad record", 5)
    assert check(world.catalog.database) == []

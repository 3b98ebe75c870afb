import json
from pathlib import Path

import pytest
import trio

from kvfs_tools.inspection import TenantView
from kvfs_tools.verification import Report, Verifier
from kvfsd.catalog.rows import Location
from kvfsd.pool.pool import Pool
from tests.kvfs_tools.pools import Kvfsctl, some_files


def place_of(kvfsctl: Kvfsctl, path: str, block: int = 0, replica: int = 0) -> tuple[Path, int]:
    """Medium file and byte offset of a record."""
    found = kvfsctl.json("stat", f"blue@{kvfsctl.pool}", path)
    location = found["blocks"][block]["replicas"][replica]
    medium = kvfsctl.json("pool", "info", kvfsctl.pool)["media"][location["medium"]]

    async def offset() -> int:
        pool = await Pool.open(Path(kvfsctl.pool), read_only=True)
        try:
            superblock = pool.media[location["medium"]].superblock
            return superblock.segment_offset(location["segment"]) + location["offset"] * 4096
        finally:
            await pool.aclose()

    return Path(medium["path"]), trio.run(offset)


def flip(place: tuple[Path, int], at: int) -> None:
    path, offset = place
    with path.open("r+b") as file:
        file.seek(offset + at)
        byte = file.read(1)[0]
        file.seek(offset + at)
        file.write(bytes([byte ^ 0x10]))


def test_a_whole_pool_verifies(filled):
    report = filled.json("verify", filled.pool)
    # /d/two and /d/again are one object
    assert (report["objects"], report["blocks"], report["replicas"]) == (3, 4, 4)
    assert report["payload_bytes"] == (1 << 20) + 5 + 5 + 3
    assert report["clean"]
    assert "verified 3 objects, 4 blocks" in filled.ok("verify", filled.pool)


@pytest.mark.parametrize(("at", "check"), [(0, "header"), (24, "header"), (140, "outer checksum")])
def test_a_flipped_bit_is_found_and_named(filled, at, check):
    flip(place_of(filled, "/d/two", block=1), at)
    status, out, _ = filled.run("verify", f"blue@{filled.pool}", "--json")
    report = json.loads(out)
    assert status == 1
    assert (report["bad_replicas"], report["lost_blocks"], report["replicas"]) == (1, 1, 3)
    (bad,) = report["bad"]
    assert bad["path"] in ("/d/two", "/d/again")
    assert bad["block"] == 1
    assert bad["reason"].startswith(check)
    status, out, _ = filled.run("verify", filled.pool)
    assert status == 1
    assert "1 bad replicas, 1 blocks lost" in out


def test_one_bad_replica_of_two_loses_nothing_but_is_told(kvfsctl):
    media = [option for name in "ab" for option in ("--medium", f"{kvfsctl.base}/{name},size=64M")]
    kvfsctl.create(*media, "--replicas", "2")
    kvfsctl.fill(some_files)
    flip(place_of(kvfsctl, "/small", replica=1), 130)
    status, out, _ = kvfsctl.run("verify", kvfsctl.pool, "--json")
    report = json.loads(out)
    assert status == 1
    assert (report["bad_replicas"], report["lost_blocks"], report["replicas"]) == (1, 0, 7)


def test_a_damaged_name_is_not_shown_but_told(filled):
    listed = len(filled.ok("ls", "-R", f"blue@{filled.pool}").splitlines())
    filled.sql(
        "UPDATE dirent SET sealed_name = CAST(x'00' || substr(sealed_name, 2) AS BLOB)"
        " WHERE ino IN (SELECT min(ino) FROM dirent)"
    )
    status, out, error = filled.run("verify", filled.pool)
    assert (status, error) == (1, "")
    assert "a name in directory 2 fails its check; kvfsctl rebuild --force" in out
    assert out.endswith(", 1 damaged rows\n")
    assert len(filled.ok("ls", "-R", f"blue@{filled.pool}").splitlines()) < listed


def test_a_lost_block_is_told(filled):
    filled.sql("DELETE FROM block WHERE block = 1")
    status, out, _ = filled.run("verify", filled.pool)
    assert status == 1
    assert "are lost or damaged" in out


def test_check_names_the_row_and_rebuild_brings_it_back(filled):
    before = sorted(filled.ok("ls", "-R", "--json", f"blue@{filled.pool}").splitlines())
    filled.sql("UPDATE inode SET uid = uid + 1 WHERE size = 5 AND mode & 0xF000 = 0x8000")
    filled.sql("DELETE FROM dirent WHERE parent <> 2")
    status, out, _ = filled.run("check", filled.pool)
    assert status == 1
    lines = out.splitlines()
    assert any(line.startswith("damaged_object: 1, ") and line.endswith("its row fails its check") for line in lines)
    assert any(line.startswith("lost_names: 1, in directory ") for line in lines)
    assert "kvfsctl rebuild --force" in out
    assert filled.json("rebuild", "--force", filled.pool)["complete"]
    assert filled.json("check", filled.pool)["findings"] == []
    assert sorted(filled.ok("ls", "-R", "--json", f"blue@{filled.pool}").splitlines()) == before


def test_a_record_that_was_moved_meanwhile_is_not_bad(filled):
    """What garbage collection does between the catalog's answer and the read: the row in hand is out of date."""

    async def run() -> Report:
        pool = await Pool.open(Path(filled.pool), read_only=True)
        try:
            report = Report()
            view = TenantView(pool, pool.tenants.show("blue"))
            node = view.find(b"/small")
            (row,) = view.blocks(node.inode)
            moved = row._replace(locations=(Location(0, row.locations[0].segment, 500),))
            verifier = Verifier(view, pool.media, report, lambda _: None)
            await verifier._block(node, moved)
            await verifier._block(node, moved._replace(generation=row.generation + 1))
            return report
        finally:
            await pool.aclose()

    report = trio.run(run)
    assert (report.blocks, report.replicas, report.bad_replicas) == (2, 1, 0)


def test_check_recounts(filled):
    assert filled.json("check", filled.pool)["findings"] == []
    filled.sql("UPDATE tenant SET used_bytes = used_bytes + 1")
    status, out, _ = filled.run("check", filled.pool, "--json")
    assert status == 1
    (finding,) = json.loads(out)["findings"]
    assert finding.startswith("tenant_bytes")


def test_rebuild_restores_what_the_catalog_knew(filled):
    before = sorted(filled.ok("ls", "-R", "--json", f"blue@{filled.pool}").splitlines())
    assert "--force" in filled.refused("rebuild", filled.pool)
    report = filled.json("rebuild", "--force", filled.pool)
    assert report["complete"]
    assert report["kept"].startswith(f"{filled.pool}/catalog.db.before-")
    assert sorted(filled.ok("ls", "-R", "--json", f"blue@{filled.pool}").splitlines()) == before
    assert filled.json("verify", filled.pool)["clean"]
    assert filled.json("check", filled.pool)["findings"] == []
    assert filled.json("stat", f"blue@{filled.pool}", "/d/two")["xattrs"] == ["user.crc"]


def test_quarantine_is_listed_and_restored(filled):
    async def hide() -> None:
        pool = await Pool.open(Path(filled.pool))
        tenant = pool.tenants.show("blue")
        ino = TenantView(pool, tenant).find(b"/small").inode.ino
        with pool.catalog.transaction():
            pool.catalog.quarantine.hide(tenant.number, ino, "seal: test", 5)
        await pool.aclose()

    trio.run(hide)
    source = f"blue@{filled.pool}"
    assert "small" not in filled.ok("ls", source)
    (one,) = filled.json("quarantine", "list", source)
    assert (one["kind"], one["reason"], one["size"]) == ("hidden", "seal: test", 5)
    assert "seal: test" in filled.ok("quarantine", "list", source)
    assert "not in quarantine" in filled.refused("quarantine", "restore", source, "999999")
    filled.ok("quarantine", "restore", source, str(one["ino"]))
    assert "small" in filled.ok("ls", source)
    assert "freed 0 objects" in filled.ok("quarantine", "purge", source)

"""A pool whose catalog, or whole state directory, is lost comes back from its media and its key, end to end."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from kvfs import limits
from kvfs.commands import Rename, SetXattr, Unlink
from kvfsd.ondisk.record import RecordHeader, RecordType
from kvfsd.pool.pool import Pool
from kvfsd.pool.poollock import PoolLock
from kvfsd.pool.poolmedia import PoolMedium
from kvfsd.segments.scan import ScannedRecord, SegmentScan
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.kvfs_tools.pools import Kvfsctl, some_files
from tests.kvfsd.serving import Host

FILES = 24
GONE = b"gone"


async def a_cache(host: Host) -> None:
    """Files of one and two blocks, some of them renamed, relinked by engines' habits, and one unlinked."""
    await some_files(host)
    for number in range(FILES):
        content = b"%d " % number * 1000 if number % 8 else bytes([number]) * (limits.BLOCK_BYTES + number)
        made = await host.store(b"tmp-%d" % number, content)
        await host.submit(Rename(1, b"tmp-%d" % number, 1, b"block-%d" % number, 0, keep_open=False))
        await host.submit(SetXattr(made.ino, b"user.number", b"%d" % number, 0))
        await host.submit(SetXattr(made.ino, b"user.kvfs.priority", b"%d" % -number, 0))
    await host.store(GONE, b"unlinked before the end")
    await host.submit(Unlink(1, GONE, keep_open=False))


def make(kvfsctl: Kvfsctl, *options: str) -> None:
    """A pool of two media outside of its directory, with content in two of its three tenants."""
    media = [word for name in "ab" for word in ("--medium", f"{kvfsctl.base / name},size=64M,weight={ord(name)}")]
    kvfsctl.create(*media, "--segment-size", "4M", "--tenant", "red", "--tenant", "deleted", *options)
    kvfsctl.fill(a_cache)
    kvfsctl.fill(some_files, "red")
    kvfsctl.fill(some_files, "deleted")
    kvfsctl.ok("tenant", "set", kvfsctl.pool, "blue", "--quota", "48M", "--quota-objects", "100")
    kvfsctl.ok("tenant", "set", kvfsctl.pool, "blue", "--uid", "1000", "--uid", "0", "--gid", "7")
    kvfsctl.ok("tenant", "credential", kvfsctl.pool, "blue", "--out", str(kvfsctl.base / "blue.credential"))
    kvfsctl.ok("tenant", "set", kvfsctl.pool, "blue", "--min-bytes", "1M", "--high", "90", "--low", "80")
    kvfsctl.ok("tenant", "delete", kvfsctl.pool, "deleted", "--force")


def seen(kvfsctl: Kvfsctl, pool: str) -> dict[str, Any]:
    """All that users and administrators see: tenants with quotas and use, trees, attributes, times, bytes."""
    found: dict[str, Any] = {"tenants": kvfsctl.json("tenant", "list", pool)}
    for tenant in ("blue", "red"):
        source = f"{tenant}@{pool}"
        found[tenant] = sorted(kvfsctl.ok("ls", "-R", "--json", source).splitlines())
        found[tenant, "/"] = kvfsctl.json("stat", source, "/")
        found[tenant, "xattrs"] = kvfsctl.json("stat", source, "/d/two")["xattrs"]
        found[tenant, "bytes"] = contents(Path(pool), tenant)
        found[tenant, "order of eviction"] = order_of_eviction(Path(pool), tenant)
    return found


def order_of_eviction(pool_directory: Path, tenant: str) -> list[int]:
    """Objects of a tenant, first the one that would go first; those with different priorities."""

    async def read() -> list[int]:
        pool = await Pool.open(pool_directory)
        try:
            rows = pool.catalog.retention.oldest(pool.tenants.show(tenant).number, 1000)
            return [row.ino for row in rows if row.priority]
        finally:
            await pool.aclose()

    return trio.run(read)


def contents(pool_directory: Path, tenant: str) -> dict[bytes, bytes]:
    """The bytes of the files in the root directory."""
    names = [b"small", b"b\xff\x1b[31m"] + (
        [b"block-%d" % number for number in range(FILES)] if tenant == "blue" else []
    )

    async def read() -> dict[bytes, bytes]:
        pool = await Pool.open(pool_directory)
        try:
            async with Service.open(pool) as service:
                pair = InProcessQueuePair(service.attach(tenant))
                found = {name: await Host(pair).load(name) for name in names}
                await pair.aclose()
                return found
        finally:
            await pool.aclose()

    return trio.run(read)


def lose_catalog(kvfsctl: Kvfsctl) -> None:
    lost = list(Path(kvfsctl.pool).glob("catalog.db*"))
    assert lost
    for path in lost:
        path.unlink()


def rebuild_words(kvfsctl: Kvfsctl, directory: str, media: str = "ab") -> list[str]:
    named = [word for name in media for word in ("--medium", str(kvfsctl.base / name))]
    return ["rebuild", directory, "--kek", str(kvfsctl.base / "pool.kek"), *named]


def check_whole(kvfsctl: Kvfsctl, pool: str, report: dict[str, Any]) -> None:
    """Nothing lost, nothing wrong, and it goes on working."""
    assert report["complete"], report
    assert (report["objects_lost"], report["log_gaps"], report["damages"], report["problems"]) == (0, [], [], [])
    assert kvfsctl.json("verify", pool)["clean"]
    assert kvfsctl.json("check", pool)["findings"] == []
    assert GONE.decode() not in kvfsctl.ok("ls", f"blue@{pool}")
    assert "no tenant deleted" in kvfsctl.refused("tenant", "show", pool, "deleted")


def test_a_lost_catalog_comes_back_from_media_and_key(kvfsctl: Kvfsctl) -> None:
    make(kvfsctl)
    before = seen(kvfsctl, kvfsctl.pool)
    lose_catalog(kvfsctl)
    assert "kvfsctl rebuild POOL" in kvfsctl.refused("ls", f"blue@{kvfsctl.pool}")
    report = kvfsctl.json("rebuild", kvfsctl.pool)
    check_whole(kvfsctl, kvfsctl.pool, report)
    assert seen(kvfsctl, kvfsctl.pool) == before
    # roots: 2; /d, its file, /small, /b..., /link: 5 each; the cache
    assert (report["tenants"], report["objects"], report["kept"]) == (2, 2 + 2 * 5 + FILES, "")
    kvfsctl.fill(lambda host: host.store(b"new", b"after"))
    lose_catalog(kvfsctl)
    assert "rebuilt 37 objects" in kvfsctl.ok("rebuild", kvfsctl.pool)


@pytest.mark.parametrize("options", [(), ("--replicas", "2")])
def test_a_lost_state_directory_comes_back_from_media_and_key(kvfsctl: Kvfsctl, options: tuple[str, ...]) -> None:
    make(kvfsctl, *options)
    before, info = seen(kvfsctl, kvfsctl.pool), kvfsctl.json("pool", "info", kvfsctl.pool)
    shutil.rmtree(kvfsctl.pool)
    new = str(kvfsctl.base / "new")
    report = kvfsctl.json(*rebuild_words(kvfsctl, new, "ba"))
    check_whole(kvfsctl, new, report)
    assert seen(kvfsctl, new) == before
    again = kvfsctl.json("pool", "info", new)
    assert again["replicas"] == (2 if options else 1)
    for key in ("uuid", "replicas", "key_directory", "kek"):
        assert again[key] == info[key]
    for old, now in zip(info["media"], again["media"], strict=True):
        assert {key: old[key] for key in ("index", "path", "uuid", "weight", "segments")} == {
            key: now[key] for key in ("index", "path", "uuid", "weight", "segments")
        }
    assert "holds a pool" in kvfsctl.refused(*rebuild_words(kvfsctl, new))


def test_a_medium_in_the_state_directory_and_both_pool_files_lost(filled: Kvfsctl) -> None:
    names = filled.ok("ls", "-R", "--json", f"blue@{filled.pool}")
    for name in ("pool.json", "pool.json.bak"):
        (Path(filled.pool) / name).write_text("{")
    lose_catalog(filled)
    words = ["rebuild", filled.pool, "--kek", str(filled.base / "pool.kek"), "--medium", f"{filled.pool}/medium-0"]
    assert "neither copy" in filled.refused("rebuild", filled.pool)
    assert filled.json(*words)["complete"]
    assert filled.ok("ls", "-R", "--json", f"blue@{filled.pool}") == names
    assert '"medium-0"' in (Path(filled.pool) / "pool.json").read_text()  # relative: it moves with the directory


def test_one_of_two_media_with_replicas_is_enough(kvfsctl: Kvfsctl) -> None:
    make(kvfsctl, "--replicas", "2")
    before = seen(kvfsctl, kvfsctl.pool)
    shutil.rmtree(kvfsctl.pool)
    (kvfsctl.base / "a").unlink()
    new = str(kvfsctl.base / "new")
    report = kvfsctl.json(*rebuild_words(kvfsctl, new, "b"))
    check_whole(kvfsctl, new, report)
    assert seen(kvfsctl, new) == before
    kvfsctl.fill_at(new, lambda host: host.store(b"new", b"on one medium"))


@pytest.mark.parametrize("lost", ["a", "b"])
def test_without_replicas_a_lost_medium_costs_what_was_on_it(kvfsctl: Kvfsctl, lost: str) -> None:
    make(kvfsctl)
    before = {tenant: contents(Path(kvfsctl.pool), tenant) for tenant in ("blue", "red")}
    shutil.rmtree(kvfsctl.pool)
    (kvfsctl.base / lost).unlink()
    left = "b" if lost == "a" else "a"
    status, out, _ = kvfsctl.run(*rebuild_words(kvfsctl, kvfsctl.pool, left), "--json")
    report = json.loads(out)
    assert (report["tenants"], report["problems"]) == (2, [])
    assert kvfsctl.json("tenant", "show", kvfsctl.pool, "blue")["quota_bytes"] == 48 << 20
    assert kvfsctl.json("verify", kvfsctl.pool)["clean"]
    found = 0
    for tenant, wanted in before.items():
        names = {
            json.loads(line)["path"] for line in kvfsctl.ok("ls", "--json", f"{tenant}@{kvfsctl.pool}").splitlines()
        }
        kept = {name: data for name, data in wanted.items() if "/" + name.decode(errors="surrogateescape") in names}
        kvfsctl.fill(lambda host, kept=kept: compare(host, kept), tenant)
        found += len(kept)
    # Which medium has a tenant's log is by chance: where it was on the lost one, that is a gap, else objects are lost.
    assert status == 1
    assert report["objects_lost"] or report["log_gaps"]
    assert found < sum(len(one) for one in before.values())


def on_media(kvfsctl: Kvfsctl, wanted: Callable[[RecordHeader], bool]) -> list[tuple[Path, int, int, RecordHeader]]:
    """(medium, byte offset, segment's byte offset, header) of every record that is `wanted`, in order."""

    async def scan(one: PoolMedium) -> list[tuple[Path, int, int, RecordHeader]]:
        found = []
        for segment in range(one.superblock.segment_count):
            base = one.superblock.segment_offset(segment)
            async for item in SegmentScan(one.medium, one.superblock, segment):
                if isinstance(item, ScannedRecord) and wanted(item.header):
                    found.append((Path(one.medium.name), base + item.offset * 4096, base, item.header))
        return found

    async def run() -> list[tuple[Path, int, int, RecordHeader]]:
        pool = await Pool.open(Path(kvfsctl.pool), read_only=True)
        try:
            return [found for one in pool.media.values() for found in await scan(one)]
        finally:
            await pool.aclose()

    return trio.run(run)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_what_is_damaged_is_told_and_the_rest_is_back(kvfsctl: Kvfsctl) -> None:
    make(kvfsctl)
    before = contents(Path(kvfsctl.pool), "blue")
    blue = kvfsctl.json("tenant", "show", kvfsctl.pool, "blue")["number"]
    ino = kvfsctl.json("stat", f"blue@{kvfsctl.pool}", "/block-5")["ino"]
    whole = kvfsctl.json("stat", f"blue@{kvfsctl.pool}", "/block-6")["ino"]
    (rotten,) = on_media(kvfsctl, lambda header: header.identity.object == ino)
    (beside,) = on_media(kvfsctl, lambda header: header.identity.object == whole)
    system = on_media(kvfsctl, lambda header: header.identity.record_type == RecordType.SYSTEM)
    overwrite(rotten[0], rotten[1] + 200, b"rot")
    overwrite(beside[0], beside[2], bytes(4096))  # the header of a segment with sound records
    newest = max(system, key=lambda found: found[3].identity.generation)
    overwrite(newest[0], newest[1] + 200, b"rot")
    lose_catalog(kvfsctl)
    status, out, _ = kvfsctl.run("rebuild", kvfsctl.pool)
    assert status == 1
    assert "record body checksum" in out
    assert "its header is made again from its records" in out
    assert "1 objects lost" in out
    assert "block-5\n" not in kvfsctl.ok("ls", f"blue@{kvfsctl.pool}")
    assert kvfsctl.json("tenant", "show", kvfsctl.pool, "blue")["number"] == blue
    left = {name: data for name, data in before.items() if name != b"block-5"}
    kvfsctl.fill(lambda host: compare(host, left))
    assert kvfsctl.json("check", kvfsctl.pool)["findings"] == []
    assert kvfsctl.json("verify", kvfsctl.pool)["clean"]


async def compare(host: Host, wanted: dict[bytes, bytes]) -> None:
    assert {name: await host.load(name) for name in wanted} == wanted


def test_rebuild_refusals(kvfsctl: Kvfsctl) -> None:
    make(kvfsctl)
    other = Kvfsctl(kvfsctl.base / "other", kvfsctl.capture)
    other.base.mkdir()
    other.create()
    key, new = str(kvfsctl.base / "pool.kek"), str(kvfsctl.base / "new")
    a, foreign = str(kvfsctl.base / "a"), f"{other.pool}/medium-0"
    plain = kvfsctl.base / "plain"
    plain.write_bytes(bytes(32 << 20))
    assert "name the pool's key" in kvfsctl.refused("rebuild", new, "--medium", a)
    assert "different pools" in kvfsctl.refused("rebuild", new, "--kek", key, "--medium", a, "--medium", foreign)
    assert "same medium" in kvfsctl.refused("rebuild", new, "--kek", key, "--medium", a, "--medium", a)
    assert "no valid superblock" in kvfsctl.refused("rebuild", new, "--kek", key, "--medium", str(plain))
    assert "No such file" in kvfsctl.refused("rebuild", new, "--kek", key, "--medium", f"{a}-gone")
    assert "--medium" in kvfsctl.refused("rebuild", new, "--key-directory", "x", status=2)
    elsewhere = kvfsctl.refused(*rebuild_words(kvfsctl, new), "--key-directory", str(other.base))
    assert "without its key file" in elsewhere
    assert not Path(new).exists()


def test_a_medium_that_was_moved_is_missing_until_the_pool_is_told(kvfsctl: Kvfsctl) -> None:
    make(kvfsctl)
    before = contents(Path(kvfsctl.pool), "blue")
    a, moved = kvfsctl.base / "a", kvfsctl.base / "elsewhere"
    a.rename(moved)
    said = kvfsctl.refused("tenant", "list", kvfsctl.pool)
    for part in ("medium 0", str(a), "missing", "kvfsctl pool relocate POOL 0 PATH"):
        assert part in said
    relocate = ["pool", "relocate", kvfsctl.pool]
    assert "it is medium 1 of the pool" in kvfsctl.refused(*relocate, "0", str(kvfsctl.base / "b"))
    assert "no medium 7; it has 0, 1" in kvfsctl.refused(*relocate, "7", str(moved))
    assert "No such file" in kvfsctl.refused(*relocate, "0", str(a))
    kvfsctl.refused("tenant", "list", kvfsctl.pool)
    assert f"medium 0 is {moved} now" in kvfsctl.ok(*relocate, "0", str(moved))
    assert contents(Path(kvfsctl.pool), "blue") == before
    inside = Path(kvfsctl.pool) / "inside"
    moved.rename(inside)
    assert kvfsctl.json(*relocate, "0", str(inside)) | {"uuid": ""} == {
        "index": 0,
        "uuid": "",
        "before": str(moved),
        "path": "inside",
    }
    Path(kvfsctl.pool).rename(kvfsctl.base / "renamed")
    assert contents(kvfsctl.base / "renamed", "blue") == before


class Locked:
    """A pool that somebody has open."""

    def __init__(self, directory: Path) -> None:
        self.close = PoolLock.acquire(directory).release


def test_a_pool_that_is_open_is_not_touched(filled: Kvfsctl) -> None:
    with contextlib.closing(Locked(Path(filled.pool))):
        for words in (["pool", "relocate", filled.pool, "0", f"{filled.pool}/medium-0"], ["rebuild", filled.pool]):
            assert "is open in" in filled.refused(*words)


def test_a_shredded_tenant_does_not_come_back_from_old_media(kvfsctl: Kvfsctl) -> None:
    make(kvfsctl)
    saved = [(path, shutil.copy(path, f"{path}.old")) for path in (kvfsctl.base / "a", kvfsctl.base / "b")]
    state = shutil.copytree(kvfsctl.pool, kvfsctl.base / "state.old")
    assert "--force" in kvfsctl.refused("tenant", "shred", kvfsctl.pool, "blue")
    kvfsctl.ok("tenant", "shred", kvfsctl.pool, "blue", "--force")
    assert [one["name"] for one in kvfsctl.json("tenant", "list", kvfsctl.pool)] == ["red"]
    assert contents(Path(kvfsctl.pool), "red")
    lose_catalog(kvfsctl)
    assert kvfsctl.json("rebuild", kvfsctl.pool)["tenants"] == 1
    for path, copy in saved:
        shutil.copy(copy, path)
    assert "no system record" in kvfsctl.refused("rebuild", "--force", kvfsctl.pool)
    assert "does not open" in kvfsctl.refused("tenant", "list", str(state))

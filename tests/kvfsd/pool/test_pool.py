"""Pools: made whole or not at all, opened with every refusal saying why, repaired, locked, closed clean."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from kvfs import limits
from kvfs.errors import (
    ConfigError,
    DeadlineExceededError,
    ExistsError,
    FailsafeError,
    FormatError,
    InvalidArgumentError,
    KvfsError,
    MediumUnavailableError,
    NotFoundError,
    NotPermittedError,
    PoolBusyError,
    WrongKeyError,
)
from kvfsd.catalog.rows import BlockRow, Location, SegmentRow
from kvfsd.catalog.schema import SegmentState
from kvfsd.crypto.kek import Passphrase, RawKeyFile
from kvfsd.media.superblocks import read_superblock, write_superblock
from kvfsd.ondisk import superblock
from kvfsd.ondisk.superblock import SLOT_BYTES, SLOT_OFFSETS
from kvfsd.pool import pool as pool_module
from kvfsd.pool import poolfile, poolmedia
from kvfsd.pool.pool import Pool
from kvfsd.pool.poolmaking import PoolPlan, create_pool, default_medium
from kvfsd.pool.poolmedia import MediumSpec, default_segment_bytes
from kvfsd.ports import InlineOffload, Ports, SystemRandomness

SIZE = 32 * limits.MIB
PORTS = Ports(offload=InlineOffload())


@pytest.fixture
def kek(tmp_path) -> RawKeyFile:
    (tmp_path / "keys").mkdir(mode=0o700)
    return RawKeyFile.create(tmp_path / "keys" / "kek", SystemRandomness())


@pytest.fixture
async def directory(tmp_path, kek) -> Path:
    """A closed pool with one medium inside its state directory and a tenant."""
    made = await create_pool(tmp_path / "pool", plan_of(tmp_path / "pool"), kek, ports=PORTS)
    made.tenants.create("alice")
    await made.aclose()
    return tmp_path / "pool"


def plan_of(directory: Path, **options) -> PoolPlan:
    return PoolPlan(media=[default_medium(directory, SIZE)], **options)


async def opened(directory: Path, source=None, **options) -> Pool:
    return await Pool.open(directory, source, ports=PORTS, **options)


async def refusal(directory: Path, error: type[KvfsError], source=None, **options) -> str:
    """What opening says; afterwards nothing is left open: lock, catalog, media."""
    before = open_files()
    with pytest.raises(error) as caught:
        await opened(directory, source, **options)
    text = str(caught.value)
    if "not a database" not in text:  # there the connection goes with the exception
        assert open_files() == before
    return text


def open_files() -> list[str]:
    """What the descriptors of this process refer to."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return sorted(name for name in found if "/proc/" not in name)


def snapshot(*roots: Path) -> dict[Path, bytes | None]:
    found = [path for root in roots for path in [root, *root.rglob("*")] if path.exists()]
    return {path: path.read_bytes() if path.is_file() else None for path in found}


# --- making ----------------------------------------------------------------------------------------------------


async def test_a_pool_is_made_opened_and_opened_again(tmp_path, kek):
    made = await create_pool(tmp_path / "pool", plan_of(tmp_path / "pool"), kek, ports=PORTS)
    alice = made.tenants.create("alice", quota_bytes=7)
    assert made.warnings == []
    assert (made.replicas, list(made.media)) == (1, [0])
    assert made.media[0].superblock.pool == made.uuid
    await made.aclose()
    for _ in range(2):
        again = await opened(tmp_path / "pool")
        assert again.uuid == made.uuid
        assert again.tenants.list() == [alice]
        assert again.warnings == []
        assert again.catalog.database.was_clean
        await again.aclose()
        await again.aclose()


async def test_what_is_made_is_private(directory, kek):
    for path in [*directory.iterdir(), *kek.path.parent.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert directory.stat().st_mode & 0o777 == 0o700


async def test_several_media_with_weights_domains_and_replicas(tmp_path, kek):
    device = tmp_path / "prepared"
    with device.open("wb") as file:
        file.truncate(4 * SIZE + 4097)
    media = [
        MediumSpec(path=tmp_path / "one", size_bytes=SIZE + 100, failure_domain="shelf-1"),
        MediumSpec(path=device, weight=9),
    ]
    plan = PoolPlan(media=media, replicas=2, segment_bytes=5 * limits.MIB)
    async with aclosing(await create_pool(tmp_path / "pool", plan, kek, ports=PORTS)) as made:
        one, two = made.media[0].superblock, made.media[1].superblock
        assert (one.size_bytes, one.weight, one.failure_domain) == (SIZE, 1, "shelf-1")
        assert (two.size_bytes, two.weight, two.failure_domain) == (4 * SIZE + 4096, 9, "")
        assert one.segment_bytes == two.segment_bytes == 5 * limits.MIB
        rows = made.catalog.media.all()
        assert [(row.medium, row.uuid, row.weight) for row in rows] == [(0, one.medium, 1), (1, two.medium, 9)]


@pytest.mark.parametrize(
    ("medium_bytes", "segment_bytes"),
    [
        (SIZE, 4 * limits.MIB),
        (64 * 5 * limits.MIB + 64 * 5000, 5 * limits.MIB + 4096),
        (limits.GIB << 10, 64 * limits.MIB),
    ],
)
def test_default_segment_size(medium_bytes, segment_bytes):
    assert default_segment_bytes(medium_bytes) == segment_bytes


async def test_a_pool_moves_with_its_directory_if_its_medium_is_inside(directory, tmp_path):
    directory.rename(tmp_path / "moved")
    async with aclosing(await opened(tmp_path / "moved")) as pool:
        assert pool.media[0].medium.name == str(tmp_path / "moved" / "medium-0")


async def test_a_passphrase_has_to_be_given_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    source = Passphrase(lambda: b"correct horse")
    made = await create_pool(tmp_path / "pool", plan_of(tmp_path / "pool"), source, ports=PORTS)
    await made.aclose()
    assert made.key_file.directory == tmp_path / "config" / "kvfs" / "keys"
    assert "comes from a passphrase: give it" in await refusal(tmp_path / "pool", WrongKeyError)
    await (await opened(tmp_path / "pool", Passphrase(lambda: b"correct horse"))).aclose()


async def test_a_key_beside_what_it_protects_is_warned_about(tmp_path):
    (tmp_path / "media").mkdir()
    kek = RawKeyFile.create(tmp_path / "media" / "kek", SystemRandomness())
    plan = PoolPlan(media=[MediumSpec(path=tmp_path / "media" / "one", size_bytes=SIZE)])
    made = await create_pool(tmp_path / "pool", plan, kek, ports=PORTS)
    await made.aclose()
    again = await opened(tmp_path / "pool")
    await again.aclose()
    for warnings in (made.warnings, again.warnings):
        assert len(warnings) == 2
        assert all("beside a medium" in warning for warning in warnings)


def bad_plans(root: Path) -> dict[str, PoolPlan]:
    one = MediumSpec(path=root / "m", size_bytes=SIZE)
    return {
        "a pool has 1 to 256 media, 0": PoolPlan(media=[]),
        "2 replicas": PoolPlan(media=[one], replicas=2),
        "0 replicas": PoolPlan(media=[one], replicas=0),
        "5 replicas": PoolPlan(media=[MediumSpec(path=root / str(i), size_bytes=SIZE) for i in range(6)], replicas=5),
        "same path": PoolPlan(media=[one, one]),
        "too small": PoolPlan(media=[MediumSpec(path=root / "m", size_bytes=SIZE - 1)]),
        "weight 0": PoolPlan(media=[MediumSpec(path=root / "m", size_bytes=SIZE, weight=0)]),
        "segment": PoolPlan(media=[one], segment_bytes=limits.MIB),
        "alignment": PoolPlan(media=[one], segment_bytes=4 * limits.MIB + 1),
        "segment count": PoolPlan(media=[one], segment_bytes=32 * limits.MIB),
        "failure domain": PoolPlan(media=[MediumSpec(path=root / "m", size_bytes=SIZE, failure_domain="x" * 65)]),
    }


@pytest.mark.parametrize("text", bad_plans(Path("x")))
async def test_a_bad_plan_is_refused_and_leaves_nothing(tmp_path, kek, text):
    before = snapshot(tmp_path)
    with pytest.raises(InvalidArgumentError) as caught:
        await create_pool(tmp_path / "pool", bad_plans(tmp_path)[text], kek, ports=PORTS)
    if text != "segment count":  # a medium without room for one segment is told by its data offset
        assert text in str(caught.value)
    assert snapshot(tmp_path) == before


async def test_nothing_that_exists_is_overwritten(tmp_path, directory, kek):
    with pytest.raises(ExistsError, match="holds a pool already"):
        await create_pool(
            directory, PoolPlan(media=[MediumSpec(path=tmp_path / "m", size_bytes=SIZE)]), kek, ports=PORTS
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    (tmp_path / "file").touch()
    small = tmp_path / "small"
    small.write_bytes(bytes(5000))
    used = tmp_path / "used"
    with used.open("wb") as file:
        file.write(b"somebody's filesystem")
        file.truncate(SIZE)
    before = snapshot(tmp_path)
    new = tmp_path / "new"
    for where, media, error, text in (
        (tmp_path / "full", [default_medium(tmp_path / "full", SIZE)], ExistsError, r"something \(thing\)"),
        (tmp_path / "file", [default_medium(tmp_path / "file", SIZE)], ConfigError, "Not a directory"),
        (new, [MediumSpec(path=used, size_bytes=SIZE)], ExistsError, "exists already"),
        (new, [default_medium(new, SIZE), MediumSpec(path=used)], ExistsError, "not empty"),
        (new, [default_medium(new, SIZE), MediumSpec(path=small)], InvalidArgumentError, "too small"),
        (new, [default_medium(new, SIZE), MediumSpec(path=tmp_path / "gone")], MediumUnavailableError, "No such file"),
        (new, [default_medium(new, SIZE), MediumSpec(path=directory / "medium-0")], ExistsError, "not empty"),
    ):
        with pytest.raises(error, match=text):
            await create_pool(where, PoolPlan(media=media), kek, ports=PORTS)
        assert snapshot(tmp_path) == before


async def test_a_key_that_cannot_be_had_leaves_nothing(tmp_path, kek):
    kek.path.chmod(0o644)
    before = snapshot(tmp_path)
    with pytest.raises(WrongKeyError, match="chmod 600"):
        await create_pool(tmp_path / "pool", plan_of(tmp_path / "pool"), kek, ports=PORTS)
    assert snapshot(tmp_path) == before


async def test_a_failure_at_the_last_step_takes_everything_back(tmp_path, kek, monkeypatch):
    prepared = tmp_path / "prepared"
    with prepared.open("wb") as file:
        file.truncate(SIZE)
    before = snapshot(tmp_path)

    def full(directory, file):
        raise ConfigError("no space")

    monkeypatch.setattr(poolfile, "write", full)
    plan = PoolPlan(media=[default_medium(tmp_path / "pool", SIZE), MediumSpec(path=prepared)])
    with pytest.raises(ConfigError, match="no space"):
        await create_pool(tmp_path / "pool", plan, kek, ports=PORTS)
    assert snapshot(tmp_path) == before
    monkeypatch.undo()
    await (await create_pool(tmp_path / "pool", plan, kek, ports=PORTS)).aclose()


# --- opening ---------------------------------------------------------------------------------------------------


async def test_no_pool_there(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        assert "holds no pool" in await refusal(path, NotFoundError)


def start(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def test_the_lock_names_its_holder(directory):
    program = f"""
import sys, trio
from pathlib import Path
from kvfsd.pool.pool import Pool
async def main():
    pool = await Pool.open(Path({str(directory)!r}))
    print("open", flush=True)
    sys.stdin.read()
trio.run(main)
"""
    holder = start(program)
    try:
        assert holder.stdout.readline() == b"open\n"
        assert f"is open in process {holder.pid}" in await refusal(directory, PoolBusyError)
        reader = await opened(directory, read_only=True)
        assert reader.live
        assert [tenant.name for tenant in reader.tenants.list()] == ["alice"]
        await reader.aclose()
    finally:
        holder.kill()
        holder.wait(timeout=10)
        holder.stdin.close()
        holder.stdout.close()
    pool = await opened(directory)  # the kernel dropped the lock with the process
    assert not pool.catalog.database.was_clean
    await pool.aclose()


async def test_readers_of_a_closed_pool_keep_writers_away(directory):
    reader, other = await opened(directory, read_only=True), await opened(directory, read_only=True)
    assert not reader.live
    assert "it can be open once" in await refusal(directory, PoolBusyError)
    await reader.aclose()
    assert "it can be open once" in await refusal(directory, PoolBusyError)
    await other.aclose()
    await (await opened(directory)).aclose()


async def test_read_only_changes_nothing(directory, kek):
    (directory / "pool.json.bak").unlink()
    corrupt(directory / "medium-0", SLOT_OFFSETS[0] + 20)
    before = snapshot(directory, kek.path.parent)
    reader = await opened(directory, read_only=True)
    with pytest.raises(NotPermittedError, match="read-only"):
        reader.tenants.create("bob")
    with pytest.raises(NotPermittedError):
        reader.tenants.delete("alice")
    assert len(reader.warnings) == 2
    await reader.aclose()
    assert snapshot(directory, kek.path.parent) == before


async def test_wrong_keys(directory, kek, tmp_path):
    other = RawKeyFile.create(tmp_path / "other", SystemRandomness())
    before = snapshot(directory)
    assert "is not the KEK" in await refusal(directory, WrongKeyError, other)
    assert "cannot read the key" in await refusal(directory, WrongKeyError, RawKeyFile(tmp_path / "none"))
    for path in kek.path.parent.glob("*.slots*"):
        path.rename(path.with_suffix(path.suffix + ".away"))
    assert "without its key file" in await refusal(directory, WrongKeyError)
    assert {path: content for path, content in snapshot(directory).items() if path.name != "lock"} == {
        path: content for path, content in before.items() if path.name != "lock"
    }


async def test_a_key_file_from_before_a_shred_is_a_wrong_key(directory, kek, tmp_path):
    """The slot key was replaced; an older copy of the key file opens nothing any more."""
    shutil.copytree(kek.path.parent, tmp_path / "old-keys")
    async with aclosing(await opened(directory)) as pool:
        rewrap = pool.ring.plan_shred(pool.tenants.show("alice").number)
        pool.key_file.propose(rewrap.slot_key)
        with pool.catalog.transaction():
            pool.catalog.tenants.put_slots(rewrap.slots)
            pool.catalog.tenants.begin_delete(rewrap.tenant)
        pool.key_file.settle(rewrap.slot_key)
    for path in (tmp_path / "old-keys").iterdir():
        shutil.copy(path, kek.path.parent / path.name)
    assert "key slot of tenant 0, epoch 0 does not open" in await refusal(directory, WrongKeyError)


async def test_a_shred_that_was_cut_off_is_ended_at_the_next_opening(directory):
    pool = await opened(directory)
    pool.key_file.propose(pool.ring.plan_shred(1).slot_key)
    await pool.aclose()
    async with aclosing(await opened(directory)) as pool:
        assert pool.tenants.show("alice").name == "alice"
        assert pool.key_file.load(RawKeyFile(Path(pool.file.kek.name))).pending is None


def corrupt(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


@pytest.mark.parametrize("slot", [0, 1])
async def test_one_damaged_superblock_is_repaired(directory, slot):
    corrupt(directory / "medium-0", SLOT_OFFSETS[slot] + 20)
    pool = await opened(directory)
    await pool.aclose()
    assert len(pool.warnings) == 1
    assert f"slot {slot}" in pool.warnings[0]
    assert "written again" in pool.warnings[0]
    pool = await opened(directory)
    await pool.aclose()
    assert pool.warnings == []


async def test_two_damaged_superblocks_are_refused(directory):
    for offset in SLOT_OFFSETS:
        corrupt(directory / "medium-0", offset + 20)
    assert "no valid superblock" in await refusal(directory, FormatError)


async def two_media_pool(tmp_path: Path, kek: RawKeyFile, name: str) -> Path:
    media = [MediumSpec(path=tmp_path / f"{name}-{index}", size_bytes=SIZE) for index in range(2)]
    await (await create_pool(tmp_path / name, PoolPlan(media=media), kek, ports=PORTS)).aclose()
    return tmp_path / name


async def test_missing_foreign_swapped_and_cut_media_are_refused(tmp_path, kek):
    a, b = await two_media_pool(tmp_path, kek, "a"), await two_media_pool(tmp_path, kek, "b")
    one, two, away = tmp_path / "a-0", tmp_path / "a-1", tmp_path / "away"

    async def check(error: type[KvfsError], *texts: str) -> None:
        said = await refusal(a, error)
        assert all(text in said for text in texts), said

    one.rename(away)
    await check(MediumUnavailableError, "medium 0 of the pool is missing", str(one), "pool relocate POOL 0 PATH")
    shutil.copy(tmp_path / "b-0", one)
    await check(FormatError, "foreign", str(one))
    shutil.copy(two, one)
    await check(FormatError, "swapped", "it is medium 1", "medium 0 was expected here")
    one.write_bytes(bytes(SIZE))
    await check(FormatError, "no valid superblock")
    shutil.copy(away, one)
    os.truncate(one, SIZE - 4096)
    await check(FormatError, "size")
    shutil.copy(away, one)
    await (await opened(a)).aclose()
    await (await opened(b)).aclose()


async def test_features_of_a_newer_kvfs(directory):
    async def set_features(**flags) -> None:
        medium = poolmedia.FileMedia(PORTS.offload).open(directory / "medium-0", read_only=False)
        found = await read_superblock(medium)
        await write_superblock(medium, found, dataclasses.replace(found.superblock, **flags))
        await medium.aclose()

    await set_features(compat=1)
    await (await opened(directory)).aclose()
    await set_features(ro_compat=1)
    assert "open the pool read-only" in await refusal(directory, NotPermittedError)
    await (await opened(directory, read_only=True)).aclose()


async def test_an_unknown_incompatible_feature_is_refused(directory):
    with (directory / "medium-0").open("r+b") as file:
        for slot, offset in enumerate(SLOT_OFFSETS):
            file.seek(offset)
            values = list(superblock.LAYOUT.unpack(file.read(SLOT_BYTES), "test"))
            assert values[2] == slot
            values[3] = 1 << 7
            file.seek(offset)
            file.write(superblock.LAYOUT.pack(*values))
    assert "newer kvfs" in await refusal(directory, FormatError)
    assert "newer kvfs" in await refusal(directory, FormatError, read_only=True)


async def test_the_catalog_is_checked(directory, tmp_path, kek):
    other = await two_media_pool(tmp_path, kek, "b")
    catalog = directory / "catalog.db"
    good = catalog.read_bytes()
    catalog.write_bytes((other / "catalog.db").read_bytes())
    assert "belongs to another pool" in await refusal(directory, FormatError)
    catalog.write_bytes(b"no database" * 1000)
    assert "kvfsctl rebuild POOL" in await refusal(directory, FailsafeError)
    catalog.unlink()
    assert "no such file" in await refusal(directory, FailsafeError)
    catalog.write_bytes(good)
    await (await opened(directory)).aclose()


async def test_opening_drops_what_a_dead_process_staged(directory):
    pool = await opened(directory)
    attachment = pool.catalog.database.next_attachment()
    with pool.catalog.transaction():
        pool.catalog.segments.allocate(SegmentRow(0, 0, SegmentState.OPEN, 1, 1, 1, 4096, 0))
        row = BlockRow(0, 5, 10, 1, bytes(16), (Location(0, 0, 1),))
        pool.catalog.blocks.stage(attachment, 1, 77, row)
    assert pool.catalog.blocks.staged_bytes(1) == 10
    pool.catalog.database.abandon()
    for one in pool.media.values():
        await one.medium.aclose()
    pool._lock.release()
    async with aclosing(await opened(directory)) as pool:
        assert pool.catalog.blocks.staged_bytes(1) == 0
        assert pool.catalog.segments.get(0, 0).live_bytes == 0
        assert pool.catalog.database.next_attachment() > attachment


# --- closing ---------------------------------------------------------------------------------------------------


async def test_closing_drains_before_anything_goes_last_come_first(directory):
    pool = await opened(directory)
    order = []

    async def drain(name: str) -> None:
        pool.catalog.database.one("SELECT 1")
        await trio.lowlevel.checkpoint()
        order.append(name)

    pool.before_close(lambda: drain("log"))
    pool.before_close(lambda: drain("sessions"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await pool.aclose()
    assert order == ["sessions", "log"]
    pool = await opened(directory)
    assert pool.catalog.database.was_clean
    await pool.aclose()


async def test_a_drain_that_fails_is_told_and_the_catalog_is_not_clean(directory):
    pool = await opened(directory)

    async def fail() -> None:
        raise MediumUnavailableError("gone")

    pool.before_close(fail)
    with pytest.raises(MediumUnavailableError, match="gone"):
        await pool.aclose()
    pool = await opened(directory)
    assert not pool.catalog.database.was_clean
    await pool.aclose()


async def test_a_drain_that_hangs_is_given_up(directory, monkeypatch):
    monkeypatch.setattr(pool_module, "CLOSE_STEP_DEADLINE_S", 0.01)
    pool = await opened(directory)
    pool.before_close(trio.sleep_forever)
    with pytest.raises(DeadlineExceededError, match="closing the pool"):
        await pool.aclose()
    monkeypatch.undo()
    await (await opened(directory)).aclose()


async def test_sync_flushes_media_before_the_catalog(directory, monkeypatch):
    pool = await opened(directory)
    order = []
    medium, database = pool.media[0].medium, pool.catalog.database

    async def flush() -> None:
        order.append("medium")

    monkeypatch.setattr(medium, "flush", flush)
    monkeypatch.setattr(type(database), "sync_call", lambda self: lambda: order.append("catalog"))
    await pool.sync()
    assert order == ["medium", "catalog"]

    async def broken() -> None:
        raise MediumUnavailableError("flush")

    monkeypatch.setattr(medium, "flush", broken)
    with pytest.raises(MediumUnavailableError):
        await pool.sync()
    assert order == ["medium", "catalog"]
    monkeypatch.undo()
    await pool.aclose()


@pytest.mark.parametrize("which", [0, 1])
async def test_a_damaged_pool_file_is_written_again(directory, which):
    path = directory / poolfile.NAMES[which]
    good = path.read_bytes()
    path.write_bytes(b"{")
    pool = await opened(directory)
    await pool.aclose()
    assert str(path) in pool.warnings[0]
    assert path.read_bytes() == good


async def test_two_damaged_pool_files_are_refused(directory):
    for name in poolfile.NAMES:
        corrupt(directory / name, 30)
    assert "neither copy" in await refusal(directory, FormatError)

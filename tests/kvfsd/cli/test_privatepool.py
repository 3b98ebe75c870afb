import shutil
import stat
from collections import namedtuple

import pytest

from kvfs.errors import ConfigError
from kvfsd.cli import privatepool
from kvfsd.pool.pool import Pool


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


async def test_it_is_made_once_with_a_key_of_its_own(home):
    directory, note = await privatepool.ensure_private_pool()
    assert str(directory) in note
    assert await privatepool.ensure_private_pool() == (directory, "")
    (kek,) = (home / "config" / "kvfs" / "keys").glob("*.kek")
    assert stat.S_IMODE(kek.stat().st_mode) == 0o600
    assert directory not in kek.parents
    pool = await Pool.open(directory)
    try:
        assert [tenant.name for tenant in pool.tenants.list()] == ["default"]
        assert pool.warnings == []
    finally:
        await pool.aclose()


async def test_what_a_crash_left_unfinished_makes_room_and_is_kept(home):
    left = home / "data" / "kvfs" / "pool"
    left.mkdir(parents=True, mode=0o700)
    (left / "catalog.db").write_text("half")
    left.parent.chmod(0o700)
    directory, _ = await privatepool.ensure_private_pool()
    await (await Pool.open(directory)).aclose()
    (aside,) = left.parent.glob("pool.incomplete-*")
    assert (aside / "catalog.db").read_text() == "half"


@pytest.mark.parametrize(("free_gib", "size_gib"), [(1000, 64), (40, 36)])
def test_its_size_leaves_room_on_the_disk(home, monkeypatch, free_gib, size_gib):
    usage = namedtuple("usage", "total used free")(0, 0, free_gib << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert privatepool._medium_bytes(home) == size_gib << 30


async def test_a_full_disk_is_said_and_no_key_is_left(home, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match="100 MiB free"):
        await privatepool.ensure_private_pool()
    assert list((home / "config").rglob("*.kek")) == []

import json
import os
import subprocess
import sys

import pytest

from kvfs.errors import ConfigError
from kvfsd import directories
from kvfsd.admin import mounts
from kvfsd.admin.mounts import MountRecord


def record_of(pid: int, ticks: int, mountpoint: str = "/kv/a", pool: str = "/pool") -> MountRecord:
    return MountRecord(1, pid, ticks, mountpoint, pool, "default", "/run/x.sock", "", 5)


def mine(mountpoint: str = "/kv/a") -> MountRecord:
    ticks = mounts.process_start_ticks(os.getpid())
    assert ticks is not None
    return record_of(os.getpid(), ticks, mountpoint)


def test_a_record_comes_back_also_with_a_name_that_is_not_utf8(tmp_path):
    record = mine("/kv/\udcff b")
    mounts.write_record(tmp_path, record)
    assert list(mounts.all_records([tmp_path])) == [(tmp_path, record)]
    assert record.alive


def test_a_reused_pid_is_not_taken_for_the_mount(tmp_path):
    assert not record_of(os.getpid(), 1).alive


def test_an_ended_process_is_stale_and_its_record_goes(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = mounts.process_start_ticks(child.pid)
    record = record_of(child.pid, ticks)
    mounts.write_record(tmp_path, record)
    assert record.alive
    assert mounts.remove_stale([tmp_path]) == []
    assert not mounts.wait_for_exit(child.pid, ticks, 10)
    child.communicate(b"\n")
    assert mounts.wait_for_exit(child.pid, ticks, 5000)
    assert not record.alive
    assert mounts.remove_stale([tmp_path]) == [record]
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_passed_over(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text(json.dumps({"version": 99}))
    (tmp_path / "c.json").write_bytes(b"\xff\x00" * 100)
    (tmp_path / "d.json").write_text("[" * 100_000)
    assert list(mounts.all_records([tmp_path, tmp_path / "missing"])) == []


def test_remove_leaves_the_record_of_a_newer_mount(tmp_path):
    old, new = record_of(1, 1), mine()
    mounts.write_record(tmp_path, new)
    mounts.remove_record(tmp_path, old)
    assert mounts.find_by_mountpoint("/kv/a", [tmp_path]) == (tmp_path, new)


def test_a_live_record_is_preferred_over_a_stale_one(tmp_path):
    stale, live = tmp_path / "s", tmp_path / "l"
    for directory, record in ((stale, record_of(os.getpid(), 1)), (live, mine())):
        directory.mkdir()
        mounts.write_record(directory, record)
    assert mounts.find_by_mountpoint("/kv/a", [stale, live]) == (live, mine())
    assert mounts.live_mount_of_pool("/pool", [stale, live]) == mine()
    assert mounts.live_mount_of_pool("/pool", [stale]) is None


def test_mountinfo_is_read_with_its_escapes(tmp_path):
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(
        b"22 1 0:5 / /dev rw shared:2 - devtmpfs dev rw\n"
        b"90 22 0:50 / /kv/a\\040b\\134c rw,nosuid - fuse.kvfs default@/pool rw,user_id=0\n"
        b"91 22 0:51 / /kv/other rw - fuse.sshfs x rw\n"
    )
    assert mounts.kvfs_mountpoints(str(mountinfo)) == ["/kv/a b\\c"]


def test_a_mountpoint_is_resolved_through_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "parent").symlink_to(tmp_path)
    assert mounts.resolve_mountpoint(f"{tmp_path}/parent/link/") == f"{os.path.realpath(tmp_path)}/real"
    assert mounts.resolve_mountpoint(f"{tmp_path}/missing") == f"{os.path.realpath(tmp_path)}/missing"


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert mounts.resolve_mountpoint(str(tmp_path / "a")).startswith(os.path.realpath(tmp_path))


def test_the_root_is_no_mountpoint():
    with pytest.raises(ConfigError, match="root directory"):
        mounts.resolve_mountpoint("/")


def test_directories_follow_xdg_and_ignore_relative_values():
    environment = {"XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"}
    assert str(directories.private_pool(environment)) == "/d/kvfs/pool"
    assert str(directories.keys(environment)) == "/c/kvfs/keys"
    assert str(directories.logs(environment)) == "/s/kvfs"
    own, system, daemon = directories.Path("/r/kvfs"), directories.SYSTEM_RUNTIME, directories.SYSTEM_DAEMON_RUNTIME
    assert directories.runtime_searched(environment) == [own, system, daemon]
    relative = {"XDG_DATA_HOME": "d"}
    assert str(directories.private_pool(relative)).endswith("/.local/share/kvfs/pool")


def test_a_runtime_directory_that_others_may_write_is_refused(tmp_path):
    directory = tmp_path / "r"
    assert directories.ensure_private(directory).stat().st_mode & 0o777 == 0o700
    directory.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod go-w"):
        directories.ensure_private(directory)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make"):
        directories.ensure_private(tmp_path / "file" / "below")

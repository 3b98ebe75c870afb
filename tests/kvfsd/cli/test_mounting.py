"""`kvfs mount|umount|status` and `mount.kvfs` from end to end, on real mounts."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from kvfsd.admin import admin_client
from tests import mountlib
from tests.kvfsd.cli.sandbox import Sandbox, alive, wait_until

pytestmark = pytest.mark.mount


def make_pool(sandbox: Sandbox, *options: str) -> str:
    sandbox.ok("kvfsctl", "pool", "create", "pool", "--kek", "pool.kek", "--size", "256M", "--tenant", "blue", *options)
    return f"blue@{sandbox.base}/pool"


def test_a_private_pool_is_made_said_once_and_keeps_what_was_stored(sandbox):
    said = sandbox.ok("kvfs", "mount", "mnt")
    pool = sandbox.base / "data" / "kvfs" / "pool"
    (kek,) = (sandbox.base / "config" / "kvfs" / "keys").glob("*.kek")
    assert said.count("\n") == 1
    assert str(pool) in said
    assert str(kek) in said
    assert stat.S_IMODE(kek.stat().st_mode) == 0o600
    sandbox.in_child("mkdir mnt/d; head -c 3000000 /dev/zero | tr '\\0' x > mnt/d/f; mv mnt/d/f mnt/d/g")
    (pid,) = sandbox.pids()
    assert sandbox.ok("kvfs", "umount", "mnt") == ""
    assert not alive(pid)
    assert mountlib.connection_of(sandbox.mountpoint) is None
    assert list(sandbox.runtime.iterdir()) == []
    assert sandbox.ok("kvfs", "mount", "mnt") == ""
    assert sandbox.in_child("wc -c < mnt/d/g; tr -d x < mnt/d/g | wc -c").split() == ["3000000", "0"]
    sandbox.ok("kvfs", "umount", "mnt")
    assert "0 bad replicas" in sandbox.ok("kvfsctl", "verify", str(pool))


def test_status_shows_use_hits_misses_and_stages(sandbox):
    source = make_pool(sandbox)
    sandbox.ok("kvfs", "mount", source, "mnt", "-o", "quota=64M")
    sandbox.in_child("echo x > mnt/f; test ! -e mnt/none; test ! -e mnt/none2")
    (mount,) = (one for one in json.loads(sandbox.ok("kvfs", "status", "mnt", "--json")))
    assert (mount["state"], mount["tenant"], mount["mountpoint"]) == ("serving", "blue", str(sandbox.mountpoint))
    assert (mount["usage"]["quota_bytes"], mount["usage"]["used_bytes"], mount["usage"]["used_objects"]) == (
        64 << 20,
        2,
        1,
    )
    assert mount["metrics"]["commands"]["Lookup"]["NOT_FOUND"] >= 2
    assert mount["metrics"]["stages"]["write"]["commit"]["calls"] == 1
    assert "status" in admin_client.call(mount["admin_socket"], "rpc_get_methods")
    assert (
        'kvfs_stage_seconds_count{path="write",stage="seal"} 1.0'
        in (admin_client.call(mount["admin_socket"], "metrics")["text"])
    )
    table = sandbox.ok("kvfs", "status", "mnt", "--stages")
    assert "64.0 MiB" in table
    assert "LOG LAG ms" in table
    assert 0 <= mount["metrics"]["gauges"]["metadata_log_lag_seconds"] < 60
    assert "seal" in table
    sandbox.ok("kvfs", "umount", "mnt")
    assert "no kvfs mountpoint" in sandbox.refused("kvfs", "status", "mnt")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_unmounts_and_closes_in_order(sandbox, number):
    source = make_pool(sandbox)
    process = sandbox.start("kvfs", "mount", "-f", source, "mnt")
    wait_until(sandbox.pids, "the mount is ready")
    sandbox.in_child("echo kept > mnt/f")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert mountlib.connection_of(sandbox.mountpoint) is None
    assert sandbox.pids() == []
    assert "/f" in sandbox.ok("kvfsctl", "ls", "-R", source)
    assert not (sandbox.base / "pool" / "catalog.db-wal").exists()  # what only a clean end leaves behind


def test_the_service_manager_is_told(sandbox):
    source = make_pool(sandbox)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(sandbox.base / "notify"))
        manager.settimeout(60)
        process = sandbox.start("kvfs", "mount", "-f", source, "mnt", NOTIFY_SOCKET=str(sandbox.base / "notify"))
        assert manager.recv(4096).split(b"\n")[0] == b"READY=1"
        assert mountlib.connection_of(sandbox.mountpoint) is not None
        process.terminate()
        assert manager.recv(4096) == b"STOPPING=1"
        process.communicate(timeout=60)


def test_after_kill_9_status_says_dead_umount_clears_and_the_next_mount_goes_on(sandbox):
    source = make_pool(sandbox)
    sandbox.ok("kvfs", "mount", source, "mnt")
    sandbox.in_child("echo kept > mnt/f")
    (pid,) = sandbox.pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), "the process is gone")
    (mount,) = json.loads(sandbox.ok("kvfs", "status", "mnt", "--json"))
    assert mount["state"] == "dead"
    assert "kvfs umount" in sandbox.ok("kvfs", "status", "mnt")
    assert "process is gone" in sandbox.refused("kvfs", "mount", source, "mnt")
    sandbox.ok("kvfs", "umount", "mnt")
    sandbox.ok("kvfs", "mount", source, "mnt")
    assert sandbox.in_child("cat mnt/f") == "kept\n"
    sandbox.ok("kvfs", "umount", "mnt")
    assert "no kvfs mountpoint" in sandbox.refused("kvfs", "umount", "mnt")


def test_a_busy_mount_names_its_holder_and_lazy_frees_it(sandbox):
    source = make_pool(sandbox)
    sandbox.ok("kvfs", "mount", source, "mnt")
    sandbox.in_child("echo x > mnt/f")
    reader = "f = open('mnt/f'); print('open', flush=True); input(); print(f.read())"
    holder = subprocess.Popen(
        [sys.executable, "-c", reader], cwd=sandbox.base, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "open\n"
        line = sandbox.refused("kvfs", "umount", "mnt")
        assert f"held by {holder.pid} (" in line
        assert "--lazy" in line
        (pid,) = sandbox.pids()
        assert f"process {pid} ends when" in sandbox.ok("kvfs", "umount", "--lazy", "mnt")
        assert mountlib.connection_of(sandbox.mountpoint) is None
        assert holder.communicate("\n", timeout=60)[0] == "x\n\n"
        wait_until(lambda: not alive(pid), "the process ends with its last open file")
        assert list(sandbox.runtime.iterdir()) == []
    finally:
        holder.kill()
        holder.communicate()


def test_refusals_are_one_line_and_leave_nothing_behind(sandbox):
    source = make_pool(sandbox)
    os.makedirs(sandbox.base / "full" / "x")
    (sandbox.base / "file").write_text("")
    (sandbox.base / "other.kek").write_text("ab" * 32 + "\n")
    (sandbox.base / "other.kek").chmod(0o600)
    mount = ("kvfs", "mount")
    assert "does not exist" in sandbox.refused(*mount, source, "missing")
    assert "not a directory" in sandbox.refused(*mount, source, "file")
    assert "not empty" in sandbox.refused(*mount, source, "full")
    assert "not empty" in sandbox.refused(*mount, "-f", source, "full")
    assert "kvfsctl pool create" in sandbox.refused(*mount, "nopool", "mnt")
    assert "kvfsctl tenant create" in sandbox.refused(*mount, f"red@{sandbox.base}/pool", "mnt")
    assert "other.kek" in sandbox.refused(*mount, source, "mnt", "-o", "kek=other.kek")
    assert "none.kek" in sandbox.refused(*mount, source, "mnt", "-o", "kek=none.kek")
    assert "frobnicate" in sandbox.refused(*mount, source, "mnt", "-o", "frobnicate", status=2)
    assert "SOURCE" in sandbox.refused(*mount, "a", "b", "c", status=2)
    assert mountlib.connection_of(sandbox.mountpoint) is None
    assert not sandbox.runtime.exists() or list(sandbox.runtime.iterdir()) == []
    sandbox.ok(*mount, source, "mnt")  # and all of that did no harm
    (pid,) = sandbox.pids()
    assert f"already mounted (process {pid})" in sandbox.refused(*mount, source, "mnt")
    os.mkdir(sandbox.base / "second")
    line = sandbox.refused(*mount, source, "second")
    assert f"is mounted at {sandbox.mountpoint} (process {pid}, tenant blue)" in line
    assert "kvfsd" in line
    sandbox.ok("kvfs", "umount", "mnt")


def test_ro_refuses_writes(sandbox):
    source = make_pool(sandbox)
    sandbox.ok("kvfs", "mount", source, "mnt", "-o", "ro")
    assert "Read-only file system" in sandbox.in_child("touch mnt/f 2>&1 || true")
    sandbox.ok("kvfs", "umount", "mnt")


def test_mount_kvfs_takes_what_mount_passes(sandbox):
    source = make_pool(sandbox)
    options = "rw,allow_other,kek=pool.kek,x-systemd.requires=a.service,_netdev,nofail,noexec"
    assert sandbox.ok("mount.kvfs", source, "mnt", "-o", options) == ""
    assert mountlib.connection_of(sandbox.mountpoint) is not None
    flags = subprocess.run(
        ["findmnt", "-no", "OPTIONS", str(sandbox.mountpoint)], capture_output=True, text=True, timeout=10
    )
    assert {"noexec", "allow_other", "nosuid", "nodev"} <= set(flags.stdout.strip().split(","))
    sandbox.ok("kvfs", "umount", "mnt")
    assert "frob" in sandbox.refused("mount.kvfs", source, "mnt", "-o", "frob", status=1)
    assert "usage" in sandbox.refused("mount.kvfs", source, status=1)
    assert "does not exist" in sandbox.refused("mount.kvfs", source, "missing", status=32)
    assert sandbox.ok("mount.kvfs", "-f", source, "mnt", "-s", "-o", "frob") == ""
    assert mountlib.connection_of(sandbox.mountpoint) is None


def test_kvfsctl_goes_through_the_mount_that_has_the_pool(sandbox):
    source = make_pool(sandbox)
    sandbox.ok("kvfs", "mount", source, "mnt")
    sandbox.in_child("head -c 2500000 /dev/urandom > mnt/f")
    sandbox.ok("kvfsctl", "tenant", "create", "pool", "red", "--quota", "1M")
    assert "red" in sandbox.ok("kvfsctl", "tenant", "list", "pool")
    assert "is mounted here" in sandbox.refused("kvfsctl", "tenant", "delete", "pool", "blue", "--force")
    assert "exists already" in sandbox.refused("kvfsctl", "tenant", "create", "pool", "red")
    assert "/f" in sandbox.ok("kvfsctl", "ls", "-R", source)
    assert "3 replicas" in sandbox.ok("kvfsctl", "verify", source)
    assert "open in another process" in sandbox.ok("kvfsctl", "pool", "info", "pool")
    assert "0 findings" in sandbox.ok("kvfsctl", "check", "pool")
    assert "open in process" in sandbox.refused("kvfsctl", "rebuild", "--force", "pool")
    sandbox.ok("kvfs", "umount", "mnt")
    sandbox.ok("kvfsctl", "tenant", "delete", "pool", "red")

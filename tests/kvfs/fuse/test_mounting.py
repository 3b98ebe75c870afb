"""Mounting and unmounting: refusals that say what to do, options, drain, read-ahead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvfs.errors import ConfigError
from kvfs.fuse import mount as mount_module
from kvfs.fuse.mount import MountedAt, MountOptions, check_mountable, mount_at, mounts
from kvfs.limits import DRAIN_DEADLINE_MS
from tests.kvfs.fake_dpu import FakeDpu
from tests.kvfs.fuse.conftest import ServedMount, code_of, write_new


def refusal(target: Path | str, options: MountOptions | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        check_mountable(str(target), options or MountOptions())
    return str(caught.value)


def test_refusals_name_what_is_in_the_way_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "not a directory" in refusal(tmp_path / "file")
    assert "mkdir it first" in refusal(tmp_path / "missing")
    assert "nonempty" in refusal(tmp_path)
    assert "fusermount3 -u /proc" in refusal("/proc")
    assert "'gid=7'" in refusal(tmp_path, MountOptions(kernel=("gid=7",)))
    assert "without a comma" in refusal(tmp_path, MountOptions(fsname="a,b"))
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(mount_module, "_FUSE_DEVICE", tmp_path / "no-fuse")
    assert "modprobe fuse" in refusal(tmp_path / "empty")


def test_refusals_of_an_unprivileged_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(mount_module, "_FUSE_CONF", tmp_path / "fuse.conf")
    monkeypatch.setattr(mount_module, "_FUSE_DEVICE", tmp_path)
    monkeypatch.setattr(mount_module.shutil, "which", lambda name: f"/bin/{name}")
    (tmp_path / "m").mkdir()
    assert "user_allow_other" in refusal(tmp_path / "m")
    (tmp_path / "fuse.conf").write_text("# user_allow_other\nmount_max = 3\n")
    assert "user_allow_other" in refusal(tmp_path / "m")
    (tmp_path / "fuse.conf").write_text("mount_max = 3\nuser_allow_other\n")
    assert check_mountable(str(tmp_path / "m"), MountOptions()) == str(tmp_path / "m")
    monkeypatch.setattr(mount_module.shutil, "which", lambda name: None)
    assert "package fuse3" in refusal(tmp_path / "m")


def test_nonempty_is_allowed_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    if Path("/dev/fuse").exists():
        assert check_mountable(str(tmp_path), MountOptions(nonempty=True)) == os.path.realpath(tmp_path)


def test_options_for_the_kernel() -> None:
    assert MountOptions(read_only=True, allow_other=False, kernel=("noexec",), fsname="a@b").fuse_options() == {
        "default_permissions", "fsname=a@b", "subtype=kvfs", "noexec", "ro",
    }  # fmt: skip


def test_mountinfo_with_spaces_and_no_touching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "36 35 98:0 / /tier/a\\040b rw,noatime master:1 - ext4 /dev/root rw\n"
        "37 35 0:99 / /tier/a\\040b rw shared:7 - fuse.kvfs kvfs rw\n"
    )
    monkeypatch.setattr(mount_module, "_MOUNTINFO", table)
    assert [mount.filesystem for mount in mounts()] == ["ext4", "fuse.kvfs"]
    assert mount_at("/tier/a b") == MountedAt("0:99", "/tier/a b", "fuse.kvfs")


# --- real mounts -----------------------------------------------------------------------------------------


@pytest.mark.mount
def test_a_mountpoint_that_is_served_is_refused(mount: ServedMount) -> None:
    command = [sys.executable, "-m", "tests.kvfs.fuse.served", str(mount.path)]
    done = subprocess.run(command, capture_output=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
    assert "is a mount point already" in json.loads(done.stdout)["refused"]
    assert os.listdir(mount.path) == []


@pytest.mark.mount
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_publishes_nothing_that_was_not_closed(mount: ServedMount, number: int) -> None:
    write_new(mount.path / "closed", b"x")
    descriptor = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"y" * 100)
    mount.child.send_signal(number)
    assert mount.child.wait(10) == 0
    assert mount_at(str(mount.path)) is None
    assert code_of(os.write, descriptor, b"z") in ("ENOTCONN", "ECONNABORTED")
    assert code_of(os.close, descriptor) == "ENOTCONN"
    assert "Traceback" not in mount.log.read_text()


@pytest.mark.mount
@pytest.mark.slow
def test_a_request_that_hangs_holds_the_unmounting_up_for_a_bounded_time(mount: ServedMount) -> None:
    mount.order(hold="MakeNode")
    command = [sys.executable, "-c", f"import os; os.mkdir({str(mount.path / 'd')!r})"]
    client = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while mount.order(calls=True).get("MakeNode", 0) == 0:
        time.sleep(0.01)
    mount.child.send_signal(signal.SIGTERM)
    assert mount.child.wait(DRAIN_DEADLINE_MS / 1000 + 5) == 0
    assert client.wait(5) != 0
    assert mount_at(str(mount.path)) is None


async def test_a_mount_that_the_kernel_refuses_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("fuse_session_mount failed")

    monkeypatch.setattr(mount_module.pyfuse3, "init", refuse)
    monkeypatch.setattr(mount_module, "_FUSE_DEVICE", tmp_path)
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigError, match=r"mounting at .* failed"):
        await mount_module.serve(FakeDpu(), str(tmp_path / "m"), MountOptions(allow_other=os.geteuid() == 0))


@pytest.mark.mount
def test_unmounting_ends_the_process(mount: ServedMount) -> None:
    subprocess.run(["fusermount3", "-u", str(mount.path)], check=True, timeout=20)
    assert mount.child.wait(10) == 0
    assert "Traceback" not in mount.log.read_text()


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="fusectl is root's")
def test_an_aborted_connection_leaves_no_dead_mount(mount: ServedMount) -> None:
    mounted = mount_at(str(mount.path))
    assert mounted is not None
    Path(f"/sys/fs/fuse/connections/{mounted.device.split(':')[1]}/abort").write_text("1")
    mount.child.wait(10)
    assert mount_at(str(mount.path)) is None


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="only root sets it")
def test_read_ahead_is_one_mebibyte(mount: ServedMount) -> None:
    mounted = mount_at(str(mount.path))
    assert mounted is not None
    setting = Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb")
    deadline = time.monotonic() + 5
    while setting.read_text() != "1024\n" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert setting.read_text() == "1024\n"


@pytest.mark.mount
def test_read_only(make_mount: Callable[..., ServedMount]) -> None:
    mount = make_mount(read_only=True)
    assert code_of(os.mkdir, mount.path / "d") == "EROFS"

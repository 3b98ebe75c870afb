"""Mounts that attach to a daemon: what they hold, who may attach, daemons that are killed and come back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import mountlib
from tests.conformance.clients import MIB, outcome, pattern, read_whole, store_by_rename
from tests.mount.conftest import MakePool

pytestmark = pytest.mark.mount
Mounted = Callable[[mountlib.Mount], Path]

MOUNT_THAT_TELLS = """
import atexit, json, sys
from kvfsd.main import main
atexit.register(lambda: print("MODULES", json.dumps(sorted(sys.modules)), flush=True))
sys.exit(main(sys.argv[1:]))
"""


def test_a_mount_process_knows_no_cipher_and_no_key(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool()
    mount = pool.split_mount()
    mount.command = [sys.executable, "-c", MOUNT_THAT_TELLS, "mount", "-f", mount.source, str(mount.mountpoint)]
    root = mounted(mount)
    store_by_rename(root / "block", pattern("x", 2 * MIB))
    assert read_whole(root / "block", 2 * MIB) == pattern("x", 2 * MIB)
    assert mount.stop() == 0
    (line,) = [line for line in mount.log_tail(1 << 20).splitlines() if line.startswith("MODULES")]
    assert '"kvfs.remote"' in line
    for module in ("cryptography", "sqlite3", "kvfsd.crypto", "kvfsd.catalog", "kvfsd.pool", "kvfsd.service"):
        assert f'"{module}' not in line, module


def test_two_mounts_of_a_tenant_and_one_of_another(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool(tenants=("alice", "bob"))
    first, second = mounted(pool.split_mount("alice", at="a1")), mounted(pool.split_mount("alice", at="a2"))
    other = mounted(pool.split_mount("bob", at="b"))
    store_by_rename(first / "block", pattern("1", 2 * MIB))
    assert read_whole(second / "block", 2 * MIB) == pattern("1", 2 * MIB), "close-to-open"
    assert os.listdir(other) == []
    store_by_rename(second / "block", pattern("2", MIB))
    end = time.monotonic() + 10
    while (first / "block").stat().st_size != MIB:  # the invalidation is pushed
        assert time.monotonic() < end
        time.sleep(0.01)
    assert read_whole(first / "block", MIB) == pattern("2", MIB)
    os.unlink(first / "block")
    while (second / "block").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_open_file_outlives_a_daemon_that_is_killed(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool()
    root = mounted(pool.split_mount())
    data = pattern("big", 5 * MIB)
    killed = pool.daemon.process
    pool.daemon.prepare()
    with (root / "half").open("wb", buffering=0) as file, (root / "empty").open("wb", buffering=0) as empty:
        file.write(data[: 3 * MIB])
        assert killed is not None
        killed.kill()
        killed.wait(30)
        restarting = threading.Thread(target=pool.daemon.start)
        restarting.start()
        file.write(data[3 * MIB :])
        empty.write(b"created before the kill")
        restarting.join()
    assert read_whole(root / "half", 5 * MIB) == data
    assert (root / "empty").read_bytes() == b"created before the kill"
    assert pool.daemon.stop() == 0
    pool.daemon.start()
    assert read_whole(root / "half", 5 * MIB) == data
    assert "0 bad replicas" in pool.kvfsctl("verify", str(pool.pool))


IN_OTHER_HANDS = """
import sys
sys.stdin.readline()
from pathlib import Path
from tests import mountlib
mount = mountlib.Mount(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), (sys.argv[4],))
mount.start()
assert mount.stop() == 0
print("mounted and unmounted")
"""


def gated(mount: mountlib.Mount) -> subprocess.Popen[bytes]:
    """A process that mounts and unmounts once it is told to; see `mountlib.Daemon.prepare`."""
    argv = [mount.source, str(mount.mountpoint), str(mount.log), *mount.options]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-c", IN_OTHER_HANDS, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def test_a_file_that_lost_what_was_acknowledged_is_never_published(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool()
    root = mounted(pool.split_mount())
    (root / "older").write_bytes(b"as it was")
    killed = pool.daemon.process
    pool.daemon.prepare()
    embedded = mountlib.Mount(f"engine@{pool.pool}", pool.base / "other", pool.base / "other.log", (f"kek={pool.kek}",))
    embedded.mountpoint.mkdir()
    starting = gated(embedded)
    with (root / "holed").open("wb", buffering=0) as file:
        file.write(pattern("lost", 3 * MIB))
        file.seek(4 * MIB)  # the blocks before are sent
        file.write(b"end")
        assert killed is not None
        killed.kill()
        killed.wait(30)
        assert starting.communicate(b"go\n", timeout=60)[0] == b"mounted and unmounted\n"
        pool.daemon.start()
        code, _ = outcome(os.fsync, file.fileno())
        assert code == errno.EIO
        code, _ = outcome(os.fsync, file.fileno())
        assert code == errno.EIO, "for ever"
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # its close would fail again
    assert not (root / "holed").exists()
    assert (root / "older").read_bytes() == b"as it was"
    store_by_rename(root / "holed", b"anew")
    assert (root / "holed").read_bytes() == b"anew"


def test_a_restart_under_load_is_a_pause(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool()
    root = mounted(pool.split_mount())
    stop = threading.Event()
    stored: list[int] = []
    failures: list[BaseException] = []

    def load() -> None:
        try:
            number = 0
            while not stop.is_set():
                store_by_rename(root / f"{number}", pattern(number, MIB + number))
                stored.append(number)
                if number >= 8:
                    os.unlink(root / f"{number - 8}")
                number += 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    for end in (pool.daemon.kill, pool.daemon.stop, pool.daemon.kill):
        reached = len(stored) + 3
        while len(stored) < reached and not failures:
            time.sleep(0.01)
        end()
        pool.daemon.start()
    stop.set()
    thread.join()
    assert not failures
    for number in stored[-8:]:
        assert read_whole(root / f"{number}", MIB + number) == pattern(number, MIB + number)
    assert sorted(os.listdir(root), key=int) == [str(number) for number in stored[-8:]]
    assert "0 bad replicas" in pool.kvfsctl("verify", str(pool.pool))


def test_the_death_of_a_mount_harms_nobody(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool(tenants=("alice", "bob"))
    dying, other = pool.split_mount("alice", at="a"), mounted(pool.split_mount("bob", at="b"))
    root = mounted(dying)
    file = (root / "half").open("wb", buffering=0)
    file.write(pattern("half", 3 * MIB))
    dying.kill()
    assert outcome(file.close)[0] == errno.ENOTCONN
    store_by_rename(other / "block", pattern("b", MIB))
    dying.start()
    assert os.listdir(root) == []
    store_by_rename(root / "half", pattern("a", MIB))
    assert read_whole(other / "block", MIB) == pattern("b", MIB)


ATTACH_AS = """
import os, sys
import trio
from pathlib import Path
from kvfs.remote import attached
from kvfs.remotelink import Target
from kvfs.commands import StatFilesystem
import encodings.idna, traceback
os.setgroups([int(one) for one in sys.argv[3].split(",") if one])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
async def main():
    secret = bytes.fromhex(sys.argv[6]) if len(sys.argv) > 6 else b""
    async with attached(Target(Path(sys.argv[4]), sys.argv[5], secret)) as pair:
        await pair.submit(StatFilesystem())
    print("attached")
trio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be somebody else")
def test_only_those_on_the_list_or_with_a_credential_attach(make_pool: MakePool) -> None:
    pool = make_pool(tenants=("alice", "bob"))
    pool.daemon.options = ("--socket-mode", "0666")
    pool.daemon.start()
    secret = pool.base / "alice.credential"
    pool.kvfsctl("tenant", "set", str(pool.pool), "alice", "--uid", "12345", "--gid", "777")
    pool.kvfsctl("tenant", "credential", str(pool.pool), "alice", "--out", str(secret))

    def attach(uid: int, gid: int, groups: str, tenant: str, *credential: str) -> str:
        argv = [str(uid), str(gid), groups, str(pool.daemon.socket), tenant, *credential]
        done = subprocess.run(
            [sys.executable, "-c", ATTACH_AS, *argv], capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout.strip() or done.stderr.strip()

    assert attach(12345, 1, "", "alice") == "attached"
    assert attach(5, 777, "", "alice") == "attached"
    assert attach(5, 5, "8,777", "alice") == "attached"
    assert attach(5, 5, "", "alice", secret.read_text().strip()) == "attached"
    for refused in (attach(5, 5, "8", "alice"), attach(12345, 1, "", "bob"), attach(5, 5, "", "nobody")):
        assert "PermissionDenied" in refused
    assert "PermissionDenied" in attach(12345, 1, "", "alice", "00" * 32)
    pool.kvfsctl("tenant", "credential", str(pool.pool), "alice", "--revoke")
    assert "PermissionDenied" in attach(5, 5, "", "alice", secret.read_text().strip())
    assert pool.daemon.log_tail(100_000).count("attach refused") == 5
    assert attach(0, 0, "", "bob") == "attached", "the daemon's own user"


def test_a_refused_mount_says_so_in_a_line(make_pool: MakePool) -> None:
    pool = make_pool()
    mount = pool.split_mount("nobody")
    with pytest.raises(mountlib.MountError, match=r"kvfs: tenant 'nobody': there is none"):
        mount.start()
    wrong = pool.base / "credential"
    wrong.write_text("ab" * 32 + "\n")
    wrong.chmod(0o644)
    for text in ("open to other users", "the credential does not open it"):
        mount = pool.split_mount("engine", f"credential={wrong}")
        with pytest.raises(mountlib.MountError, match=text):
            mount.start()
        wrong.chmod(0o600)
    mount = pool.split_mount("engine", f"kek={pool.kek}")
    with pytest.raises(mountlib.MountError, match="daemon's business"):
        mount.start()
    pool.daemon.kill()
    with pytest.raises(mountlib.MountError, match="nobody answers"):
        mountlib.Mount(f"engine@{pool.daemon.socket}", mount.mountpoint, mount.log).start()


def test_a_pool_has_one_daemon(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.daemon.start()
    again = mountlib.Daemon(pool.pool, pool.kek, pool.base / "second.sock", pool.base / "second.log")
    with pytest.raises(mountlib.MountError, match="is open in process"):
        again.start()
    embedded = mountlib.Mount(f"engine@{pool.pool}", pool.base / "mnt", pool.base / "mnt.log", (f"kek={pool.kek}",))
    embedded.mountpoint.mkdir()
    with pytest.raises(mountlib.MountError, match="is served by kvfsd"):
        embedded.start()

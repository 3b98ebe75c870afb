"""Faults below a mount: poisoned files, honest errors, and a mount that lives whatever its handlers raise."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable

import pytest

from kvfs.fuse.operations import Operations
from kvfs.limits import MIB
from tests.kvfs.fuse.conftest import ServedMount, code_of, write_new

pytestmark = pytest.mark.mount


def vanished(mount: ServedMount, name: str) -> bool:
    """A dropped name is revoked in the kernel by a background task."""
    deadline = time.monotonic() + 5
    while (mount.path / name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not (mount.path / name).exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [("MediumUnavailableError", "EIO"), ("PoolFullError", "ENOSPC"), ("QuotaExceededError", "EDQUOT")],
)
def test_a_block_lost_after_write_returned_fails_close_and_the_name_goes(
    mount: ServedMount, error: str, code: str
) -> None:
    mount.fail("WriteBlock", error, nth=2)
    descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):  # the second request may already see it
        os.write(descriptor, os.urandom(3 * MIB))
    assert code_of(os.fsync, descriptor) == code
    assert code_of(os.rename, mount.path / "f", mount.path / "g") == code
    assert code_of(os.ftruncate, descriptor, 0) == code
    assert code_of(os.write, descriptor, b"x") == code
    assert code_of(os.close, descriptor) == code
    assert vanished(mount, "f")
    assert not (mount.path / "g").exists()
    assert mount.order(calls=True).get("Commit", 0) == 0
    mount.settled(allocated=0, staged=0, blocks=0, pending=0, inodes=0)
    write_new(mount.path / "f", b"stored anew")
    assert mount.content("f") == b"stored anew"


def test_a_poisoned_rewrite_leaves_the_old_content(mount: ServedMount) -> None:
    old = os.urandom(2 * MIB)
    write_new(mount.path / "f", old)
    mount.fail("WriteBlock", "MediumUnavailableError", times=100)
    descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_TRUNC)
    with contextlib.suppress(OSError):
        os.write(descriptor, b"n" * 3 * MIB)
    assert code_of(os.close, descriptor) == "EIO"
    mount.order(clear=True)
    mount.settled(allocated=0, inodes=0, staged=0)
    assert (mount.path / "f").read_bytes() == old
    assert os.stat(mount.path / "f").st_size == len(old)


def test_a_poisoned_file_can_be_unlinked(mount: ServedMount) -> None:
    """vLLM removes its temporary file after a failed store."""
    mount.fail("WriteBlock", "PoolFullError", times=100)
    descriptor = os.open(mount.path / "t.tmp", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"x" * 100)
    assert code_of(os.close, descriptor) == "ENOSPC"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(mount.path / "t.tmp")
    assert vanished(mount, "t.tmp")
    mount.settled(allocated=0, staged=0, blocks=0, pending=0, inodes=0)


@pytest.mark.parametrize("error", ["QuotaExceededError", "MediumUnavailableError", "DeadlineExceededError", "Bug"])
def test_a_commit_that_fails_is_told_by_close(mount: ServedMount, error: str) -> None:
    mount.fail("Commit", error)
    descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"abc")
    assert code_of(os.close, descriptor) in ("EDQUOT", "EIO")
    assert vanished(mount, "f")


def test_failsafe_is_a_read_only_filesystem(mount: ServedMount) -> None:
    write_new(mount.path / "f", b"x")
    for command in ("MakeNode", "Unlink", "Rename", "SetAttributes", "AllocateIno"):
        mount.fail(command, "FailsafeError")
    assert code_of(os.mkdir, mount.path / "d") == "EROFS"
    assert code_of(os.unlink, mount.path / "f") == "EROFS"
    assert code_of(os.rename, mount.path / "f", mount.path / "g") == "EROFS"
    assert code_of(os.chmod, mount.path / "f", 0o600) == "EROFS"
    assert code_of(os.open, mount.path / "new", os.O_CREAT | os.O_WRONLY) == "EROFS"
    assert (mount.path / "f").read_bytes() == b"x"


def test_quota_in_real_life(make_mount: Callable[..., ServedMount]) -> None:
    mount = make_mount(quota_bytes=8 * MIB)
    stored, code = 0, ""
    for number in range(10):
        try:
            write_new(mount.path / f"{number}", os.urandom(MIB))
            stored += 1
        except OSError as error:
            code = errno.errorcode[error.errno or 0]
    assert (stored, code) == (8, "EDQUOT")
    os.unlink(mount.path / "0")
    write_new(mount.path / "again", os.urandom(MIB))
    assert sorted(os.listdir(mount.path)) == ["1", "2", "3", "4", "5", "6", "7", "again"]


# --- the guard -------------------------------------------------------------------------------------------


def exercise(base: os.PathLike[str]) -> None:
    """Every operation at least three times; each call may fail."""

    def attempt(call: Callable[..., object], *args: object) -> object:
        with contextlib.suppress(OSError):
            return call(*args)
        return None

    for number in range(4):
        path = os.path.join(base, f"f{number}")
        descriptor = attempt(os.open, path, os.O_RDWR | os.O_CREAT)
        if isinstance(descriptor, int):
            attempt(os.pwrite, descriptor, b"data", 10)
            attempt(os.ftruncate, descriptor, 8)
            attempt(os.pread, descriptor, 8, 0)
            attempt(os.fsync, descriptor)
            attempt(os.close, descriptor)
        reader = attempt(os.open, path, os.O_RDONLY | os.O_DIRECT)
        if isinstance(reader, int):
            attempt(os.pread, reader, 4096, 0)
            attempt(os.close, reader)
        attempt(os.stat, path)
        attempt(os.chmod, path, 0o600)
        attempt(os.setxattr, path, b"user.a", b"1")
        attempt(os.getxattr, path, b"user.a")
        attempt(os.listxattr, path)
        attempt(os.removexattr, path, b"user.a")
        attempt(os.symlink, "target", f"{path}.s")
        attempt(os.readlink, f"{path}.s")
        attempt(os.link, path, f"{path}.h")
        attempt(os.mkfifo, f"{path}.p")
        attempt(os.mkdir, f"{path}.d")
        attempt(os.listdir, base)
        directory = attempt(os.open, base, os.O_RDONLY)
        if isinstance(directory, int):
            attempt(os.fsync, directory)
            attempt(os.close, directory)
        attempt(os.statvfs, base)
        attempt(os.rename, f"{path}.h", f"{path}.r")
        attempt(os.unlink, f"{path}.r")
        attempt(os.rmdir, f"{path}.d")
        for name in (path, f"{path}.h", f"{path}.s", f"{path}.p"):
            attempt(os.unlink, name)


GUARDED = sorted(name for name in dir(Operations) if hasattr(getattr(Operations, name), "__wrapped__"))


def test_every_handler_is_guarded() -> None:
    import pyfuse3

    handlers = {
        name
        for name in vars(pyfuse3.Operations)
        if not name.startswith("_") and callable(getattr(pyfuse3.Operations, name))
    }
    not_ours = {"init", "forget", "stacktrace", "access", "poll"}
    assert handlers - not_ours - {"supports_dot_lookup"} == set(GUARDED)


def test_an_exception_in_the_kth_call_of_each_handler_fails_that_call_only(
    make_mount: Callable[..., ServedMount],
) -> None:
    mount = make_mount("--faulty")
    planted = 0
    for operation in GUARDED:
        for nth in (1, 2, 3):
            mount.order(handler=[operation, nth])
            exercise(mount.path)
            mount.order(clear=True)
            planted += 1
            assert mount.child.poll() is None, f"{operation} {nth}"
            assert mount.state()["internal_errors"] == planted, f"{operation} was not called {nth} times"
    path = mount.path / "after"
    write_new(path, b"the mount lives")
    assert path.read_bytes() == b"the mount lives"


COMMANDS = [
    "Lookup",
    "GetAttributes",
    "ReadDirectory",
    "ReadLink",
    "GetXattr",
    "ListXattrs",
    "StatFilesystem",
    "AllocateIno",
    "MakeNode",
    "SetAttributes",
    "SetXattr",
    "RemoveXattr",
    "Unlink",
    "RemoveDirectory",
    "Rename",
    "Link",
    "ReleaseUnlinked",
    "OpenObject",
    "ReadBlock",
    "WriteBlock",
    "Commit",
    "Discard",
    "Sync",
]


@pytest.mark.parametrize("error", ["Bug", "MediumUnavailableError", "PoolFullError"])
def test_a_failure_of_the_nth_command_of_each_kind_harms_that_call_only(mount: ServedMount, error: str) -> None:
    for command in COMMANDS:
        for nth in (1, 2, 5):
            mount.fail(command, error, nth)
            exercise(mount.path)
            mount.order(clear=True)
            assert mount.child.poll() is None, f"{command} {nth}"
    for name in os.listdir(mount.path):
        if not (mount.path / name).is_dir():
            os.unlink(mount.path / name)
        else:
            os.rmdir(mount.path / name)
    mount.settled(allocated=0, handles=0, inodes=0, pending=0, blocks=0)
    write_new(mount.path / "after", b"the mount lives")
    assert (mount.path / "after").read_bytes() == b"the mount lives"

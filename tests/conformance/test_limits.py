"""Bounds and honest refusals: huge offsets, locks, what pyfuse3 has no handler for."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

import pytest

from tests.conformance.clients import MIB, expect_errno, outcome
from tests.conformance.conftest import Target

HUGE = [1 << 50, (1 << 62) + 1, (1 << 63) - 1]
TOO_BIG = (errno.EFBIG, errno.EINVAL, errno.ENOSPC)


@pytest.mark.parametrize("size", HUGE)
def test_truncate_to_huge_sizes_is_refused(target: Target, size: int) -> None:
    path = target / "f"
    path.write_bytes(b"keep")
    expect_errno(TOO_BIG, os.truncate, path, size)
    with open(path, "r+b") as stream:
        expect_errno(TOO_BIG, os.ftruncate, stream.fileno(), size)
    assert path.read_bytes() == b"keep"


@pytest.mark.parametrize("offset", HUGE)
def test_write_at_huge_offsets_is_refused(target: Target, offset: int) -> None:
    path = target / "f"
    path.write_bytes(b"keep")
    descriptor = os.open(path, os.O_RDWR)
    expect_errno(TOO_BIG, os.pwrite, descriptor, b"x", offset)
    # kvfs poisons the handle after any failed write, for clients that ignore its result: close may fail too
    code, _ = outcome(os.close, descriptor)
    assert code in ((0, *TOO_BIG) if target.kvfs else (0,))
    assert path.read_bytes() == b"keep"


@pytest.mark.parametrize("offset", HUGE)
def test_read_at_huge_offsets_is_the_end_of_the_file(target: Target, offset: int) -> None:
    path = target / "f"
    path.write_bytes(b"keep")
    with open(path, "rb", buffering=0) as stream:
        code, data = outcome(os.pread, stream.fileno(), 10, offset)
        assert data == b"" or code in (errno.EINVAL, errno.EOVERFLOW)


def test_negative_lengths(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"keep")
    expect_errno(errno.EINVAL, os.truncate, path, -1)


def test_flock_between_handles(target: Target) -> None:
    path = target / "f"
    path.touch()
    with open(path) as one, open(path) as two:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        expect_errno(errno.EWOULDBLOCK, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_record_locks(target: Target) -> None:
    with open(target / "f", "w+b") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, 100)
        fcntl.lockf(stream, fcntl.LOCK_UN)


def test_copy_file_range_copies_or_refuses(target: Target) -> None:
    """The kernel falls back to reading and writing; a refusal must be one that `cp` understands."""
    (target / "a").write_bytes(b"c" * MIB)
    source = os.open(target / "a", os.O_RDONLY)
    copy = os.open(target / "b", os.O_WRONLY | os.O_CREAT)
    code, copied = outcome(os.copy_file_range, source, copy, MIB)
    assert code in (0, errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS)
    os.close(source)
    os.close(copy)
    assert (target / "b").read_bytes() == b"c" * (0 if code else copied)


def test_sendfile(target: Target) -> None:
    (target / "a").write_bytes(b"s" * 300_000)
    source = os.open(target / "a", os.O_RDONLY)
    copy = os.open(target / "b", os.O_WRONLY | os.O_CREAT)
    sent = 0
    while sent < 300_000:
        sent += os.sendfile(copy, source, sent, 300_000 - sent)
    os.close(source)
    os.close(copy)
    assert (target / "b").read_bytes() == b"s" * 300_000


def test_temporary_file_without_a_name_works_or_is_refused(target: Target) -> None:
    code, descriptor = outcome(os.open, target.path, os.O_TMPFILE | os.O_RDWR)
    assert code in (0, errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS)
    if code == 0:
        os.close(descriptor)
    assert os.listdir(target.path) == []


def test_unknown_ioctl_is_refused(target: Target) -> None:
    with open(target / "f", "wb") as stream:
        expect_errno([errno.ENOTTY, errno.ENOSYS, errno.EINVAL], fcntl.ioctl, stream, 0x5401)


def test_renameat2_with_unknown_flags(target: Target) -> None:
    (target / "a").touch()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, os.fsencode(target / "a"), -100, os.fsencode(target / "b"), 1 << 10) == -1
    assert ctypes.get_errno() == errno.EINVAL
    assert os.listdir(target.path) == ["a"]


def test_device_nodes_are_made_or_refused(target: Target) -> None:
    code, _ = outcome(os.mknod, target / "null", 0o600 | 0o020000, os.makedev(1, 3))
    assert code in (0, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def test_mknod_of_a_regular_file(target: Target) -> None:
    """Some tools create with mknod; the kernel sends MKNOD, not CREATE."""
    os.mknod(target / "f", 0o100640)
    assert (target / "f").stat().st_size == 0
    (target / "f").write_bytes(b"x" * 10)
    target.crash()
    assert (target / "f").read_bytes() == b"x" * 10

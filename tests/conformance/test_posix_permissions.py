"""Owners, groups and permission checks for several uids on one mount (allow_other); needs root for setuid."""

from __future__ import annotations

import errno
import os
import stat

from tests.conformance.clients import as_user, expect_errno, needs_root
from tests.conformance.conftest import Target

ALICE, BOB, STAFF = 41_001, 41_002, 41_100

pytestmark = needs_root


def create(path: os.PathLike[str], mode: int = 0o666) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))


def test_new_objects_belong_to_the_caller(target: Target) -> None:
    def make() -> None:
        os.umask(0o022)
        create(target / "f")
        os.mkdir(target / "d")
        os.symlink("f", target / "s")

    as_user(ALICE, STAFF, make)
    for name in ("f", "d", "s"):
        status = os.lstat(target / name)
        assert (status.st_uid, status.st_gid) == (ALICE, STAFF), name
    assert stat.S_IMODE(os.stat(target / "f").st_mode) == 0o644
    target.crash()
    assert (os.stat(target / "f").st_uid, os.stat(target / "f").st_gid) == (ALICE, STAFF)


def test_mode_bits_decide_who_reads(target: Target) -> None:
    def write() -> None:
        (target / "private").write_bytes(b"secret")
        os.chmod(target / "private", 0o600)
        (target / "shared").write_bytes(b"group")
        os.chmod(target / "shared", 0o640)

    as_user(ALICE, STAFF, write)
    assert as_user(ALICE, STAFF, lambda: (target / "private").read_bytes()) == b"secret"
    expect_errno(errno.EACCES, as_user, BOB, STAFF, lambda: (target / "private").read_bytes())
    assert as_user(BOB, STAFF, lambda: (target / "shared").read_bytes()) == b"group"
    assert as_user(BOB, BOB, lambda: (target / "shared").read_bytes(), [STAFF]) == b"group"
    expect_errno(errno.EACCES, as_user, BOB, BOB, lambda: (target / "shared").read_bytes())
    expect_errno(errno.EACCES, as_user, BOB, STAFF, lambda: (target / "shared").write_bytes(b"!"))


def test_access_answers_for_the_caller(target: Target) -> None:
    as_user(ALICE, STAFF, lambda: create(target / "f", 0o600))
    assert as_user(ALICE, STAFF, lambda: os.access(target / "f", os.R_OK | os.W_OK)) is True
    assert as_user(BOB, STAFF, lambda: os.access(target / "f", os.R_OK)) is False
    assert as_user(BOB, STAFF, lambda: os.access(target / "f", os.F_OK)) is True
    assert as_user(ALICE, STAFF, lambda: os.access(target / "f", os.X_OK)) is False


def test_directory_permissions(target: Target) -> None:
    def make() -> None:
        os.mkdir(target / "d")
        (target / "d" / "f").write_bytes(b"f")
        os.chmod(target / "d", 0o711)

    as_user(ALICE, STAFF, make)
    assert as_user(BOB, BOB, lambda: (target / "d" / "f").read_bytes()) == b"f"
    expect_errno(errno.EACCES, as_user, BOB, BOB, lambda: os.listdir(target / "d"))
    expect_errno(errno.EACCES, as_user, BOB, BOB, lambda: create(target / "d" / "mine"))
    expect_errno(errno.EACCES, as_user, BOB, BOB, lambda: os.unlink(target / "d" / "f"))
    expect_errno(errno.EACCES, as_user, BOB, BOB, lambda: os.rename(target / "d" / "f", target / "taken"))
    os.chmod(target / "d", 0o700)
    expect_errno(errno.EACCES, as_user, BOB, BOB, lambda: os.stat(target / "d" / "f"))


def test_sticky_directory(target: Target) -> None:
    os.chmod(target.path, 0o1777)
    as_user(ALICE, ALICE, lambda: create(target / "f"))
    expect_errno([errno.EPERM, errno.EACCES], as_user, BOB, BOB, lambda: os.unlink(target / "f"))
    expect_errno([errno.EPERM, errno.EACCES], as_user, BOB, BOB, lambda: os.rename(target / "f", target / "g"))
    as_user(ALICE, ALICE, lambda: os.unlink(target / "f"))


def test_chown_is_for_root(target: Target) -> None:
    path = target / "f"
    as_user(ALICE, STAFF, lambda: create(path))
    expect_errno(errno.EPERM, as_user, ALICE, STAFF, lambda: os.chown(path, BOB, -1))
    expect_errno(errno.EPERM, as_user, BOB, STAFF, lambda: os.chmod(path, 0o777))
    expect_errno([errno.EPERM, errno.EACCES], as_user, BOB, STAFF, lambda: os.utime(path, ns=(1, 1)))
    as_user(ALICE, ALICE, lambda: os.chown(path, -1, STAFF), [STAFF])
    expect_errno(errno.EPERM, as_user, ALICE, ALICE, lambda: os.chown(path, -1, BOB), [STAFF])
    os.chown(path, BOB, ALICE)
    assert (path.stat().st_uid, path.stat().st_gid) == (BOB, ALICE)
    target.remount()
    assert (path.stat().st_uid, path.stat().st_gid) == (BOB, ALICE)


def test_chown_of_a_link_itself(target: Target) -> None:
    create(target / "f")
    os.symlink("f", target / "s")
    os.chown(target / "s", ALICE, STAFF, follow_symlinks=False)
    assert os.lstat(target / "s").st_uid == ALICE
    assert os.stat(target / "f").st_uid == 0


def test_chown_by_a_user_clears_setuid(target: Target) -> None:
    path = target / "f"
    as_user(ALICE, ALICE, lambda: create(path))
    os.chmod(path, 0o6755)
    as_user(ALICE, ALICE, lambda: os.chown(path, -1, STAFF), [STAFF])
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_write_by_a_user_clears_setuid(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x")
    os.chmod(path, 0o4777)

    def write() -> None:
        with open(path, "r+b", buffering=0) as stream:
            stream.write(b"y")

    as_user(BOB, BOB, write)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_setgid_directory_gives_its_group(target: Target) -> None:
    shared = target / "shared"
    shared.mkdir()
    os.chown(shared, -1, STAFF)
    os.chmod(shared, 0o2777)

    def make() -> None:
        create(shared / "f")
        os.mkdir(shared / "d")

    as_user(ALICE, ALICE, make)
    assert (shared / "f").stat().st_gid == STAFF
    assert (shared / "d").stat().st_gid == STAFF
    assert (shared / "d").stat().st_mode & stat.S_ISGID


def test_file_created_read_only_is_still_written_by_its_creator(target: Target) -> None:
    def write() -> None:
        descriptor = os.open(target / "f", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o400)
        assert os.write(descriptor, b"once") == 4
        os.close(descriptor)

    as_user(ALICE, STAFF, write)
    assert as_user(ALICE, STAFF, lambda: (target / "f").read_bytes()) == b"once"
    expect_errno(errno.EACCES, as_user, ALICE, STAFF, lambda: (target / "f").write_bytes(b"twice"))


def test_two_users_fill_one_cache_directory(target: Target) -> None:
    """Engines under several uids share a mount: each stores, both load."""
    cache = target / "cache"
    cache.mkdir()
    os.chown(cache, -1, STAFF)
    os.chmod(cache, 0o2775)

    def store(name: str) -> None:
        os.umask(0o002)
        (cache / f"{name}.tmp").write_bytes(name.encode() * 1000)
        os.rename(cache / f"{name}.tmp", cache / f"{name}.bin")

    as_user(ALICE, ALICE, lambda: store("alice"), [STAFF])
    as_user(BOB, BOB, lambda: store("bob"), [STAFF])
    assert as_user(BOB, BOB, lambda: (cache / "alice.bin").read_bytes(), [STAFF]) == b"alice" * 1000
    as_user(ALICE, ALICE, lambda: os.unlink(cache / "bob.bin"), [STAFF])


def test_truncate_needs_write_permission(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"12345")
    os.chmod(path, 0o644)
    expect_errno(errno.EACCES, as_user, ALICE, ALICE, lambda: os.truncate(path, 0))
    assert path.read_bytes() == b"12345"


def test_xattr_needs_write_permission(target: Target) -> None:
    path = target / "f"
    path.write_bytes(b"x")
    os.chmod(path, 0o644)
    expect_errno(errno.EACCES, as_user, ALICE, ALICE, lambda: os.setxattr(path, "user.a", b"1"))
    os.setxattr(path, "user.a", b"1")
    assert as_user(ALICE, ALICE, lambda: os.getxattr(path, "user.a")) == b"1"

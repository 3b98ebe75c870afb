"""A file that lost a write, while its writer still has it open: everybody else sees what is committed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvfs.limits import MIB
from tests.kvfs.fuse.conftest import ServedMount, code_of, write_new

pytestmark = pytest.mark.mount
OLD = bytes(range(256)) * (2 * MIB // 256)


@pytest.fixture
def opened() -> Iterator[list[int]]:
    """Descriptors that are closed at the end, whatever close says."""
    descriptors: list[int] = []
    yield descriptors
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def fail_a_write(mount: ServedMount, path: Path, flags: int, opened: list[int]) -> int:
    """A descriptor whose file is poisoned with EDQUOT after its first block was staged; nothing fails any more."""
    mount.fail("WriteBlock", "QuotaExceededError", nth=2)
    descriptor = os.open(path, flags, 0o644)
    opened.append(descriptor)
    with contextlib.suppress(OSError):
        os.write(descriptor, b"n" * 3 * MIB)
    assert code_of(os.fsync, descriptor) == "EDQUOT"
    mount.order(clear=True)
    return descriptor


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR])
def test_a_rewrite_that_failed_is_seen_by_nobody_else(mount: ServedMount, opened: list[int], flags: int) -> None:
    path = mount.path / "f"
    write_new(path, OLD)
    writer = fail_a_write(mount, path, flags, opened)
    for extra in (0, os.O_DIRECT):
        reader = os.open(path, os.O_RDONLY | extra)
        opened.append(reader)
        assert os.pread(reader, 3 * MIB, 0) == OLD
    assert os.stat(path).st_size == os.fstat(writer).st_size == len(OLD)
    assert os.access(path, os.R_OK)
    os.setxattr(path, b"user.a", b"1")
    os.chmod(path, 0o600)
    os.link(path, mount.path / "other name")
    assert (mount.path / "other name").read_bytes() == OLD
    assert code_of(os.write, writer, b"x") == "EDQUOT"
    assert code_of(os.ftruncate, writer, 0) == "EDQUOT"
    assert code_of(os.fsync, writer) == "EDQUOT"
    assert code_of(os.close, writer) == "EDQUOT"
    assert path.read_bytes() == OLD
    mount.settled(staged=0, blocks=0)


def test_a_new_writer_stores_anew_and_the_old_one_does_it_no_harm(mount: ServedMount, opened: list[int]) -> None:
    path = mount.path / "f"
    write_new(path, OLD)
    failed = fail_a_write(mount, path, os.O_WRONLY, opened)
    with open(path, "r+b", buffering=0) as stream:
        stream.write(b"second")
        assert code_of(os.fsync, failed) == "EDQUOT"
        assert code_of(os.write, failed, b"x") == "EDQUOT"
        stream.write(b" try")
    assert path.read_bytes() == b"second try" + OLD[10:]
    with open(path, "wb", buffering=0) as stream:
        stream.write(b"third try")
        assert code_of(os.close, failed) == "EDQUOT"
        stream.write(b", longer")
    assert path.read_bytes() == mount.content("f") == b"third try, longer"
    os.truncate(path, 5)
    assert path.read_bytes() == b"third"


def test_truncate_by_path_beside_a_failed_writer(mount: ServedMount, opened: list[int]) -> None:
    path = mount.path / "f"
    write_new(path, OLD)
    failed = fail_a_write(mount, path, os.O_WRONLY, opened)
    os.truncate(path, MIB + 5)
    assert path.read_bytes() == mount.content("f") == OLD[: MIB + 5]
    assert code_of(os.close, failed) == "EDQUOT"


def test_a_name_that_was_never_published_is_not_there(mount: ServedMount, opened: list[int]) -> None:
    path = mount.path / "new"
    failed = fail_a_write(mount, path, os.O_WRONLY | os.O_CREAT, opened)
    assert code_of(os.open, path, os.O_RDONLY) == "ENOENT"
    assert code_of(os.stat, path) == "ENOENT"
    assert not os.access(path, os.F_OK)
    assert os.listdir(mount.path) == []
    write_new(path, b"stored anew")  # O_EXCL
    assert code_of(os.fsync, failed) == "EDQUOT"
    assert code_of(os.close, failed) == "EDQUOT"
    assert path.read_bytes() == mount.content("new") == b"stored anew"
    mount.settled(staged=0, blocks=0, pending=0, allocated=0, inodes=0, nodes=2)


@pytest.mark.parametrize("look", [lambda path: os.open(path, os.O_RDONLY), os.stat, lambda path: os.truncate(path, 0)])
def test_whoever_asks_first_finds_no_unpublished_name(
    mount: ServedMount, opened: list[int], look: Callable[[Path], object]
) -> None:
    """The kernel has the name from the creation; each call by itself must not be taken in by that."""
    fail_a_write(mount, mount.path / "new", os.O_WRONLY | os.O_CREAT, opened)
    assert code_of(look, mount.path / "new") == "ENOENT"


def test_create_over_a_name_that_failed(mount: ServedMount, opened: list[int]) -> None:
    for number in range(3):
        fail_a_write(mount, mount.path / "new", os.O_WRONLY | os.O_CREAT, opened)
        mount.settled(pending=0, staged=0, inodes=number + 1)
    with open(mount.path / "new", "wb") as stream:  # O_CREAT without O_EXCL
        stream.write(b"at last")
    assert mount.content("new") == b"at last"


def test_unlink_cleans_a_failed_name_up_before_and_after_close(mount: ServedMount, opened: list[int]) -> None:
    """vLLM removes its temporary file after a failed store, and logs a warning if it cannot."""
    before, after = mount.path / "a.tmp", mount.path / "b.tmp"
    failed = fail_a_write(mount, before, os.O_WRONLY | os.O_CREAT, opened)
    os.unlink(before)
    assert code_of(os.close, failed) == "EDQUOT"
    failed = fail_a_write(mount, after, os.O_WRONLY | os.O_CREAT, opened)
    assert code_of(os.close, failed) == "EDQUOT"
    mount.settled(inodes=0)
    os.unlink(after)
    assert code_of(os.unlink, after) == "ENOENT"


def test_rename_of_a_failed_new_file_says_why(mount: ServedMount, opened: list[int]) -> None:
    """Before and after the close: an engine that ignores what write and close say must not see a rename succeed."""
    old, new = mount.path / "a.tmp", mount.path / "a"
    write_new(new, b"earlier version")
    failed = fail_a_write(mount, old, os.O_WRONLY | os.O_CREAT, opened)
    assert code_of(os.rename, old, new) == "EDQUOT"
    assert code_of(os.close, failed) == "EDQUOT"
    mount.settled(inodes=0)
    assert code_of(os.rename, old, new) == "EDQUOT"
    assert new.read_bytes() == b"earlier version"
    os.unlink(old)


def test_a_block_that_fails_during_rename(mount: ServedMount, opened: list[int]) -> None:
    old, new = mount.path / "a.tmp", mount.path / "a"
    descriptor = os.open(old, os.O_WRONLY | os.O_CREAT, 0o644)
    opened.append(descriptor)
    os.write(descriptor, b"x")
    mount.fail("WriteBlock", "QuotaExceededError")
    assert code_of(os.rename, old, new) == "EDQUOT"
    assert os.listdir(mount.path) == []
    assert code_of(os.rename, old, new) == "EDQUOT"
    assert not new.exists()
    os.unlink(old)
    assert code_of(os.close, descriptor) == "EDQUOT"


def test_rename_of_a_published_file_works_once_its_writer_was_told(mount: ServedMount, opened: list[int]) -> None:
    path, new = mount.path / "f", mount.path / "g"
    write_new(path, OLD)
    reader = os.open(path, os.O_RDONLY)  # keeps the object open: what is remembered of the failure stays
    opened.append(reader)
    failed = fail_a_write(mount, path, os.O_WRONLY, opened)
    assert code_of(os.rename, path, new) == "EDQUOT"
    assert code_of(os.close, failed) == "EDQUOT"
    os.rename(path, new)
    assert new.read_bytes() == OLD


def test_rename_over_a_file_whose_writer_failed(mount: ServedMount, opened: list[int]) -> None:
    for name, flags in (("published", os.O_WRONLY), ("new", os.O_WRONLY | os.O_CREAT)):
        path = mount.path / name
        if name == "published":
            write_new(path, OLD)
        failed = fail_a_write(mount, path, flags, opened)
        write_new(mount.path / "tmp", b"renamed")
        os.rename(mount.path / "tmp", path)
        assert path.read_bytes() == b"renamed"
        assert code_of(os.close, failed) == "EDQUOT"
        assert path.read_bytes() == mount.content(name) == b"renamed"
    mount.settled(inodes=0, staged=0, blocks=0, kept_open=0, allocated=0, nodes=3)


def test_unlink_of_a_published_file_whose_writer_failed(mount: ServedMount, opened: list[int]) -> None:
    path = mount.path / "f"
    write_new(path, OLD)
    failed = fail_a_write(mount, path, os.O_WRONLY, opened)
    os.unlink(path)
    assert code_of(os.open, path, os.O_RDONLY) == "ENOENT"
    assert code_of(os.close, failed) == "EDQUOT"
    mount.settled(inodes=0, staged=0, blocks=0, kept_open=0, nodes=1)


def test_every_writer_that_had_it_open_is_told(mount: ServedMount, opened: list[int]) -> None:
    path = mount.path / "f"
    write_new(path, OLD)
    second = os.open(path, os.O_WRONLY)
    opened.append(second)
    os.pwrite(second, b"acknowledged", 0)
    first = fail_a_write(mount, path, os.O_WRONLY, opened)
    for descriptor in (first, second):
        assert code_of(os.write, descriptor, b"x") == "EDQUOT"
        assert code_of(os.fsync, descriptor) == "EDQUOT"
        assert code_of(os.close, descriptor) == "EDQUOT"
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("extra", [0, os.O_DIRECT])
def test_an_old_reader_goes_on_with_the_committed_version(mount: ServedMount, opened: list[int], extra: int) -> None:
    path = mount.path / "f"
    write_new(path, OLD)
    reader = os.open(path, os.O_RDONLY | extra)
    opened.append(reader)
    assert os.pread(reader, 4096, 0) == OLD[:4096]
    fail_a_write(mount, path, os.O_WRONLY, opened)
    assert os.pread(reader, 2 * MIB, 0) == OLD


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_an_old_reader_that_saw_what_is_lost_gets_an_error_and_no_mixture(
    mount: ServedMount, opened: list[int], flags: int
) -> None:
    path = mount.path / "f"
    write_new(path, OLD)
    reader, writer = os.open(path, os.O_RDONLY | os.O_DIRECT), os.open(path, flags)
    opened += [reader, writer]
    os.pwrite(writer, b"n" * 4096, 0)
    assert os.pread(reader, 4096, 0) == b"n" * 4096
    mount.fail("WriteBlock", "MediumUnavailableError", times=10)
    assert code_of(os.fsync, writer) == "EIO"
    mount.order(clear=True)
    assert code_of(os.pread, reader, 4096, 4096) == "EIO"
    assert path.read_bytes() == OLD


def test_what_the_page_cache_showed_counts_as_seen(mount: ServedMount, opened: list[int]) -> None:
    """A write through a cached handle is visible to cached readers without a request of theirs."""
    path = mount.path / "f"
    write_new(path, OLD)
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    opened += [reader, writer]
    os.pread(reader, 4096, 0)
    os.pwrite(writer, b"n" * 4096, 0)
    mount.fail("WriteBlock", "MediumUnavailableError", times=10)
    assert code_of(os.fsync, writer) == "EIO"
    mount.order(clear=True)
    assert code_of(os.pread, reader, 4096, MIB) == "EIO"
    assert path.read_bytes() == OLD


def test_the_room_of_a_failed_store_is_free_when_close_returns(make_mount: Callable[..., ServedMount]) -> None:
    mount = make_mount(quota_bytes=4 * MIB)
    for number in range(10):
        failed = os.open(mount.path / "f", os.O_WRONLY | os.O_CREAT, 0o644)
        with contextlib.suppress(OSError):
            os.write(failed, os.urandom(6 * MIB))
        assert code_of(os.close, failed) == "EDQUOT"
        write_new(mount.path / f"{number}", b"x" * 4 * MIB)
        os.unlink(mount.path / f"{number}")


def test_a_discard_that_fails_keeps_new_writers_out_and_readers_in(mount: ServedMount, opened: list[int]) -> None:
    """What the daemon may still hold of the failed store must not be published by the next one."""
    path = mount.path / "f"
    write_new(path, OLD)
    mount.fail("Discard", "FailsafeError", times=1000)
    mount.fail("WriteBlock", "QuotaExceededError", nth=2)
    failed = os.open(path, os.O_WRONLY)
    opened.append(failed)
    with contextlib.suppress(OSError):
        os.write(failed, b"n" * 3 * MIB)
    assert code_of(os.close, failed) == "EDQUOT"
    mount.settled(inodes=0)
    assert path.read_bytes() == OLD
    assert code_of(os.open, path, os.O_WRONLY | os.O_TRUNC) == "EROFS"
    assert path.read_bytes() == OLD
    mount.order(clear=True)
    with open(path, "r+b", buffering=0) as stream:
        stream.write(b"anew")
    assert path.read_bytes() == mount.content("f") == b"anew" + OLD[4:]

"""Names that the kernel has cached and whose object is gone, without any event: the first call finds that out."""

from __future__ import annotations

import os

import pytest

from kvfs.limits import MIB
from tests.kvfs.fuse.conftest import ServedMount, code_of, write_new

pytestmark = pytest.mark.mount


def test_what_open_found_bad_is_gone_for_lookup_at_once(mount: ServedMount) -> None:
    path = mount.path / "f"
    for turn in range(5):
        write_new(path, os.urandom(2 * MIB))
        assert os.access(path, os.F_OK)
        mount.order(bad="f")
        assert code_of(os.open, path, os.O_RDONLY) == "ENOENT", turn
        assert not os.access(path, os.F_OK), turn
        assert code_of(os.stat, path) == "ENOENT", turn


def test_a_bad_block_can_be_stored_anew_by_the_call_that_finds_it_bad(mount: ServedMount) -> None:
    path = mount.path / "f"
    write_new(path, os.urandom(2 * MIB))
    mount.order(bad="f")
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT)
    assert os.read(descriptor, 10) == b""
    os.close(descriptor)


def test_open_finds_the_object_that_replaced_the_one_the_kernel_knows(mount: ServedMount) -> None:
    write_new(mount.path / "f", b"old")
    write_new(mount.path / "new", b"newer")
    mount.order(drop="f")
    mount.order(replaced=["new", "f"])
    assert (mount.path / "f").read_bytes() == b"newer"


def test_an_object_that_goes_again_and_again_is_a_miss(mount: ServedMount) -> None:
    """As if it were replaced between the kernel's two attempts: no ESTALE reaches the caller, and none is saved up."""
    path = mount.path / "f"
    write_new(path, b"x")
    for _ in range(3):
        os.stat(path)  # so that open needs no attributes
        mount.order(calls=True)
        mount.fail("OpenObject", "NotFoundError", times=2)
        mount.fail("GetAttributes", "NotFoundError", times=2)
        assert code_of(os.open, path, os.O_RDONLY) == "ENOENT"
        calls = mount.order(calls=True)
        assert (calls["OpenObject"], calls["Lookup"]) == (2, 1), "the kernel asks for the name anew, once"
        mount.order(clear=True)
        mount.fail("OpenObject", "NotFoundError")
        mount.fail("GetAttributes", "NotFoundError")
        assert path.read_bytes() == b"x"
        mount.order(clear=True)


def test_a_miss_ends_the_attempt(mount: ServedMount) -> None:
    """A thread that was sent back to the name, and found none, is sent back again the next time."""
    for name in ("a", "b", "c"):
        write_new(mount.path / name, b"x" * MIB)
        mount.order(bad=name)
    for name in ("a", "b", "c"):
        assert code_of(os.open, mount.path / name, os.O_RDONLY) == "ENOENT"
        assert not os.access(mount.path / name, os.F_OK), name


@pytest.mark.parametrize("error", ["MediumUnavailableError", "BadRecordError"])
def test_a_fault_that_hides_nothing_is_a_miss_of_this_open_only(mount: ServedMount, error: str) -> None:
    path = mount.path / "f"
    write_new(path, b"x" * MIB)
    mount.fail("ReadBlock", error)
    assert code_of(os.open, path, os.O_RDONLY) == "ENOENT"
    assert path.read_bytes() == b"x" * MIB

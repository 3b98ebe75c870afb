"""What the daemon tells: names and content that changed behind the mount's back are revoked in the kernel."""

from __future__ import annotations

import base64
import os
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.kvfs.fuse.conftest import ServedMount, write_new

pytestmark = pytest.mark.mount


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_an_evicted_name_is_a_miss(mount: ServedMount) -> None:
    write_new(mount.path / "f", b"x")
    assert (mount.path / "f").exists()
    mount.order(gone="f")
    assert soon(lambda: not (mount.path / "f").exists())


def test_changed_content_is_read_anew_by_open_and_by_new_handles(mount: ServedMount) -> None:
    write_new(mount.path / "f", b"old content")
    descriptor = os.open(mount.path / "f", os.O_RDONLY)
    assert os.pread(descriptor, 100, 0) == b"old content"
    mount.order(replace=["f", base64.b64encode(b"something newer").decode()])
    assert soon(lambda: (mount.path / "f").read_bytes() == b"something newer")
    assert os.stat(mount.path / "f").st_size == 15
    assert os.pread(descriptor, 100, 0) == b"something newer"
    os.close(descriptor)


def test_lost_events_revoke_everything(mount: ServedMount) -> None:
    write_new(mount.path / "f", b"old content")
    write_new(mount.path / "g", b"goes")
    assert (mount.path / "f").read_bytes() == b"old content"
    mount.order(replace=["f", base64.b64encode(b"something newer").decode()])
    mount.order(gone="g")
    mount.order(lost=True)
    assert soon(lambda: (mount.path / "f").read_bytes() == b"something newer")
    assert soon(lambda: not (mount.path / "g").exists())


def test_a_miss_is_never_remembered(mount: ServedMount) -> None:
    assert not (mount.path / "n").exists()
    assert not (mount.path / "n").exists()
    assert mount.order(calls=True)["Lookup"] == 2


def test_what_is_open_is_told_again_after_lost_events_and_closed_once(mount: ServedMount) -> None:
    told: Counter[str] = Counter()

    def seen(command: str, times: int) -> bool:
        told.update(mount.order(calls=True))  # which counts from 0 each time
        return told[command] >= times

    write_new(mount.path / "f", b"content")
    assert soon(lambda: seen("CloseObject", 1))
    first, second = (os.open(mount.path / "f", flags) for flags in (os.O_RDONLY, os.O_RDWR))
    assert seen("OpenObject", 2)
    mount.order(lost=True)
    assert soon(lambda: seen("OpenObject", 3))
    os.close(first)
    os.close(second)
    assert soon(lambda: seen("CloseObject", 2))
    write_new(mount.path / "g", b"content")
    assert soon(lambda: seen("CloseObject", 3))
    assert (told["OpenObject"], told["CloseObject"]) == (3, 3)

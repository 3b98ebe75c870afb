"""A pool of a test's own, with its key; nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import mountlib

MakePool = Callable[..., mountlib.PoolFixture]


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """`make_pool(*pool_options, tenants=...)` -> PoolFixture; every mount of it is watched and ended."""
    reason = mountlib.can_mount()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:

        def make(*options: str, tenants: tuple[str, ...] = ("engine",)) -> mountlib.PoolFixture:
            base: Path = stack.enter_context(mountlib.scratch_directory())
            return mountlib.PoolFixture.create(base, *options, tenants=tenants)

        yield make


@pytest.fixture
def mounted() -> Iterator[Callable[[mountlib.Mount], Path]]:
    """`mounted(mount)` starts a mount -> its mountpoint; it is killed at the end whatever happens."""
    with ExitStack() as stack:

        def start(mount: mountlib.Mount) -> Path:
            watchdog = mountlib.Watchdog(mount.mountpoint, 100.0)
            stack.callback(watchdog.close)
            stack.callback(mount.kill)
            mount.start()
            return mount.mountpoint

        yield start

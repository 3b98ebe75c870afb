"""A fresh catalog for each test, found whole by the full check afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfsd.catalog.check import check
from tests.kvfsd.catalog.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    assert check(world.catalog.database) == []
    world.catalog.close()

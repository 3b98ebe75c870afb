from collections.abc import Iterator

import pytest

from tests import mountlib
from tests.kvfsd.cli.sandbox import Sandbox, make_sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    reason = mountlib.can_mount()
    if reason is not None:
        pytest.skip(reason)
    with make_sandbox() as made:
        yield made

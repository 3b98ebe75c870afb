"""A host may send anything that the codec lets through: the answer is a status, never a bug, and nothing is damaged."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvfs import wire
from kvfs.commands import Command, Completion, Placement, ReadBlock, Request, WriteBlock
from kvfs.errors import Status
from kvfsd.catalog.check import check
from kvfsd.service.service import ServiceOptions
from tests.kvfsd.serving import TENANT, Layout, make_pool, serving

COMMANDS = typing.get_args(Command)
SOME_NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    0o40755,
    0o100644,
    0o120777,
    1 << 20,
    1 << 31,
    1 << 32,
    (1 << 63) - 1,
    -1,
    -(1 << 63),
]
SOME_NAMES = [
    b"",
    b"a",
    b"b",
    b"c",
    b".",
    b"..",
    b"a/b",
    b"a\0",
    b"\xff",
    b"n" * 255,
    b"n" * 256,
    b"x" * 5000,
    b"user.a",
]
numbers = st.sampled_from(SOME_NUMBERS) | st.integers(0, 12) | st.integers(-(1 << 63), (1 << 64) - 1)
names = st.sampled_from(SOME_NAMES) | st.binary(max_size=20)


def values_of(annotation: object) -> st.SearchStrategy[object]:
    if annotation is int:
        return numbers
    if annotation is bool:
        return st.booleans()
    if annotation is bytes:
        return names
    if annotation == int | None:
        return st.none() | numbers
    if annotation == Placement | None:
        return st.none() | st.builds(Placement, numbers, names)
    return st.lists(st.tuples(names, names), max_size=3).map(tuple)


def command_of(cls: type) -> st.SearchStrategy[object]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, *(values_of(hints[name]) for name in cls.__struct_fields__))


commands = st.lists(st.one_of([command_of(cls) for cls in COMMANDS]), min_size=1, max_size=30)


@given(commands)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_commands_are_answered_with_a_status_and_damage_nothing(
    tmp_path_factory: pytest.TempPathFactory, sent: list[Command]
) -> None:
    trio.run(converse, tmp_path_factory.mktemp("hostile"), sent)


async def converse(tmp_path: Path, sent: list[Command]) -> None:
    pool = await make_pool(tmp_path, Layout(quota_bytes=1 << 20, quota_objects=20))
    async with serving(pool, ServiceOptions(raise_internal_errors=True, medium_deadline_ms=50)) as service:
        session = service.attach(TENANT)
        for sequence, command in enumerate(sent, 1):
            payload = b"some bytes" if isinstance(command, WriteBlock) else b""
            request = Request(sequence % 7, sequence, command)
            completion, plaintext, release = await session.execute(request, payload)
            assert isinstance(completion, Completion)
            assert completion.status != Status.INTERNAL, completion.detail
            assert completion.status == Status.OK or completion.detail
            assert isinstance(command, ReadBlock) or not plaintext.nbytes
            wire.encode_completion(completion, plaintext)
            if release is not None:
                release()
        assert service.metrics.counters.internal_errors == 0
        assert service.failsafe_reason == ""
        await session.aclose()
        assert service.admission.total_reserved() == (0, 0)
        assert check(service.catalog.database) == []

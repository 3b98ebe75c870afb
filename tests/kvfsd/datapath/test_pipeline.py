"""The data paths: no stage can be left out or swapped, and all that is held is given back, whatever raises."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from kvfs import limits
from kvfs.buffers import BATCH
from kvfs.errors import (
    InternalError,
)
from kvfsd.catalog.rows import Location
from kvfsd.datapath import pipeline
from kvfsd.media.faulty import Fault, FaultKind, Operation
from kvfsd.metrics import READ_STAGES, WRITE_STAGES
from tests.kvfsd.path_bench import Bench, bench, mirrored

__all__ = ["bench", "mirrored"]

MIB = limits.MIB

# --- order ---------------------------------------------------------------------------------------------

WRITE_FUNCTIONS = ("admit", "schedule", "digest", "seal", "place", "write", "commit")
READ_FUNCTIONS = ("admit_read", "schedule_read", "locate", "read", "open_", "verify")
ASYNC_FUNCTIONS = {"schedule", "write", "schedule_read", "read"}


async def test_every_stage_runs_once_for_a_write_and_once_for_a_read(bench: Bench) -> None:
    request = await bench.write_request(b"payload")
    await pipeline.write_block(bench.path, request)
    assert {name: stage.calls for name, stage in bench.service.metrics.write.items()} == dict.fromkeys(WRITE_STAGES, 1)
    assert await bench.read(request.target) == b"payload"
    assert {name: stage.calls for name, stage in bench.service.metrics.read.items()} == dict.fromkeys(READ_STAGES, 1)
    metrics = bench.service.metrics
    assert not any(stage.errors for stage in (*metrics.write.values(), *metrics.read.values()))


def passed_through(name: str) -> Callable[..., object]:
    async def without_waiting(_: object, given: object) -> object:
        return given

    return without_waiting if name in ASYNC_FUNCTIONS else lambda _, given: given


@pytest.mark.parametrize("name", WRITE_FUNCTIONS)
async def test_a_write_path_without_one_of_its_stages_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ino = await bench.host.allocate()
    monkeypatch.setattr(pipeline, name, passed_through(name))
    with pytest.raises((InternalError, AttributeError)):
        await bench.host.write_block(ino, 0, b"data")


@pytest.mark.parametrize("name", READ_FUNCTIONS)
async def test_a_read_path_without_one_of_its_stages_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    attributes = await bench.host.store(b"file", b"data")
    monkeypatch.setattr(pipeline, name, passed_through(name))
    with pytest.raises((InternalError, AttributeError)):
        await bench.host.read_block(attributes.ino)


@pytest.mark.parametrize("first", range(len(WRITE_FUNCTIONS) - 1))
async def test_a_write_path_with_two_stages_swapped_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    ino = await bench.host.allocate()
    one, other = WRITE_FUNCTIONS[first : first + 2]
    swap(monkeypatch, one, other)
    with pytest.raises((InternalError, AttributeError, TypeError)):
        await bench.host.write_block(ino, 0, b"data")
    assert bench.staged_bytes() == 0


@pytest.mark.parametrize("first", range(len(READ_FUNCTIONS) - 1))
async def test_a_read_path_with_two_stages_swapped_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    attributes = await bench.host.store(b"file", b"data")
    one, other = READ_FUNCTIONS[first : first + 2]
    swap(monkeypatch, one, other)
    with pytest.raises((InternalError, AttributeError, TypeError)):
        await bench.host.read_block(attributes.ino)


def swap(monkeypatch: pytest.MonkeyPatch, one: str, other: str) -> None:
    functions = {one: getattr(pipeline, one), other: getattr(pipeline, other)}
    monkeypatch.setattr(pipeline, one, as_kind_of(one, other, functions[other]))
    monkeypatch.setattr(pipeline, other, as_kind_of(other, one, functions[one]))


def as_kind_of(place: str, name: str, function: Callable[..., object]) -> Callable[..., object]:
    """Stage `name` called where `place` was: awaited or not as that one is, so that only its type is wrong."""
    if (place in ASYNC_FUNCTIONS) == (name in ASYNC_FUNCTIONS):
        return function
    if place in ASYNC_FUNCTIONS:

        async def awaited(path: object, given: object) -> object:
            return function(path, given)

        return awaited

    def at_once(path: object, given: object) -> object:
        coroutine = function(path, given)
        try:
            coroutine.send(None)  # type: ignore[attr-defined]
        except StopIteration as end:
            return end.value
        raise AssertionError("the stage waited")

    return at_once


SNIPPET_HEAD = """
from kvfsd.datapath import pipeline as p
from kvfsd.datapath.pipeline import DataPath
from kvfsd.datapath.stages import *
"""


def write_snippet(number: int, order: list[str]) -> str:
    lines = [f"async def write_{number}(path: DataPath, x0: WriteRequest) -> Committed:"]
    return "\n".join([*lines, *calls(order)])


def read_snippet(number: int, order: list[str]) -> str:
    lines = [f"async def read_{number}(path: DataPath, x0: ReadRequest) -> Verified:"]
    return "\n".join([*lines, *calls(order)])


def calls(order: list[str]) -> list[str]:
    lines = []
    for index, name in enumerate(order):
        call = f"p.{name}(path, x{index})"
        lines.append(f"    x{index + 1} = " + (f"await {call}" if name in ASYNC_FUNCTIONS else call))
        if name == "schedule_read":
            lines[-1] = f"    x{index + 1} = Attempt(await {call})"
        if name == "locate":
            lines.append(f"    assert x{index + 1} is not None")
    return [*lines, f"    return x{len(order)}"]


def wrong_orders(right: tuple[str, ...]) -> list[list[str]]:
    removed = [[name for name in right if name != gone] for gone in right]
    swapped = []
    for first in range(len(right) - 1):
        order = list(right)
        order[first], order[first + 1] = order[first + 1], order[first]
        swapped.append(order)
    return removed + swapped


def test_mypy_accepts_the_right_order_and_no_other(tmp_path: Path) -> None:
    snippets = [write_snippet(0, list(WRITE_FUNCTIONS)), read_snippet(0, list(READ_FUNCTIONS))]
    snippets += [write_snippet(n, order) for n, order in enumerate(wrong_orders(WRITE_FUNCTIONS), 1)]
    snippets += [read_snippet(n, order) for n, order in enumerate(wrong_orders(READ_FUNCTIONS), 1)]
    source = tmp_path / "orders.py"
    source.write_text(SNIPPET_HEAD + "\n\n".join(snippets) + "\n")
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), "--no-pretty", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, cwd=root)
    refused = refused_functions(source, done.stdout)
    every = {line.split()[2].split("(")[0] for line in source.read_text().splitlines() if line.startswith("async def")}
    assert refused == every - {"write_0", "read_0"}, done.stdout + done.stderr


def refused_functions(source: Path, output: str) -> set[str]:
    lines = source.read_text().splitlines()
    refused = set()
    for report in output.splitlines():
        # By name: out of its cache mypy reports the directory of an earlier run.
        _, _, rest = report.partition(f"{source.name}:")
        if not rest or ": error:" not in rest:
            continue
        number = int(rest.split(":")[0])
        head = next(line for line in reversed(lines[:number]) if line.startswith("async def"))
        refused.add(head.split()[2].split("(")[0])
    return refused


# --- what is held is given back ------------------------------------------------------------------------


class InjectedError(Exception):
    """An injected bug."""


@pytest.mark.parametrize("name", WRITE_FUNCTIONS)
async def test_a_write_that_fails_in_any_stage_gives_everything_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    request = await bench.write_request(b"data")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, name, raising(name))
        with pytest.raises(InjectedError):
            await pipeline.write_block(bench.path, request)
    if name == "commit":  # the stage itself settles: stand in for it
        bench.service.store.settle(last_appended(bench))
    assert bench.holds_nothing()
    await pipeline.write_block(bench.path, request)
    assert await bench.read(request.target) == b"data"


def last_appended(bench: Bench) -> list[Location]:
    return [
        Location(space.index, segment.number, 0)
        for space in bench.service.store.spaces.values()
        for segment in space.in_use.values()
        for _ in range(segment.unsettled)
    ]


@pytest.mark.parametrize("name", READ_FUNCTIONS)
async def test_a_read_that_fails_in_any_stage_gives_everything_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    attributes = await bench.host.store(b"file", b"data")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, name, raising(name))
        with pytest.raises(InjectedError):
            await bench.host.read_block(attributes.ino)
    assert bench.holds_nothing()
    assert await bench.host.read_block(attributes.ino) == b"data"


def raising(name: str) -> Callable[..., object]:
    async def later(_: object, __: object) -> object:
        raise InjectedError

    def now(_: object, __: object) -> object:
        raise InjectedError

    return later if name in ASYNC_FUNCTIONS else now


async def test_a_commit_that_fails_settles_its_segments(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    request = await bench.write_request(b"data")

    def refuse(*_: object) -> int:
        raise InjectedError

    with monkeypatch.context() as patch:
        patch.setattr(type(bench.service.catalog.blocks), "stage", refuse)
        with pytest.raises(InjectedError):
            await pipeline.write_block(bench.path, request)
    assert bench.holds_nothing()


async def test_a_cancelled_write_gives_everything_back(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    bench.media[0].set_faults([Fault(FaultKind.DELAY, Operation.WRITE, probability=1.0, delay_ms=5_000)])
    request = await bench.write_request(b"data")
    with trio.move_on_after(0.1) as scope:
        await pipeline.write_block(bench.path, request)
    assert scope.cancelled_caught
    assert bench.holds_nothing()


async def test_buffers_are_reused(bench: Bench) -> None:
    ino = await bench.host.allocate()
    blocks = 2 * BATCH
    for block in range(blocks):
        await bench.host.write_block(ino, block, b"x")
    await bench.host.commit(ino, blocks * MIB, b"file")
    for block in range(blocks):
        await bench.host.read_block(ino, block)
    assert bench.path.records.mapped == BATCH
    assert bench.path.plaintexts.mapped == BATCH

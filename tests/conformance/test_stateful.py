"""Random operations against a model (after fsx): one tree of files, every read compared byte for byte."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.conformance.clients import MIB, outcome, pattern
from tests.conformance.conftest import Target

LENGTH_MAX = 3 * MIB
NAMES = st.sampled_from(["a", "b", "c", "d/x", "d/y"])
OFFSETS = st.one_of(
    st.integers(0, LENGTH_MAX),
    st.sampled_from([0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, 2 * MIB - 4096, 2 * MIB]),
)
LENGTHS = st.one_of(st.integers(1, 70_000), st.sampled_from([1, 4096, MIB, MIB + 1, MIB + 4096]))


@dataclass
class ModelFile:
    """What a file must hold, whatever names and handles it has."""

    content: bytearray = field(default_factory=bytearray)

    def write(self, offset: int, data: bytes) -> None:
        if len(self.content) < offset:
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))


@dataclass
class Handle:
    descriptor: int
    file: ModelFile
    append: bool


class Tree(RuleBasedStateMachine):
    """Files `a b c d/x d/y` under random operations; `target` is set by the test."""

    target: Target
    crashes_left: int
    runs = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.root = self.target / f"run{next(self.runs)}"
        os.makedirs(self.root / "d")
        self.names: dict[str, ModelFile] = {}
        self.handles: list[Handle] = []
        self.fill = itertools.count()

    def path(self, name: str) -> Path:
        return self.root / name

    def fresh(self, length: int) -> bytes:
        return pattern(next(self.fill), length)

    # --- rules

    @rule(name=NAMES, length=st.integers(0, 2 * MIB + 5))
    def store(self, name: str, length: int) -> None:
        data = self.fresh(length)
        temporary = self.root / "t.tmp"
        temporary.write_bytes(data)
        os.rename(temporary, self.path(name))
        self.names[name] = ModelFile(bytearray(data))

    @rule(name=NAMES, append=st.booleans(), truncate=st.booleans())
    def open_handle(self, name: str, append: bool, truncate: bool) -> None:
        if len(self.handles) >= 5:
            return
        flags = os.O_RDWR | os.O_CREAT | (os.O_APPEND if append else 0) | (os.O_TRUNC if truncate else 0)
        descriptor = os.open(self.path(name), flags, 0o644)
        file = self.names.setdefault(name, ModelFile())
        if truncate:
            file.truncate(0)
        self.handles.append(Handle(descriptor, file, append))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 4), offset=OFFSETS, length=LENGTHS)
    def write(self, which: int, offset: int, length: int) -> None:
        handle = self.handles[which % len(self.handles)]
        data = self.fresh(length)
        if handle.append:
            offset = len(handle.file.content)
            assert os.write(handle.descriptor, data) == length
        else:
            assert os.pwrite(handle.descriptor, data, offset) == length
        handle.file.write(offset, data)

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 4), offset=OFFSETS, length=LENGTHS)
    def read(self, which: int, offset: int, length: int) -> None:
        handle = self.handles[which % len(self.handles)]
        assert os.pread(handle.descriptor, length, offset) == handle.file.content[offset : offset + length]

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 4), size=OFFSETS)
    def truncate_handle(self, which: int, size: int) -> None:
        handle = self.handles[which % len(self.handles)]
        os.ftruncate(handle.descriptor, size)
        handle.file.truncate(size)

    @rule(name=NAMES, size=OFFSETS)
    def truncate_name(self, name: str, size: int) -> None:
        file = self.names.get(name)
        try:
            os.truncate(self.path(name), size)
        except FileNotFoundError:
            assert file is None
        else:
            assert file is not None
            file.truncate(size)

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 4))
    def close(self, which: int) -> None:
        os.close(self.handles.pop(which % len(self.handles)).descriptor)

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 4))
    def sync(self, which: int) -> None:
        os.fsync(self.handles[which % len(self.handles)].descriptor)

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        try:
            os.rename(self.path(old), self.path(new))
        except FileNotFoundError:
            assert old not in self.names
            return
        file = self.names[old]
        if self.names.get(new) is not file:  # two links of one file: rename does nothing
            self.names[new] = self.names.pop(old)

    @rule(old=NAMES, new=NAMES)
    def link(self, old: str, new: str) -> None:
        code, _ = outcome(os.link, self.path(old), self.path(new))
        if old not in self.names:
            assert code in (errno.ENOENT, errno.EEXIST)
        elif new in self.names:
            assert code == errno.EEXIST
        else:
            assert code == 0
            self.names[new] = self.names[old]

    @rule(name=NAMES)
    def unlink(self, name: str) -> None:
        try:
            os.unlink(self.path(name))
        except FileNotFoundError:
            assert name not in self.names
        else:
            del self.names[name]

    @rule(name=NAMES, shared=st.booleans())
    def map_and_compare(self, name: str, shared: bool) -> None:
        file = self.names.get(name)
        if file is None or not file.content:
            return
        with (
            open(self.path(name), "rb") as stream,
            mmap.mmap(
                stream.fileno(), 0, flags=mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, prot=mmap.PROT_READ
            ) as mapping,
        ):
            assert mapping[:] == file.content

    @precondition(lambda self: not self.handles)
    @rule(draw=st.integers(0, 3))
    def lose_the_process(self, draw: int) -> None:
        """Nothing is open, so nothing may change. Seldom: it takes a second."""
        if draw != 0 or self.crashes_left == 0:
            return
        type(self).crashes_left -= 1
        self.target.crash()
        for name, file in self.names.items():
            assert self.path(name).read_bytes() == file.content

    # --- invariants

    @invariant()
    def names_and_sizes_agree(self) -> None:
        for handle in self.handles:
            assert os.fstat(handle.descriptor).st_size == len(handle.file.content)
        listed = set(os.listdir(self.root)) - {"d"} | {f"d/{name}" for name in os.listdir(self.root / "d")}
        assert listed == set(self.names)
        for name, file in self.names.items():
            status = os.stat(self.path(name))
            assert status.st_size == len(file.content), name
            assert status.st_nlink == sum(other is file for other in self.names.values()), name

    def teardown(self) -> None:
        try:
            for name, file in self.names.items():
                assert self.path(name).read_bytes() == file.content, name
        finally:
            for handle in self.handles:
                os.close(handle.descriptor)
            shutil.rmtree(self.root)


@pytest.mark.slow
@pytest.mark.parametrize("seed_value", [1, 2, 3])
def test_random_operations_match_the_model(target: Target, seed_value: int) -> None:
    """KVFS_STATEFUL_EXAMPLES raises the number of runs per seed (default 15 of 40 steps)."""
    examples = int(os.environ.get("KVFS_STATEFUL_EXAMPLES", "15"))
    bound = type("BoundTree", (Tree,), {"target": target, "crashes_left": examples})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    limits = settings(
        max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=checks, database=None
    )
    run_state_machine_as_test(seed(seed_value)(bound), settings=limits)

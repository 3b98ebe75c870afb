"""The mixed workload of a crash round: a process of several workers, each with names of its own in shared directories.

    python -m tests.crash.workload ROOT JOURNALS --seed S --round N [--workers W] [--operations N]

Each worker does one operation at a time and journals it before its first system call and after its last. It ends
when the mount is gone (ENOTCONN, ECONNABORTED); any other error is a violation. For each acknowledged operation one
byte goes to stdout, for the parent to choose its moment.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from tests.crash.journal import JournalWriter
from tests.crash.model import Operation, State, apply, content, empty_state, materialise, size_of

SHARED = ("s0", "s1/deep/er", "s2")
"""Directories in which every worker has names."""
SLOTS = 10
"""Names per worker and shared directory."""
STEPS_MAX = 8
"""Edits of one file before it is stored anew: bounds what the checker has to compute."""
MIB = 1 << 20
MOUNT_GONE = {errno.ENOTCONN, errno.ECONNABORTED}


class Actor:
    """One thread with names of its own: what it may pick from, and how it does and journals an operation."""

    def __init__(self, root: Path, number: int, state: State, journal: JournalWriter, rng: random.Random) -> None:
        self.root, self.number, self.state, self.journal, self.rng = root, number, state, journal, rng

    # --- choosing

    def slot(self) -> str:
        return f"{self.rng.choice(SHARED)}/w{self.number}_{self.rng.randrange(SLOTS)}.bin"

    def directory(self) -> str:
        return f"w{self.number}_d{self.rng.randrange(3)}"

    def files(self) -> list[str]:
        return [name for name, what in self.state["names"].items() if what != "dir" and not what.startswith("link:")]

    def seed(self) -> int:
        return self.rng.getrandbits(48)

    def size(self) -> int:
        kind = self.rng.random()
        if kind < 0.25:
            return self.rng.randrange(0, 8192)
        if kind < 0.55:
            return self.rng.randrange(0, MIB)
        if kind < 0.85:
            return self.rng.choice([MIB, 2 * MIB, 2 * MIB, MIB + 4096, 4096])
        return self.rng.randrange(2 * MIB, 12 * MIB if kind > 0.97 else 4 * MIB)

    def is_file(self, name: str) -> bool:
        what = self.state["names"].get(name)
        return what is None or (what != "dir" and not what.startswith("link:"))

    # --- doing

    def perform(self, operation: Operation, call: Callable[[], None]) -> None:
        """Journal, do, journal, and tell the parent."""
        self.journal.begin(operation)
        call()
        self.journal.acknowledge()
        self.state = apply(self.state, operation)
        os.write(1, b".")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def write_file(self, name: str, flags: int, seed: int, size: int) -> None:
        descriptor = os.open(self.path(name), os.O_WRONLY | flags, 0o644)
        try:
            self.write_all(descriptor, content(seed, size))
        finally:
            os.close(descriptor)

    def write_all(self, descriptor: int, data: memoryview) -> None:
        """One write, or several of a size that is no divisor of a block."""
        step = self.rng.choice([len(data) or 1, len(data) or 1, 700_001, MIB])
        for start in range(0, len(data), step):
            part = data[start : start + step]
            if os.write(descriptor, part) != len(part):
                raise OSError(errno.EIO, "short write")

    def rename_to(self, old: str, new: str) -> None:
        operation = {"kind": "rename", "name": old, "to": new}
        self.perform(operation, lambda: os.rename(self.path(old), self.path(new)))


class Worker(Actor):
    """The operations of the mix, and the loop that draws them."""

    def store(self) -> None:
        """Store the way vLLM does: temporary name, close, rename."""
        name = self.slot()
        if not self.is_file(name):
            return
        temporary = f"{name}.{self.rng.getrandbits(32):x}.tmp"
        seed, size = self.seed(), self.size()
        put = {"kind": "put", "name": temporary, "seed": seed, "size": size}
        self.perform(put, lambda: self.write_file(temporary, os.O_CREAT | os.O_EXCL, seed, size))
        self.rename_to(temporary, name)

    def store_final(self) -> None:
        """O_TRUNC of the final name."""
        name, seed, size = self.slot(), self.seed(), self.size()
        if self.is_file(name):
            put = {"kind": "put", "name": name, "seed": seed, "size": size}
            self.perform(put, lambda: self.write_file(name, os.O_CREAT | os.O_TRUNC, seed, size))

    def store_open(self) -> None:
        """Rename before close: the rename is the acknowledgement, the close comes after it."""
        name, seed, size = self.slot(), self.seed(), self.size()
        if not self.is_file(name):
            return
        temporary = self.path(f"{name}.{seed:x}.tmp")
        descriptor = -1

        def call() -> None:
            nonlocal descriptor
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            os.ftruncate(descriptor, size)
            self.write_all(descriptor, content(seed, size))
            os.rename(temporary, self.path(name))

        try:
            self.perform({"kind": "store_open", "name": name, "seed": seed, "size": size}, call)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def editable(self) -> tuple[str, int] | None:
        """A file that may still be edited, and its size."""
        files = [n for n in self.files() if len(self.recipe(n)) < STEPS_MAX]
        if not files:
            return None
        name = self.rng.choice(files)
        return name, size_of(self.recipe(name))

    def recipe(self, name: str) -> list[list[object]]:
        return self.state["objects"][self.state["names"][name]]["recipe"]  # type: ignore[no-any-return]

    def overwrite(self) -> None:
        """Write some ranges of a published file in place, then close; sometimes fsync in between."""
        chosen = self.editable()
        if chosen is None:
            return
        name, size = chosen
        synced = self.rng.random() < 0.3
        descriptor = os.open(self.path(name), os.O_RDWR)
        closed = False
        try:
            for turn in range(2 if synced else 1):
                steps = [self.random_put(size) for _ in range(self.rng.randrange(1, 3))]
                last = turn == (1 if synced else 0)
                edit = {"kind": "edit", "name": name, "steps": steps}
                closed = closed or last
                self.perform(edit, lambda s=steps, end=last: self.put_steps(descriptor, s, end))
        finally:
            if not closed:
                os.close(descriptor)

    def random_put(self, size: int) -> list[object]:
        offset = self.rng.choice([0, size, self.rng.randrange(size + 1), min(size, MIB)])
        return ["put", offset, self.seed(), self.rng.choice([1, 4096, 70_000, MIB])]

    def put_steps(self, descriptor: int, steps: list[list[object]], end: bool) -> None:
        """All steps through one handle, then close (end) or fsync."""
        try:
            for _, offset, seed, length in steps:
                data = content(seed, length)  # type: ignore[arg-type]
                if os.pwrite(descriptor, data, offset) != length:  # type: ignore[arg-type]
                    raise OSError(errno.EIO, "short write")
            if not end:
                os.fsync(descriptor)
        finally:
            if end:
                os.close(descriptor)

    def truncate(self) -> None:
        chosen = self.editable()
        if chosen is not None:
            name, size = chosen
            new = self.rng.choice([0, size // 2, self.rng.randrange(size + 1), size + 5000])
            operation = {"kind": "edit", "name": name, "steps": [["truncate", new]]}
            self.perform(operation, lambda: os.truncate(self.path(name), new))

    def unlink(self) -> None:
        names = [name for name, what in self.state["names"].items() if what != "dir"]
        if names:
            name = self.rng.choice(names)
            self.perform({"kind": "unlink", "name": name}, lambda: os.unlink(self.path(name)))

    def rename(self) -> None:
        files, new = self.files(), self.slot()
        if files and self.is_file(new):
            self.rename_to(self.rng.choice(files), new)

    def directories(self) -> None:
        """Make, fill, rename or remove a directory of this worker's own."""
        name = self.directory()
        names = self.state["names"]
        inside = [other for other in names if other.startswith(name + "/")]
        if name not in names:
            self.perform({"kind": "mkdir", "name": name}, lambda: os.mkdir(self.path(name)))
        elif not inside and self.rng.random() < 0.4:
            self.perform({"kind": "rmdir", "name": name}, lambda: os.rmdir(self.path(name)))
        elif len(inside) < 3:
            inner, seed, size = f"{name}/f{self.rng.randrange(3)}", self.seed(), self.rng.randrange(100_000)
            put = {"kind": "put", "name": inner, "seed": seed, "size": size}
            self.perform(put, lambda: self.write_file(inner, os.O_CREAT | os.O_TRUNC, seed, size))
        else:
            free = [f"w{self.number}_d{n}" for n in range(3) if f"w{self.number}_d{n}" not in names]
            if free:
                self.rename_to(name, free[0])

    def small_things(self) -> None:
        """Links, modes, extended attributes."""
        files = self.files()
        if not files:
            return
        name, kind = self.rng.choice(files), self.rng.randrange(4)
        if kind == 0:
            new = f"s0/w{self.number}_l{self.rng.randrange(4)}"
            if new not in self.state["names"]:
                operation = {"kind": "link", "name": name, "to": new}
                self.perform(operation, lambda: os.link(self.path(name), self.path(new)))
        elif kind == 1:
            new, target = f"s0/w{self.number}_y{self.rng.randrange(4)}", f"../{name}"
            if new not in self.state["names"]:
                operation = {"kind": "symlink", "name": new, "target": target}
                self.perform(operation, lambda: os.symlink(target, self.path(new)))
        elif kind == 2:
            mode = self.rng.choice([0o600, 0o640, 0o644, 0o664])
            operation = {"kind": "chmod", "name": name, "mode": mode}
            self.perform(operation, lambda: os.chmod(self.path(name), mode))
        else:
            key, value = f"user.k{self.rng.randrange(3)}", f"{self.seed():x}"
            operation = {"kind": "setxattr", "name": name, "key": key, "value": value}
            self.perform(operation, lambda: os.setxattr(self.path(name), key, value.encode()))

    def read(self) -> None:
        """Read a file whole; bytes that differ are a violation before any crash."""
        files = self.files()
        if files:
            name = self.rng.choice(files)
            if Path(self.path(name)).read_bytes() != materialise(self.recipe(name)):
                self.journal.complain(f"{name}: read back wrong bytes before any crash")

    def run(self, operations: int, without: Collection[str] = ()) -> None:
        """Until the mount is gone, or `operations` were done; never those named in `without`."""
        weights = {
            self.store: 34,
            self.store_final: 10,
            self.store_open: 6,
            self.overwrite: 10,
            self.truncate: 5,
            self.unlink: 10,
            self.rename: 6,
            self.directories: 8,
            self.small_things: 6,
            self.read: 5,
        }
        weights = {call: weight for call, weight in weights.items() if call.__name__ not in without}
        choices, parts = list(weights), list(weights.values())
        try:
            for _ in range(operations):
                self.rng.choices(choices, parts)[0]()
        except OSError as error:
            if error.errno not in MOUNT_GONE:
                self.journal.complain(f"worker {self.number}: {error!r} on {error.filename}")


def run(root: Path, journals: Path, seed: str, workers: int, limits: tuple[int, Collection[str]]) -> None:
    """Start every worker from its saved state (`JOURNALS/N.state`) and wait for all.

    They go through a handle of the root, so that a dead mount stays ENOTCONN to them when it is detached and the
    directory below it appears.
    """
    root = Path(f"/proc/self/fd/{os.open(root, os.O_RDONLY | os.O_DIRECTORY)}")
    threads = []
    for number in range(workers):
        saved = journals / f"{number}.state"
        state = json.loads(saved.read_text()) if saved.exists() else empty_state()
        journal = JournalWriter(journals / f"{number}.journal")
        worker = Worker(root, number, state, journal, random.Random(f"{seed} {number}"))
        threads.append(threading.Thread(target=worker.run, args=limits))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("journals", type=Path)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--operations", type=int, default=sys.maxsize)
    parser.add_argument("--without", nargs="*", default=[])
    arguments = parser.parse_args()
    content(0, 1)  # make the random bytes before the first operation, not during it
    limits = arguments.operations, arguments.without
    run(arguments.root, arguments.journals, arguments.seed, arguments.workers, limits)


if __name__ == "__main__":
    main()

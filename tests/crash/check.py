"""Compare a tree with what the journals allow: every difference is a line of text."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.journal import Replay
from tests.crash.model import State, is_sparse, materialise, size_of
from tests.crash.workload import SHARED


@dataclass
class Tree:
    """What is below a root: path -> "dir", "link:TARGET" or "file"."""

    root: Path
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> Tree:
        tree = cls(root)
        for directory, subdirectories, files in os.walk(root):
            for name in (*subdirectories, *files):
                path = os.path.join(directory, name)
                relative = os.path.relpath(path, root)
                mode = os.lstat(path).st_mode
                if stat.S_ISDIR(mode):
                    tree.names[relative] = "dir"
                elif stat.S_ISLNK(mode):
                    tree.names[relative] = f"link:{os.readlink(path)}"
                else:
                    tree.names[relative] = "file"
        return tree

    def of_worker(self, number: int) -> dict[str, str]:
        """The names that belong to one worker."""
        mark = f"w{number}_"
        return {name: kind for name, kind in self.names.items() if any(p.startswith(mark) for p in name.split("/"))}

    def strangers(self, workers: int) -> list[str]:
        """Names that no worker ever made."""
        known = {"/".join(shared.split("/")[:depth]) for shared in SHARED for depth in range(1, 4)}
        known.update(name for number in range(workers) for name in self.of_worker(number))
        return [f"{name}: nobody made this name" for name in self.names if name not in known]


def differences(tree: Tree, number: int, state: State) -> list[str]:
    """How worker `number`'s part of `tree` differs from `state`; empty when it does not."""
    found = tree.of_worker(number)
    wanted = state["names"]
    lines = [f"{name}: lost" for name in wanted if name not in found]
    lines += [f"{name}: is there, but should not be" for name in found if name not in wanted]
    inodes: dict[str, int] = {}
    for name in sorted(set(found) & set(wanted)):
        what = wanted[name]
        if what == "dir" or what.startswith("link:"):
            if found[name] != what:
                lines.append(f"{name}: is {found[name]}, not {what}")
        elif found[name] != "file":
            lines.append(f"{name}: is {found[name]}, not a file")
        else:
            lines.extend(_file_differences(tree.root, name, state["objects"][what]))
            ino = os.stat(tree.root / name).st_ino
            if inodes.setdefault(what, ino) != ino:
                lines.append(f"{name}: is no longer a hard link of its twin")
    return lines


def _file_differences(root: Path, name: str, wanted: dict[str, object]) -> Iterator[str]:
    path = root / name
    status = path.stat()
    expected = materialise(wanted["recipe"])  # type: ignore[arg-type]
    if status.st_size != len(expected):
        yield f"{name}: size {status.st_size}, not {len(expected)}"
    try:
        content = path.read_bytes()
    except OSError as error:
        yield f"{name}: {error!r}"
        return
    if content != expected:
        yield f"{name}: {_where(content, expected)}"
    if stat.S_IMODE(status.st_mode) != wanted["mode"]:
        yield f"{name}: mode {stat.S_IMODE(status.st_mode):o}, not {wanted['mode']:o}"
    shown = {key: os.getxattr(path, key).decode() for key in os.listxattr(path) if key.startswith("user.")}
    if shown != wanted["xattrs"]:
        yield f"{name}: extended attributes {shown}, not {wanted['xattrs']}"


def _where(content: bytes, expected: bytearray) -> str:
    """The first wrong byte, and whether a hole of zeros begins there."""
    common = min(len(content), len(expected))
    at = next((i for i in range(0, common, 4096) if content[i : i + 4096] != expected[i : i + 4096]), common)
    hole = bool(content[at : at + 4096]) and not any(content[at : at + 4096])
    return f"wrong bytes from {at} on ({'a hole' if hole else 'other content'}), {len(content)} bytes"


@dataclass(frozen=True)
class Expected:
    """What the accounting must show for the tree: objects exactly, bytes between two bounds (equal if not sparse)."""

    objects: int
    bytes_low: int
    bytes_high: int


def expected_accounting(tree: Tree, states: list[State]) -> Expected:
    """Directories and links count as objects without bytes; a file counts once whatever its names."""
    objects = sum(kind != "file" for kind in tree.names.values())
    low = high = 0
    for state in states:
        for value in state["objects"].values():
            objects += 1
            size = size_of(value["recipe"])
            high += size
            low += 0 if is_sparse(value["recipe"]) else size
    return Expected(objects, low, high)


def settle(tree: Tree, number: int, replayed: Replay) -> tuple[State, list[str]]:
    """The candidate state that the tree shows, and the differences to the nearest one if it shows none."""
    nearest: tuple[State, list[str]] | None = None
    for candidate in replayed.candidates():
        lines = differences(tree, number, candidate)
        if not lines:
            return candidate, []
        if nearest is None or len(lines) < len(nearest[1]):
            nearest = (candidate, lines)
    assert nearest is not None
    return nearest


def check_tree(root: Path, replays: list[Replay]) -> tuple[Tree, list[State], list[str]]:
    """The whole tree against all workers -> the tree, the state of each worker, all violations."""
    tree = Tree.read(root)
    violations = [line for replayed in replays for line in replayed.violations]
    violations += tree.strangers(len(replays))
    states = []
    for number, replayed in enumerate(replays):
        state, lines = settle(tree, number, replayed)
        states.append(state)
        operation = replayed.in_flight
        violations += [f"{line}   [in flight: {operation}]" for line in lines]
    return tree, states, violations

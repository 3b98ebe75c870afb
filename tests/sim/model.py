"""What a client was told: a small filesystem of plain values. Every change gives a new state, old ones stay.

A node that has several names is one `Node` under several paths. `version` changes with the content and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

Path = tuple[bytes, ...]


class Kind(Enum):
    """What a node is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True)
class Node:
    """A file, directory or symbolic link as its writer left it."""

    ident: int
    kind: Kind
    mode: int
    content: bytes = b""
    version: int = 0
    mtime_ns: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""


@dataclass(frozen=True, slots=True)
class Seen:
    """What can be observed of one path. `content` None: it could not be read, an error or a miss was the answer."""

    kind: Kind
    mode: int
    nlink: int
    size: int
    mtime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    target: bytes
    content: bytes | None

    def metadata(self) -> tuple[object, ...]:
        """All but the content."""
        return (self.kind, self.mode, self.nlink, self.size, self.mtime_ns, self.xattrs, self.target)


Tree = Mapping[Path, Seen]


@dataclass(frozen=True, slots=True)
class State:
    """One client's directory at one moment: nodes by path. `sequence`: the catalog's log was here when it was told."""

    nodes: Mapping[Path, Node] = field(default_factory=dict)
    sequence: int = 0

    # --- looking ---------------------------------------------------------------------------------------

    def paths(self, kind: Kind) -> list[Path]:
        """Paths of one kind, in order."""
        return sorted(path for path, node in self.nodes.items() if node.kind is kind)

    def is_below(self, path: Path, ancestor: Path) -> bool:
        """Whether `path` is `ancestor` or lies in it."""
        return path[: len(ancestor)] == ancestor

    def is_empty(self, directory: Path) -> bool:
        """Whether nothing lies in `directory`."""
        return not any(path[:-1] == directory for path in self.nodes)

    def tree(self) -> Tree:
        """What an observer should see."""
        names: dict[int, int] = {}
        for node in self.nodes.values():
            names[node.ident] = names.get(node.ident, 0) + 1
        return {path: _seen(node, names[node.ident], self._subdirectories(path)) for path, node in self.nodes.items()}

    def _subdirectories(self, directory: Path) -> int:
        return sum(path[:-1] == directory and node.kind is Kind.DIRECTORY for path, node in self.nodes.items())

    # --- changing --------------------------------------------------------------------------------------

    def with_sequence(self, sequence: int) -> State:
        """The same, told at `sequence`."""
        return dataclasses.replace(self, sequence=sequence)

    def put(self, path: Path, node: Node) -> State:
        """`node` under `path`, in place of what was there."""
        return State({**self.nodes, path: node})

    def remove(self, path: Path) -> State:
        """Without `path`."""
        return State({other: node for other, node in self.nodes.items() if other != path})

    def update(self, node: Node) -> State:
        """`node` in place of the node of the same identity, under all its names."""
        return State({path: node if old.ident == node.ident else old for path, old in self.nodes.items()})

    def rename(self, source: Path, target: Path) -> State:
        """`source`, with what lies below it, is `target` now."""
        if self.nodes.get(target) is not None and self.nodes[target].ident == self.nodes[source].ident:
            return State(dict(self.nodes))  # two names of one file: rename(2) does nothing
        kept = {path: node for path, node in self.nodes.items() if not self.is_below(path, target)}
        return State(
            {target + path[len(source) :] if self.is_below(path, source) else path: n for path, n in kept.items()}
        )

    def exchange(self, first: Path, second: Path) -> State:
        """The two, with what lies below them, swap places."""

        def moved(path: Path) -> Path:
            if self.is_below(path, first):
                return second + path[len(first) :]
            return first + path[len(second) :] if self.is_below(path, second) else path

        return State({moved(path): node for path, node in self.nodes.items()})


def _seen(node: Node, names: int, subdirectories: int) -> Seen:
    is_file, is_directory = node.kind is Kind.FILE, node.kind is Kind.DIRECTORY
    return Seen(
        kind=node.kind,
        mode=node.mode,
        nlink=2 + subdirectories if is_directory else names,
        size=len(node.content) if is_file else len(node.target),
        mtime_ns=node.mtime_ns if is_file else 0,
        xattrs=tuple(sorted(node.xattrs)),
        target=node.target,
        content=node.content,
    )

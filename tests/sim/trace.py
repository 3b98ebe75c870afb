"""Everything a run did to the world, in order: what crash states are built from.

Commits are not events: each event notes how long the catalog's write-ahead log was, and the log itself says where its
commits end. The database file changes only in a checkpoint, which begins a new epoch of the catalog.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.sim.model import State

_WAL_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class MediaWrite:
    """`data` arrived at `offset` of a medium."""

    medium: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MediaTrim:
    """A range of a medium was given back."""

    medium: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class MediaFlushed:
    """The medium's events before number `through` are on stable storage."""

    medium: str
    through: int


@dataclass(frozen=True, slots=True)
class CatalogSynced:
    """The first `wal_bytes` of the log are on stable storage."""

    wal_bytes: int


@dataclass(frozen=True, slots=True)
class Began:
    """A client has asked for something that will lead to `after`."""

    client: int
    after: State


@dataclass(frozen=True, slots=True)
class Ended:
    """A client was answered; `acked` is its number of acknowledged changes since the start."""

    client: int
    acked: int


@dataclass(frozen=True, slots=True)
class Synced:
    """A sync was answered: of each client the first so many changes are safe from a power loss."""

    acked: tuple[int, ...]


Happening = MediaWrite | MediaTrim | MediaFlushed | CatalogSynced | Began | Ended | Synced


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, the catalog's epoch and the length of its log right after."""

    happening: Happening
    epoch: int
    wal_bytes: int


@dataclass(slots=True)
class CatalogEpoch:
    """The database file, unchanged through the epoch, and the log at the epoch's end."""

    database: bytes
    log: bytes = b""
    commits: list[int] = field(default_factory=list)
    """Lengths of the log at which a commit ends; 0 first."""


class Trace:
    """The record of one run; `bind` says where its catalog is."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.epochs: list[CatalogEpoch] = []
        self.histories: list[list[State]] = []
        """Of each client, every state that was acknowledged; the first is what it began with."""
        self.recording = False
        """Whether what happens is noted."""
        self._path = Path()
        self._wal_path = Path()

    def bind(self, path: Path) -> None:
        """The catalog is, or will be, at `path`."""
        self._path, self._wal_path = path, Path(f"{path}-wal")

    def note(self, happening: Happening) -> None:
        """Append an event."""
        if self.recording:
            self.events.append(Event(happening, len(self.epochs) - 1, self.wal_bytes()))

    def wal_bytes(self) -> int:
        """Length of the log now."""
        try:
            return self._wal_path.stat().st_size
        except FileNotFoundError:
            return 0

    def begin_epoch(self) -> None:
        """The database file is as it will stay until the next checkpoint, and the log is empty."""
        if not self.recording:
            return
        self.epochs.append(CatalogEpoch(self._path.read_bytes()))

    def end_epoch(self) -> None:
        """Keep the log as it is now."""
        if not self.recording:
            return
        epoch = self.epochs[-1]
        epoch.log = self._wal_path.read_bytes() if self._wal_path.exists() else b""
        epoch.commits = [0, *_commit_ends(epoch.log)]

    def commits_between(self, epoch: int, after: int, through: int) -> list[int]:
        """Lengths of the log at which commits end, above `after` and up to `through`."""
        commits = self.epochs[epoch].commits
        return commits[bisect.bisect_right(commits, after) : bisect.bisect_right(commits, through)]


def _commit_ends(log: bytes) -> Iterator[int]:
    """Where each commit of a SQLite write-ahead log ends (https://sqlite.org/fileformat2.html, section 4)."""
    if len(log) < _WAL_HEADER_BYTES:
        return
    page_bytes = struct.unpack_from(">I", log, 8)[0]
    salts = log[16:24]
    at = _WAL_HEADER_BYTES
    while at + _FRAME_HEADER_BYTES + page_bytes <= len(log):
        pages_after_commit = struct.unpack_from(">I", log, at + 4)[0]
        if log[at + 8 : at + 16] != salts:
            return
        at += _FRAME_HEADER_BYTES + page_bytes
        if pages_after_commit:
            yield at

"""Crash states: what a kill or a power loss at any moment of a recorded run leaves behind."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from kvfs import limits
from kvfsd.media.memory import MemoryMedium
from tests.sim.trace import CatalogSynced, MediaFlushed, MediaTrim, MediaWrite, Trace

_UNIT: Final = limits.RECORD_ALIGN_BYTES
_TEAR_BYTES: Final = (512, 4096)


@dataclass(frozen=True, slots=True)
class Point:
    """Between two operations: `events` of the trace have happened, and commits up to `wal_bytes`."""

    events: int
    epoch: int
    wal_bytes: int


@dataclass(slots=True)
class CrashState:
    """What is left: the catalog's files and the media by name. `lost`: media operations that a power loss took."""

    database: bytes
    log: bytes
    media: dict[str, MemoryMedium]
    lost: int = 0


def points(trace: Trace) -> list[Point]:
    """Every moment between two operations, a commit being one."""
    found = [Point(0, 0, 0)]
    for number, event in enumerate(trace.events):
        before = found[-1]
        if event.epoch != before.epoch:
            for end in trace.commits_between(before.epoch, before.wal_bytes, len(trace.epochs[before.epoch].log)):
                found.append(Point(number, before.epoch, end))
            before = Point(number, event.epoch, 0)
            found.append(before)
        for end in trace.commits_between(event.epoch, before.wal_bytes, event.wal_bytes):
            found.append(Point(number, event.epoch, end))
        found.append(Point(number + 1, event.epoch, event.wal_bytes))
    return found


class MediaHistory:
    """The media of a recorded run at any of its moments; asking for moments in order is cheap."""

    def __init__(self, trace: Trace, start: dict[str, MemoryMedium]) -> None:
        self._trace = trace
        self._start = start
        self._at = 0
        self._now = {name: medium.clone() for name, medium in start.items()}

    async def at(self, events: int) -> dict[str, MemoryMedium]:
        """Copies of the media after the first so many events, nothing lost."""
        if events < self._at:
            self._at, self._now = 0, {name: medium.clone() for name, medium in self._start.items()}
        for event in self._trace.events[self._at : events]:
            await _apply(self._now, event.happening)
        self._at = events
        return {name: medium.clone() for name, medium in self._now.items()}

    async def after_power_loss(self, events: int, choice: random.Random) -> tuple[dict[str, MemoryMedium], int]:
        """Copies of the media after a loss of power at that moment -> media, how many operations did not survive whole.

        Flushed operations are there. Of the others any may be lost or torn; those that touch the same bytes keep their
        order, as they do in every drive.
        """
        through = _flushed_through(self._trace, events)
        media = {name: medium.clone() for name, medium in self._start.items()}
        mode, lost = choice.choice(("nothing", "prefix", "any", "any", "all")), 0
        pending = [
            number
            for number, event in enumerate(self._trace.events[:events])
            if isinstance(event.happening, MediaWrite | MediaTrim) and number >= through.get(event.happening.medium, 0)
        ]
        cut = choice.randint(0, len(pending))
        fates = dict(zip(pending, _fates(mode, len(pending), cut, choice), strict=True))
        for number, event in enumerate(self._trace.events[:events]):
            fate = fates.get(number, "kept")
            lost += fate != "kept"
            if fate == "torn" and isinstance(event.happening, MediaWrite):
                await _tear(media[event.happening.medium], event.happening, choice)
            elif fate != "lost":
                await _apply(media, event.happening)
        return media, lost


def log_after_power_loss(trace: Trace, point: Point, choice: random.Random) -> bytes:
    """The catalog's log: what was synced, any number of later commits, perhaps the beginning of another."""
    epoch = trace.epochs[point.epoch]
    first = epoch.commits[1] if point.epoch == 0 and point.events and len(epoch.commits) > 1 else 0
    synced = first
    for event in trace.events[: point.events]:
        if isinstance(event.happening, CatalogSynced) and event.epoch == point.epoch:
            synced = max(synced, event.happening.wal_bytes)
    possible = [synced, *trace.commits_between(point.epoch, synced, point.wal_bytes)]
    end = choice.choice((possible[0], possible[-1], choice.choice(possible)))
    later = trace.commits_between(point.epoch, end, point.wal_bytes)
    if later and choice.random() < 0.3:
        return epoch.log[: choice.randrange(end, later[0])]
    return epoch.log[:end]


def torn_write(trace: Trace, events: int) -> MediaWrite | None:
    """The media write that a kill at this moment may have cut short: the next operation, if it is one."""
    following = trace.events[events].happening if events < len(trace.events) else None
    return following if isinstance(following, MediaWrite) else None


async def write_prefix(media: dict[str, MemoryMedium], write: MediaWrite, choice: random.Random) -> None:
    """Only the first units of a write arrive."""
    kept = choice.randrange(len(write.data) // _UNIT) * _UNIT
    if kept:
        await media[write.medium].write(write.offset, memoryview(write.data[:kept]))


def _fates(mode: str, count: int, cut: int, choice: random.Random) -> Iterator[str]:
    for index in range(count):
        if mode == "prefix":
            yield "kept" if index < cut else "lost"
        elif mode == "any":
            yield choice.choice(("kept", "lost", "torn"))
        else:
            yield "kept" if mode == "all" else "lost"


def _flushed_through(trace: Trace, events: int) -> dict[str, int]:
    through: dict[str, int] = {}
    for event in trace.events[:events]:
        if isinstance(event.happening, MediaFlushed):
            name = event.happening.medium
            through[name] = max(through.get(name, 0), event.happening.through)
    return through


async def _apply(media: dict[str, MemoryMedium], happening: object) -> None:
    if isinstance(happening, MediaWrite):
        await media[happening.medium].write(happening.offset, memoryview(happening.data))
    elif isinstance(happening, MediaTrim):
        await media[happening.medium].trim(happening.offset, happening.length)


async def _tear(medium: MemoryMedium, write: MediaWrite, choice: random.Random) -> None:
    """Some pieces of a write arrive; the others keep what was there."""
    tear_bytes = choice.choice(_TEAR_BYTES)
    mixed = bytearray(len(write.data))
    await medium.read_into(write.offset, memoryview(mixed))
    for start in _pieces(len(write.data), tear_bytes):
        if choice.random() < 0.5:
            mixed[start : start + tear_bytes] = write.data[start : start + tear_bytes]
    await medium.write(write.offset, memoryview(mixed))


def _pieces(length: int, size: int) -> Iterable[int]:
    return range(0, length, size)

"""Where records go when not every medium takes them: one that is full, or does not answer, is left out for a while.

The first choice is rendezvous over all media (`placement`). Another one is made only if it is as safe: as many copies
in as many failure domains. If there is none, the write waits for the media of its first choice until its deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import trio

from kvfs.errors import KvfsError, PoolFullError
from kvfsd.catalog.rows import Location
from kvfsd.datapath import placement
from kvfsd.datapath.backoff import Backoff
from kvfsd.datapath.placement import MediumWeight
from kvfsd.metrics import Metrics
from kvfsd.segments.appends import Append

log = logging.getLogger(__name__)

AWAY_MS: Final = 1_000
"""How long a medium that failed a write is left out where there is another; then the next write tries it again."""


class Copies(NamedTuple):
    """Where a record is wanted: `replicas` copies by rendezvous of `key`, never fewer than `least`.

    `fills`: it needs the room that data writers have, and is not for the segments that they leave free.
    """

    key: bytes
    replicas: int
    least: int
    fills: bool = True


class RecordStore(Protocol):
    """The part of `SegmentStore` that is needed."""

    without_room: set[int]

    async def append_each(self, what: Append, media: Sequence[int]) -> tuple[dict[int, Location], dict[int, KvfsError]]:
        """Append to each medium -> locations and errors, by medium."""
        ...

    def settle(self, locations: Iterable[Location]) -> None:
        """Those appends are in the catalog, or given up."""
        ...


class RecordWriter:
    """Chooses media for the records of one pool and writes them there. Lives on the event loop."""

    def __init__(self, store: RecordStore, weights: Sequence[MediumWeight], metrics: Metrics, deadline_ms: int) -> None:
        self._store = store
        self._weights = weights
        self._metrics = metrics
        self._deadline_ms = deadline_ms
        self._usable = sum(medium.weight > 0 for medium in weights)
        self._away: dict[int, float] = {}
        self._failing: set[int] = set()

    # --- choosing --------------------------------------------------------------------------------------

    def choose(self, copies: Copies) -> tuple[int, ...]:
        """Media for the copies, best first: those of the first choice, unless one of them is full or away."""
        first = placement.place(copies.key, self._weights, copies.replicas)
        if not self._store.without_room and not self._away:
            return first
        return self._other(copies, first, ()) or first

    def _other(self, copies: Copies, first: tuple[int, ...], failed: Collection[int]) -> tuple[int, ...]:
        """As safe a choice as `first` without the `failed` media; () if there is none, or `first` is good.

        Rather on a medium without room for another segment than on one that is away: a segment may be open there.
        """
        away = self._still_away().union(failed)
        for avoid in (away | self._store.without_room if copies.fills else away, away, set(failed)):
            if not avoid.isdisjoint(first):
                chosen = placement.place_without(copies.key, self._weights, copies.replicas, copies.least, avoid)
                if chosen:
                    self._metrics.counters.placed_elsewhere += 1
                    return chosen
        return ()

    def _still_away(self) -> set[int]:
        now = trio.current_time()
        for index in [index for index, until in self._away.items() if until <= now]:
            del self._away[index]
        return set(self._away)

    # --- writing ---------------------------------------------------------------------------------------

    async def write(self, what: Append, copies: Copies, about: object) -> tuple[Location, ...]:
        """Choose media and write there; see `write_to`."""
        media = self.choose(copies)
        if not media:
            raise PoolFullError(f"{about}: no medium of the pool takes records")
        return await self.write_to(media, what, copies, about)

    async def write_to(
        self, first: tuple[int, ...], what: Append, copies: Copies, about: object
    ) -> tuple[Location, ...]:
        """Append to the media `first`, or others as safe if one of them fails -> the copies' locations, not settled.

        A record gets all its copies or an error: PoolFullError, MediumUnavailableError (saying what it was `about`).
        """
        done: dict[int, Location] = {}
        try:
            media = await self._until_done(first, what, copies, about, done)
        except BaseException:
            self._store.settle(done.values())
            raise
        self._store.settle(location for index, location in done.items() if index not in media)
        return tuple(done[index] for index in media)

    async def _until_done(
        self, first: tuple[int, ...], what: Append, copies: Copies, about: object, done: dict[int, Location]
    ) -> tuple[int, ...]:
        """The media that have the record at last; `done` gets every copy that was written on the way."""
        media, failed = first, set[int]()
        backoff = Backoff(self._metrics, self._deadline_ms)
        what = what._replace(wait=False, deadline_ms=self._patience_ms(copies))
        while True:
            appended, errors = await self._store.append_each(what, [index for index in media if index not in done])
            done.update(appended)
            if not errors:
                self._failing.difference_update(appended)
                return media
            self._note(errors)
            failed.update(errors)
            full = next((error for error in errors.values() if isinstance(error, PoolFullError)), None)
            if full is not None and what.wait:
                raise full
            other = () if backoff.is_over else self._other(copies, first, failed)
            if not other:
                if full is not None:
                    what = what._replace(wait=True)  # nothing is left but what the collector may find
                else:
                    await backoff.wait(about, next(iter(errors.values())))
                failed.clear()
            media = other or first

    def _patience_ms(self, copies: Copies) -> int:
        """How long a medium may take: half of the deadline if another one could take its place in the other half."""
        return self._deadline_ms // 2 if self._usable > copies.least else self._deadline_ms

    def _note(self, errors: Mapping[int, KvfsError]) -> None:
        """Leave those media out for a while; each is said in the log once, until it takes a record again."""
        until = trio.current_time() + AWAY_MS / 1000
        for index, error in errors.items():
            if index in self._store.without_room:
                continue  # known to be full
            self._away[index] = until
            if index not in self._failing:
                self._failing.add(index)
                log.warning("medium %d takes no records: %s", index, error)

"""Types of the stages of the data paths, and the decorators that count, time and type-check a stage.

    write   admit -> schedule -> digest -> seal -> place -> write -> commit
    read    admit -> schedule -> locate -> read -> open -> verify

A stage is a plain function of the path's context and one of these types, and returns the next type. No type derives
from another and each can be made only from the one before it, so a path that leaves a stage out or swaps two does not
pass mypy; at run time `@stage` refuses it as well (tests/kvfsd/datapath/test_pipeline.py tries every one of them).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from kvfs.errors import InternalError
from kvfs.queuepair import Buffer
from kvfsd.catalog.rows import BlockRow, Location
from kvfsd.crypto.sealing import Payload
from kvfsd.datapath.admission import Reservation
from kvfsd.datapath.recordwriter import Copies
from kvfsd.datapath.scheduler import Slot
from kvfsd.metrics import Metrics, StageMetrics
from kvfsd.ondisk.record import RecordIdentity
from kvfsd.ports import Clock, Ports


@dataclass(frozen=True, slots=True)
class Target:
    """Which block of which object a path is about, and on behalf of which attachment."""

    tenant: int
    attachment: int
    ino: int
    block: int

    def __str__(self) -> str:
        return f"tenant {self.tenant}, object {self.ino}, block {self.block}"


# --- write path ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """What a WriteBlock asks for; the payload is the host's until the command completes."""

    target: Target
    payload: Buffer
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Admitted:
    """The payload has a legal size and counts against its tenant's quota from here on."""

    target: Target
    payload: Buffer


@dataclass(frozen=True, slots=True)
class Scheduled:
    """It is this command's turn: it holds one of the slots for data commands."""

    admitted: Admitted
    slot: Slot


@dataclass(frozen=True, slots=True)
class Digested:
    """The inner checksum was taken."""

    target: Target
    payload: Payload


@dataclass(frozen=True, slots=True)
class Sealed:
    """The sealed record, a view of a pooled buffer; nobody needs the payload any more."""

    target: Target
    identity: RecordIdentity
    record: memoryview
    tag: bytes


@dataclass(frozen=True, slots=True)
class Placed:
    """The media that the record's replicas go to, best first; `copies` is what they were chosen by."""

    sealed: Sealed
    copies: Copies
    media: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """Every replica is on its medium."""

    sealed: Sealed
    locations: tuple[Location, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """The catalog has the staged row. `grown_bytes`: by how much the uncommitted blocks grew."""

    target: Target
    generation: int
    grown_bytes: int


# --- read path -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What a ReadBlock asks for.

    `staged`: what this attachment has not committed comes first. `fresh`: the object is this attachment's own and not
    published, so the catalog need not know it.
    """

    target: Target
    staged: bool
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class AdmittedRead:
    """The block is a possible one."""

    target: Target
    staged: bool
    fresh: bool


@dataclass(frozen=True, slots=True)
class ScheduledRead:
    """It is this command's turn."""

    admitted: AdmittedRead
    slot: Slot


@dataclass(frozen=True, slots=True)
class Attempt:
    """A scheduled read, and which replicas were tried in vain: `bad` ones failed a check, `away` ones did not answer.

    A bad replica is known by generation and place: the same record at another place is another replica.
    """

    scheduled: ScheduledRead
    bad: frozenset[tuple[int, Location]] = frozenset()
    away: frozenset[Location] = frozenset()
    reason: str = ""

    def choose(self, row: BlockRow) -> Location | None:
        """The replica to try next, away ones last; None if every one is bad."""
        good = self._good(row)
        return next((place for place in good if place not in self.away), good[0] if good else None)

    def exhausted(self, row: BlockRow) -> bool:
        """Every replica that is not bad is away."""
        return all(place in self.away for place in self._good(row))

    def without_bad(self, located: Located, reason: str) -> Attempt:
        """The replica failed a check."""
        return replace(self, bad=self.bad | {(located.row.generation, located.location)}, reason=reason)

    def without_away(self, located: Located) -> Attempt:
        """The replica's medium did not answer."""
        return replace(self, away=self.away | {located.location})

    def again(self) -> Attempt:
        """After a pause: what was away may be back."""
        return replace(self, away=frozenset())

    def _good(self, row: BlockRow) -> list[Location]:
        return [place for place in row.locations if (row.generation, place) not in self.bad]


@dataclass(frozen=True, slots=True)
class Located:
    """The row that the catalog has for the block now, and the place of the replica to try."""

    target: Target
    row: BlockRow
    location: Location


@dataclass(frozen=True, slots=True)
class Fetched:
    """The stored bytes of one replica; nothing of them is believed yet."""

    located: Located
    record: memoryview


@dataclass(frozen=True, slots=True)
class Opened:
    """Decrypted under the identity that was asked for; `checksum` is the inner one."""

    target: Target
    identity: RecordIdentity
    checksum: int
    unverified: memoryview


@dataclass(frozen=True, slots=True)
class Verified:
    """The block's plaintext, every check passed."""

    target: Target
    plaintext: memoryview


# --- stages --------------------------------------------------------------------------------------------


class PathContext(Protocol):
    """What every stage needs of its path."""

    @property
    def metrics(self) -> Metrics:
        """Where stages are counted."""
        ...

    @property
    def ports(self) -> Ports:
        """The injected clock, randomness and offload."""
        ...


ContextT = TypeVar("ContextT", bound=PathContext)
InT = TypeVar("InT")
OutT = TypeVar("OutT")
Stage = Callable[[ContextT, InT], OutT]
AsyncStage = Callable[[ContextT, InT], Awaitable[OutT]]


def _write_metrics(metrics: Metrics, name: str) -> StageMetrics:
    return metrics.write[name]


def _read_metrics(metrics: Metrics, name: str) -> StageMetrics:
    return metrics.read[name]


_PATHS = {"write": _write_metrics, "read": _read_metrics}


def _refuse(path: str, name: str, expected: type, given: object) -> InternalError:
    return InternalError(f"{path} path: stage {name} takes {expected.__name__}, was given {type(given).__name__}")


def _done(stage: StageMetrics, clock: Clock, start_ns: int) -> None:
    stage.histogram.observe(clock.monotonic_ns() - start_ns)


def stage(path: str, name: str, takes: type[InT]) -> Callable[[Stage[ContextT, InT, OutT]], Stage[ContextT, InT, OutT]]:
    """Make a function a stage: counted and timed as `name` of `path`, its input's type checked (InternalError)."""
    select = _PATHS[path]

    def decorate(function: Stage[ContextT, InT, OutT]) -> Stage[ContextT, InT, OutT]:
        def run(context: ContextT, given: InT) -> OutT:
            if type(given) is not takes:
                raise _refuse(path, name, takes, given)
            numbers, clock = select(context.metrics, name), context.ports.clock
            start_ns = clock.monotonic_ns()
            try:
                return function(context, given)
            except BaseException:
                numbers.errors += 1
                raise
            finally:
                _done(numbers, clock, start_ns)

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        return run

    return decorate


def async_stage(
    path: str, name: str, takes: type[InT]
) -> Callable[[AsyncStage[ContextT, InT, OutT]], AsyncStage[ContextT, InT, OutT]]:
    """As `stage`, for a stage that may wait."""
    select = _PATHS[path]

    def decorate(function: AsyncStage[ContextT, InT, OutT]) -> AsyncStage[ContextT, InT, OutT]:
        async def run(context: ContextT, given: InT) -> OutT:
            if type(given) is not takes:
                raise _refuse(path, name, takes, given)
            numbers, clock = select(context.metrics, name), context.ports.clock
            start_ns = clock.monotonic_ns()
            try:
                return await function(context, given)
            except BaseException:
                numbers.errors += 1
                raise
            finally:
                _done(numbers, clock, start_ns)

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        return run

    return decorate

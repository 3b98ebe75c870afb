"""A session: one attachment of one tenant. Takes requests, dispatches them by type, and answers with completions.

Every command that never waits runs to its end before another one starts, so a mutating command is atomic among all
sessions; those that move data overlap. A mutating command and its completion are one transaction: when it comes again
with the same identity, it gets the stored completion (docs/PROTOCOL.md, exactly once).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from kvfs import commands as c
from kvfs import limits
from kvfs.errors import FailsafeError, InternalError, KvfsError, ProtocolError, QuotaExceededError, Status
from kvfs.queuepair import Buffer
from kvfsd.catalog.rows import TenantRow
from kvfsd.datapath.reservations import Reservations
from kvfsd.eviction.policy import Need
from kvfsd.service import session_data, session_lookups, session_namespace
from kvfsd.service.completions import Completions
from kvfsd.service.events import EventQueue
from kvfsd.service.inflight import InFlight
from kvfsd.service.opens import OpenObjects
from kvfsd.service.session_data import Outcome
from kvfsd.service.validation import check_ino

if TYPE_CHECKING:
    from kvfsd.service.service import Service

log = logging.getLogger(__name__)

Answer = tuple[c.Completion, memoryview, Callable[[], None] | None]
_NO_PAYLOAD: Final = memoryview(b"")
_ONE_OBJECT: Final = Need(objects=1)
_MISS: Final = "no such name"
_OK: Final = int(Status.OK)
_NOT_FOUND: Final = int(Status.NOT_FOUND)

LOOKS: Final[dict[type, Callable[[Session, Any], c.Result | None]]] = {
    c.Lookup: session_lookups.lookup,
    c.GetAttributes: session_lookups.get_attributes,
    c.ReadDirectory: session_lookups.read_directory,
    c.ReadLink: session_lookups.read_link,
    c.GetXattr: session_lookups.get_xattr,
    c.ListXattrs: session_lookups.list_xattrs,
    c.StatFilesystem: session_lookups.stat_filesystem,
    c.OpenObject: session_lookups.open_object,
}
"""Commands that change nothing; they go on in failsafe."""

CHANGES: Final[dict[type, Callable[[Session, Any], c.Result]]] = {
    c.MakeNode: session_namespace.make_node,
    c.SetAttributes: session_namespace.set_attributes,
    c.SetXattr: session_namespace.set_xattr,
    c.RemoveXattr: session_namespace.remove_xattr,
    c.Unlink: session_namespace.unlink,
    c.RemoveDirectory: session_namespace.remove_directory,
    c.Rename: session_namespace.rename,
    c.Link: session_namespace.link,
    c.Commit: session_namespace.commit,
}
"""`kvfs.commands.MUTATING`: one transaction each, with the completion in it."""

FREES_SPACE: Final = frozenset({c.Unlink, c.RemoveDirectory})
"""Changes that must stay possible when the media are full."""

STEPS: Final[dict[type, Callable[[Session, Any], c.Result]]] = {
    c.AllocateIno: session_data.allocate_ino,
    c.Discard: session_data.discard,
    c.ReleaseUnlinked: session_data.release_unlinked,
    c.CloseObject: session_data.close_object,
}
"""Idempotent changes that never wait."""

TRANSFERS: Final[dict[type, Callable[[Session, Any, Buffer], Awaitable[Outcome]]]] = {
    c.ReadBlock: session_data.read_block,
    c.WriteBlock: session_data.write_block,
    c.Sync: session_data.sync,
}
"""Commands that wait for media."""


class Session:
    """One attachment; made by `Service.attach`. Handlers of commands (session_*.py) work with its attributes."""

    def __init__(self, service: Service, row: TenantRow, attachment: int, *, resumed: bool = False) -> None:
        self.service = service
        self.tenant = row.tenant
        self.root_ino = row.root_ino
        self.attachment = attachment
        self.catalog = service.catalog
        self.path = service.path
        self.metrics = service.metrics
        self.admission = service.admission
        self.accesses = service.accesses
        self.quarantine = service.quarantine
        self.names = service.pool.ring.names(row.tenant)
        self.reservations = Reservations(self.admission, self.catalog.inodes, row.tenant)
        self.next_ino = self.catalog.database.next_ino  # where AllocateIno takes its numbers
        self.opens = OpenObjects()
        self.events = EventQueue(self.metrics)
        self.closed = False
        self._completions = Completions(self.catalog.attachments, attachment, resumed=resumed)
        kinds = [*LOOKS, *CHANGES, *STEPS, *TRANSFERS]
        self._counts = {kind: self.metrics.command_counts(kind.__name__) for kind in kinds}
        self._after_commit: list[Callable[[], None]] = []
        self._in_flight = InFlight()

    # --- requests --------------------------------------------------------------------------------------

    async def execute(self, request: c.Request, payload: Buffer = b"") -> Answer:
        """Carry out one request -> completion, payload, and what gives the payload's buffer back.

        Raises nothing but cancellation: every error is a status (and InternalError when the service is told so).
        """
        command = request.command
        kind = type(command)
        try:
            look = LOOKS.get(kind)
            if look is not None:
                result = look(self, command)
                if result is None:
                    self._counts[kind][_NOT_FOUND] += 1
                    return c.Completion(request.cid, request.sequence, _NOT_FOUND, _MISS, None), _NO_PAYLOAD, None
                outcome = Outcome(result)
            else:
                outcome = await self._change(request, payload)
        except KvfsError as error:
            return self._failed(request, error)
        except Exception as error:
            return self._bug(request, error)
        self._counts[kind][_OK] += 1
        completion = c.Completion(request.cid, request.sequence, _OK, "", outcome.result)
        return completion, outcome.payload, outcome.release

    async def _change(self, request: c.Request, payload: Buffer) -> Outcome:
        command = request.command
        kind = type(command)
        if kind is not c.ReadBlock or self.closed:
            self._refuse_if_over()
        change = CHANGES.get(kind)
        if change is not None:
            if self.service.backpressure.holds():
                await self._wait_for_room(kind)
            return Outcome(self._once(request, change))
        step = STEPS.get(kind)
        if step is not None:
            return Outcome(step(self, command))
        transfer = TRANSFERS.get(kind)
        if transfer is None:
            raise ProtocolError(f"{kind.__name__} is no command")
        with self._in_flight:
            return await transfer(self, command, payload)

    def has_to_wait(self, kind: type) -> bool:
        """Whether a command that needs no media would wait all the same, if it were executed now."""
        return kind in CHANGES and self.service.backpressure.holds()

    async def _wait_for_room(self, kind: type) -> None:
        """Before a change: wait until the metadata log has caught up. Detaching ends the wait, with ProtocolError."""
        with self._in_flight:
            await self.service.backpressure.wait(
                kind in FREES_SPACE, lambda: self.closed or self.service.failsafe_reason != ""
            )
        self._refuse_if_over()

    def _refuse_if_over(self) -> None:
        if self.closed:
            raise ProtocolError(f"attachment {self.attachment} is detached")
        self.service.refuse_in_failsafe()

    def _once(self, request: c.Request, change: Callable[[Session, Any], c.Result]) -> c.Result:
        """Carry out a mutating command, or give the stored result of the one that it repeats."""
        stored = self._completions.find(request)
        if stored is not None:
            self.metrics.counters.replayed_completions += 1
            return stored
        while True:
            try:
                result = self._commit(request, change)
                break
            except QuotaExceededError as error:
                if not self.make_room(error, _ONE_OBJECT):
                    raise
        self._completions.committed(request)
        for call in self._after_commit:
            call()
        return result

    def _commit(self, request: c.Request, change: Callable[[Session, Any], c.Result]) -> c.Result:
        """Effect and completion in one transaction."""
        self._after_commit.clear()
        with self.catalog.transaction():
            result = change(self, request.command)
            self._completions.store(request, result)
        return result

    def _failed(self, request: c.Request, error: KvfsError) -> Answer:
        if isinstance(error, FailsafeError):
            self.service.enter_failsafe(str(error))
        elif isinstance(error, InternalError):
            return self._bug(request, error)
        self._counts[type(request.command)][error.status] += 1
        return c.Completion(request.cid, request.sequence, int(error.status), str(error), None), _NO_PAYLOAD, None

    def _bug(self, request: c.Request, error: Exception) -> Answer:
        name = type(request.command).__name__
        log.error("internal error in %s", name, exc_info=error)
        self.metrics.counters.internal_errors += 1
        if self.service.options.raise_internal_errors:
            raise error
        self.metrics.command_counts(name)[Status.INTERNAL] += 1
        completion = c.Completion(
            request.cid, request.sequence, int(Status.INTERNAL), f"internal error in {name}", None
        )
        return completion, _NO_PAYLOAD, None

    # --- for the handlers of commands --------------------------------------------------------------------

    def inward(self, ino: int) -> int:
        """A number of a command as the catalog knows it: 1 is the tenant's root. InvalidArgumentError."""
        if ino == c.ROOT_INO:
            return self.root_ino
        check_ino(ino)
        return ino

    def now_ns(self) -> int:
        """Wall time."""
        return self.path.ports.clock.wall_ns()

    def after_commit(self, call: Callable[[], None]) -> None:
        """Run `call` once the transaction of the command in hand is committed; not at all if it fails."""
        self._after_commit.append(call)

    def announce(self, event: c.Event) -> None:
        """Tell the other mounts of this tenant, once the transaction in hand is committed."""
        if isinstance(event, c.ObjectChanged) and event.ino == self.root_ino:
            event = c.ObjectChanged(c.ROOT_INO)
        if self.service.has_siblings(self):
            self._after_commit.append(lambda: self.service.tell(self.tenant, event, but=self))

    def make_room(self, error: KvfsError, asked: Need) -> bool:
        """There was no room for `asked`: free what may be freed -> whether it is worth trying again."""
        return self.service.room.make(self.tenant, error, asked)

    def has_open(self, ino: int) -> bool:
        """Whether this mount has the object open, or is writing it."""
        return ino in self.opens or ino in self.reservations

    # --- end -------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Detach: no new command; wait for those in flight, COMMAND_DEADLINE_MS at most; drop what is not committed."""
        if await self._end() and not self.service.failsafe_reason:
            self.catalog.attachments.recover(self.attachment)

    async def suspend(self) -> None:
        """As `aclose`, for an attachment that the next process goes on with: what is not committed stays."""
        await self._end()

    async def _end(self) -> bool:
        if self.closed:
            return False
        self.closed = True
        self.service.backpressure.wake()
        with trio.move_on_after(limits.COMMAND_DEADLINE_MS / 1000):
            await self._in_flight.idle()
        self.service.detached(self)
        self.reservations.close()
        return True

    def adopt(self) -> None:
        """Go on where a process that ended has left the attachment."""
        self._completions.adopt()
        attachments = self.catalog.attachments
        self.reservations.adopt(
            attachments.staged(self.attachment), lambda ino: attachments.owns_ino(self.attachment, ino)
        )

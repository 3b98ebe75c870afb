"""Commands that move data or concern what is being written. Idempotent by themselves: nothing is stored for replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from kvfs.commands import (
    AllocateIno,
    Block,
    CloseObject,
    Discard,
    Done,
    Ino,
    ReadBlock,
    ReleaseUnlinked,
    Result,
    Sync,
    WriteBlock,
)
from kvfs.errors import BadRecordError, MediumUnavailableError, PoolFullError, QuotaExceededError
from kvfs.queuepair import Buffer
from kvfsd.catalog.wholeness import LostBlocksError
from kvfsd.datapath import pipeline
from kvfsd.datapath.admission import Reservation
from kvfsd.datapath.stages import ReadRequest, Target, WriteRequest
from kvfsd.eviction.policy import Need
from kvfsd.service.validation import check_block, check_ino

if TYPE_CHECKING:
    from kvfsd.service.session import Session


POOL_FULL_ATTEMPTS: Final = 8
"""Times that room is made for one block of a full pool, each time more; then it is refused."""


class Outcome(NamedTuple):
    """A result with its payload; `release` gives the payload's buffer back."""

    result: Result
    payload: memoryview = memoryview(b"")
    release: Callable[[], None] | None = None


def allocate_ino(session: Session, _: AllocateIno) -> Ino:
    """AllocateIno: a number and a place in the quota of objects; nothing is written."""
    ino = session.next_ino()
    while True:
        try:
            session.reservations.allocate(ino)
        except QuotaExceededError as error:
            if not session.make_room(error, Need(objects=1)):
                raise
        else:
            return Ino(ino)


def discard(session: Session, command: Discard) -> Done:
    """Discard: drop staged blocks and what they reserved."""
    check_ino(command.ino)
    check_block(command.from_block)
    with session.catalog.transaction():
        freed_bytes = session.catalog.blocks.drop_staged(
            session.attachment, session.tenant, command.ino, command.from_block
        )
    session.reservations.discarded(command.ino, command.from_block, freed_bytes)
    return Done()


def release_unlinked(session: Session, command: ReleaseUnlinked) -> Done:
    """ReleaseUnlinked: free a nameless object, or one that was never published."""
    check_ino(command.ino)
    database, tenant, attachment = session.catalog, session.tenant, session.attachment
    with database.transaction():
        freed_bytes = database.blocks.drop_staged(attachment, tenant, command.ino, 0)
        database.inodes.release_unlinked(attachment, tenant, command.ino)
    session.reservations.released(command.ino, freed_bytes)
    session.accesses.forget(command.ino)
    return Done()


def close_object(session: Session, command: CloseObject) -> Done:
    """CloseObject: what lost its names while it was open is freed with its last close."""
    ino = session.inward(command.ino)
    if session.opens.close(ino, command.serial):
        with session.catalog.transaction():
            session.catalog.inodes.release_unlinked(session.attachment, session.tenant, ino)
    return Done()


async def write_block(session: Session, command: WriteBlock, payload: Buffer) -> Outcome:
    """WriteBlock: through the write path."""
    view = memoryview(payload).cast("B")
    check_ino(command.ino)
    reservation = await _reservation(session, command.ino)
    target = Target(session.tenant, session.attachment, command.ino, command.block)
    request = WriteRequest(target, view, reservation)
    try:
        await _write_with_room(session, request)
    finally:
        session.reservations.tidy(command.ino)
    return Outcome(Done())


async def _reservation(session: Session, ino: int) -> Reservation:
    """The object's reservation; one that had lapsed needs a place in the quota again."""
    while True:
        try:
            return session.reservations.for_write(ino)
        except QuotaExceededError as error:
            if not session.make_room(error, Need(objects=1)):
                raise
            await trio.lowlevel.checkpoint()


async def _write_with_room(session: Session, request: WriteRequest) -> None:
    """Write the block; while there is no room, make some and try again, a bounded number of times if the pool is full.

    At a quota there is no wait between making room and being admitted, so each round gets further.
    """
    attempts = 0
    while True:
        try:
            await pipeline.write_block(session.path, request)
        except PoolFullError as error:
            attempts += 1
            if attempts > POOL_FULL_ATTEMPTS or not session.make_room(error, Need(len(request.payload))):
                raise
        except QuotaExceededError as error:
            if not session.make_room(error, Need(len(request.payload))):
                raise
        else:
            return


async def read_block(session: Session, command: ReadBlock, _: Buffer) -> Outcome:
    """ReadBlock: through the read path; a fault is remembered, a record that is bad everywhere hides its object."""
    ino = command.ino
    target = Target(session.tenant, session.attachment, ino, command.block)
    request = ReadRequest(target, command.staged, fresh=session.reservations.is_fresh(ino))
    try:
        verified = await pipeline.read_block(session.path, request)
    except MediumUnavailableError:
        session.quarantine.note_fault(session.tenant, ino)
        raise
    except BadRecordError as error:
        if isinstance(error, LostBlocksError) or _is_committed(session, request):
            session.quarantine.note_fault(session.tenant, ino)
            session.service.hide(session.tenant, ino, str(error))
        raise
    if verified is None:
        return Outcome(Block(0))
    path = session.path
    return Outcome(
        Block(len(verified.plaintext)), verified.plaintext, lambda: pipeline.release_plaintext(path, verified)
    )


def _is_committed(session: Session, request: ReadRequest) -> bool:
    """Whether the block that was read is the published one: a bad uncommitted block is its writer's trouble alone."""
    target, blocks = request.target, session.catalog.blocks
    try:
        committed = blocks.locate(target.tenant, target.ino, target.block)
        if not request.staged or committed is None:
            return committed is not None
        return committed == blocks.locate_staged(target.attachment, target.tenant, target.ino, target.block)
    except BadRecordError:  # the row itself is damaged
        return not request.staged


async def sync(session: Session, _: Sync, __: Buffer) -> Outcome:
    """Sync: everything completed so far survives a power loss."""
    await session.service.sync()
    return Outcome(Done())

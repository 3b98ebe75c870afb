"""How long objects are kept, as commands say it: attributes of `kvfs.retention`, defaults of directories, state.

The attributes are stored like any other, sealed; what they say goes into the `flags` of the object's row in the same
transaction (`kvfsd.catalog.retention_flags`), where eviction reads it without a key.
"""

from __future__ import annotations

import logging
import stat
from typing import TYPE_CHECKING

from kvfs import retention
from kvfs.commands import Commit
from kvfs.errors import InvalidArgumentError, KvfsError, NoXattrError, PinShareError
from kvfsd.catalog import retention_flags as flags
from kvfsd.catalog.retention_flags import Settings
from kvfsd.catalog.rows import InodeRow
from kvfsd.service.sealedxattrs import read_xattr

if TYPE_CHECKING:
    from kvfsd.service.session import Session

log = logging.getLogger(__name__)

_PLACES = {retention.PIN: "pin", retention.PRIORITY: "priority", retention.TTL: "ttl_s"}


def apply(session: Session, ino: int, name: bytes, value: bytes | None) -> None:
    """An attribute with `kvfs.retention.PREFIX` is set, or removed (None): let it count, in the caller's transaction.

    Raises InvalidArgumentError (name, value, or an object that is neither file nor directory), NotPermittedError
    (the state), PinShareError.
    """
    number = None
    try:
        if value is None:
            retention.check_name(name)
        else:
            number = retention.parse_setting(name, value)
        row = session.catalog.inodes.get(session.tenant, ino)
        if not (stat.S_ISREG(row.mode) or stat.S_ISDIR(row.mode)):
            raise InvalidArgumentError(f"{name.decode()} is for files and directories")
    except KvfsError as error:
        log.warning("tenant %d: object %d: %s", session.tenant, ino, error)
        raise
    if stat.S_ISDIR(row.mode):
        session.after_commit(lambda: session.service.retention.forget(session.tenant))
        bits = flags.with_setting(row.flags, name, number, number or 0)
    else:
        if name == retention.PIN:
            _count_pin(session, row, pinned=bool(number))
        bits = flags.with_setting(row.flags, name, number, _now_s(session) + (number or 0))
    session.catalog.inodes.update(session.tenant, row._replace(flags=bits))


def _count_pin(session: Session, row: InodeRow, *, pinned: bool) -> None:
    if pinned and not row.flags & flags.PINNED:
        session.service.retention.pin(session.tenant, row.stored_bytes)
    elif not pinned:
        session.after_commit(lambda: session.service.retention.recount(session.tenant))


def of_new_object(session: Session, command: Commit, directory: int) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Flags of an object that a Commit names, and all its attributes: its own, then what the directories above it say.

    One pin too many is left out, counted and logged: a failed store is worse than a block that may go.
    """
    own, attributes = _own_settings(session, command)
    inherited = session.service.retention.defaults(session.tenant, directory)
    if own is None and inherited == Settings():
        return 0, attributes
    settings = (own or Settings()).under(inherited)
    if settings.pin and not _may_pin(session, command):
        settings = settings._replace(pin=None)
        attributes = [one for one in attributes if one[0] != retention.PIN]
    bits = 0
    told = {name for name, _ in attributes}
    for name, place in _PLACES.items():
        number = getattr(settings, place)
        if number is None:
            continue
        bits = flags.with_setting(bits, name, number, _now_s(session) + number)
        if name not in told:
            attributes.append((name, b"%d" % number))
    return bits, attributes


def of_rewritten_object(session: Session, ino: int) -> int | None:
    """Flags of an object whose content a Commit changes: its time to live begins anew. None: as they are."""
    row = session.catalog.inodes.find(session.tenant, ino)
    if row is None or not row.flags & flags.TTL_SET:
        return None
    try:
        ttl_s = retention.parse_setting(retention.TTL, read_xattr(session, ino, retention.TTL))
    except (NoXattrError, InvalidArgumentError) as error:
        log.warning("tenant %d: object %d: %s", session.tenant, ino, error)
        return None
    return flags.with_setting(row.flags, retention.TTL, ttl_s, _now_s(session) + ttl_s)


def _own_settings(session: Session, command: Commit) -> tuple[Settings | None, list[tuple[bytes, bytes]]]:
    own: Settings | None = None
    for name, value in command.xattrs:
        if name.startswith(retention.PREFIX):
            number = retention.parse_setting(name, value)
            own = (own or Settings())._replace(**{_PLACES[name]: number})
    return own, list(command.xattrs)


def _may_pin(session: Session, command: Commit) -> bool:
    staged = session.catalog.blocks.staged_of(session.attachment, session.tenant, command.ino)
    try:
        session.service.retention.pin(session.tenant, staged)
    except PinShareError as error:
        session.metrics.counters.pins_refused += 1
        log.warning("object %d is not pinned: %s", command.ino, error)
        return False
    return True


def state_of(session: Session, ino: int) -> bytes:
    """Value of `user.kvfs.state`; NotFoundError."""
    row = session.catalog.inodes.get(session.tenant, ino)
    words = {"directory"} if stat.S_ISDIR(row.mode) else {"sealed"}
    if row.flags & flags.PINNED:
        words.add("pinned")
    if row.flags >= flags.EXPIRES:
        words.add("expiring")
    if any(one.has_open(ino) for one in session.service.sessions_of(session.tenant)):
        words.add("open")
    return retention.state_text(words)


def is_expired(session: Session, row: InodeRow) -> bool:
    """Whether the object's time is over: it is a miss. It is removed at once, unless writes are refused."""
    if row.flags < flags.EXPIRES or not stat.S_ISREG(row.mode) or not flags.is_expired(row.flags, session.now_ns()):
        return False
    if not session.service.failsafe_reason:
        session.service.room.evictor.expire_objects(session.tenant, [row.ino])
    return True


def _now_s(session: Session) -> int:
    return session.now_ns() // 1_000_000_000

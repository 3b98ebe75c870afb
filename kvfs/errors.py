"""Domain errors of kvfs: one class per meaning, each with the status that crosses the queue pair.

Code below the FUSE room raises these and knows no errno; `kvfs/fuse/errno_map.py` is the one place
that turns a status into an errno (docs/ARCHITECTURE.md, errors).
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Status(enum.IntEnum):
    """Completion status on the queue pair. Numbers are part of the protocol: append, never renumber."""

    OK = 0
    NOT_FOUND = 1
    EXISTS = 2
    NOT_DIRECTORY = 3
    IS_DIRECTORY = 4
    NOT_EMPTY = 5
    NAME_TOO_LONG = 6
    PERMISSION_DENIED = 7
    NOT_PERMITTED = 8
    QUOTA_EXCEEDED = 9
    POOL_FULL = 10
    BAD_RECORD = 11
    MEDIUM_UNAVAILABLE = 12
    DEADLINE_EXCEEDED = 13
    POISONED = 14
    FAILSAFE = 15
    INVALID_ARGUMENT = 16
    FILE_TOO_LARGE = 17
    NO_XATTR = 18
    XATTR_TOO_LARGE = 19
    TOO_MANY_OPEN = 20
    NOT_SUPPORTED = 21
    TOO_MANY_LINKS = 22
    PROTOCOL = 23
    STALE = 24
    INTERNAL = 25


class KvfsError(Exception):
    """Base of every error that kvfs raises on purpose. `str(error)` names what is wrong and where."""

    status: ClassVar[Status] = Status.INTERNAL


class NotFoundError(KvfsError):
    """No such name, object or block: the normal miss."""

    status = Status.NOT_FOUND


class ExistsError(KvfsError):
    """The name is taken."""

    status = Status.EXISTS


class NotDirectoryError(KvfsError):
    """A directory was needed."""

    status = Status.NOT_DIRECTORY


class IsDirectoryError(KvfsError):
    """Anything but a directory was needed."""

    status = Status.IS_DIRECTORY


class NotEmptyError(KvfsError):
    """The directory still has entries."""

    status = Status.NOT_EMPTY


class NameTooLongError(KvfsError):
    """A name is over `limits.NAME_MAX_BYTES`, or a link target over `limits.SYMLINK_MAX_BYTES`."""

    status = Status.NAME_TOO_LONG


class PermissionDeniedError(KvfsError):
    """The tenant or caller may not do this (EACCES)."""

    status = Status.PERMISSION_DENIED


class NotPermittedError(KvfsError):
    """The operation is not permitted on this object (EPERM)."""

    status = Status.NOT_PERMITTED


class QuotaExceededError(KvfsError):
    """The tenant is at its quota of bytes or objects."""

    status = Status.QUOTA_EXCEEDED


class PoolFullError(KvfsError):
    """No medium of the pool has room."""

    status = Status.POOL_FULL


class BadRecordError(KvfsError):
    """A sealed record failed one of its checks and no good replica is left."""

    status = Status.BAD_RECORD


class MediumUnavailableError(KvfsError):
    """A medium did not answer within the deadline, or answered with an I/O error."""

    status = Status.MEDIUM_UNAVAILABLE


class DeadlineExceededError(KvfsError):
    """A command was not done by its deadline."""

    status = Status.DEADLINE_EXCEEDED


class PoisonedError(KvfsError):
    """The open file lost an acknowledged write, so it will never be published."""

    status = Status.POISONED


class FailsafeError(KvfsError):
    """The pool takes no writes because its catalog or a medium is damaged."""

    status = Status.FAILSAFE


class InvalidArgumentError(KvfsError):
    """An argument is outside its range or contradicts another."""

    status = Status.INVALID_ARGUMENT


class FileTooLargeError(KvfsError):
    """An offset or size is over `limits.FILE_MAX_BYTES`."""

    status = Status.FILE_TOO_LARGE


class NoXattrError(KvfsError):
    """The object has no extended attribute of that name."""

    status = Status.NO_XATTR


class XattrTooLargeError(KvfsError):
    """An extended attribute, or all of one object together, is over its limit."""

    status = Status.XATTR_TOO_LARGE


class TooManyOpenError(KvfsError):
    """The mount has `limits.OPEN_FILES_MAX` files open."""

    status = Status.TOO_MANY_OPEN


class NotSupportedError(KvfsError):
    """kvfs does not do this, on purpose; docs say so."""

    status = Status.NOT_SUPPORTED


class TooManyLinksError(KvfsError):
    """The object has `limits.LINKS_MAX` names."""

    status = Status.TOO_MANY_LINKS


class ProtocolError(KvfsError):
    """A frame, command or completion breaks the queue pair's protocol."""

    status = Status.PROTOCOL


class StaleError(KvfsError):
    """The object was replaced or removed under a handle."""

    status = Status.STALE


class InternalError(KvfsError):
    """A bug of ours; the daemon's log has the traceback."""

    status = Status.INTERNAL


class PinShareError(KvfsError):
    """One more pinned object is over the share of a quota that may be pinned; eviction makes no room for pins."""

    status = Status.QUOTA_EXCEEDED


class ConfigError(KvfsError):
    """A configuration, option or command line is wrong; the text says which part, and what to do."""

    status = Status.INVALID_ARGUMENT


class FormatError(KvfsError):
    """Bytes on a medium or in a key file are not what `docs/FORMAT.md` says; the text says where."""

    status = Status.BAD_RECORD


class WrongKeyError(KvfsError):
    """A key is missing, wrong, or does not belong to this pool."""

    status = Status.PERMISSION_DENIED


class PoolBusyError(KvfsError):
    """Another process has the pool open."""

    status = Status.NOT_PERMITTED


_BY_STATUS: dict[Status, type[KvfsError]] = {}
for _class in list(KvfsError.__subclasses__()):
    _BY_STATUS.setdefault(_class.status, _class)


def error_for(status: Status, detail: str) -> KvfsError:
    """The exception that a completion with `status` (not OK) stands for, carrying its `detail` text."""
    return _BY_STATUS.get(status, InternalError)(detail)

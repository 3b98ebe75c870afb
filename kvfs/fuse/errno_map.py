"""Status -> errno: the one table (docs/ERRORS.md shows it, a test compares the two)."""

from __future__ import annotations

import enum
import errno
from typing import Final

from kvfs.errors import Status


class Context(enum.IntEnum):
    """What the caller was doing; the value is the column of the table."""

    LOOKUP = 0
    """lookup, getattr, readlink, open: before the engine has committed to the file a fault is a miss."""
    READ = 1
    """read of an open file."""
    WRITE = 2
    """write, truncate, flush, fsync of an open file."""
    NAME = 3
    """Changes of names and attributes, listings, extended attributes, statfs."""


_E = errno
ERRNO: Final[dict[Status, tuple[int, int, int, int]]] = {
    # status                    LOOKUP           READ             WRITE            NAME
    Status.NOT_FOUND: (_E.ENOENT, _E.EIO, _E.EIO, _E.ENOENT),
    Status.EXISTS: (_E.EEXIST, _E.EIO, _E.EEXIST, _E.EEXIST),
    Status.NOT_DIRECTORY: (_E.ENOTDIR, _E.EIO, _E.ENOTDIR, _E.ENOTDIR),
    Status.IS_DIRECTORY: (_E.EISDIR, _E.EISDIR, _E.EISDIR, _E.EISDIR),
    Status.NOT_EMPTY: (_E.EIO, _E.EIO, _E.EIO, _E.ENOTEMPTY),
    Status.NAME_TOO_LONG: (_E.ENAMETOOLONG, _E.EIO, _E.ENAMETOOLONG, _E.ENAMETOOLONG),
    Status.PERMISSION_DENIED: (_E.EACCES, _E.EACCES, _E.EACCES, _E.EACCES),
    Status.NOT_PERMITTED: (_E.EPERM, _E.EPERM, _E.EPERM, _E.EPERM),
    Status.QUOTA_EXCEEDED: (_E.EDQUOT, _E.EIO, _E.EDQUOT, _E.EDQUOT),
    Status.POOL_FULL: (_E.ENOSPC, _E.EIO, _E.ENOSPC, _E.ENOSPC),
    Status.BAD_RECORD: (_E.ENOENT, _E.EIO, _E.EIO, _E.EIO),
    Status.MEDIUM_UNAVAILABLE: (_E.ENOENT, _E.EIO, _E.EIO, _E.EIO),
    Status.DEADLINE_EXCEEDED: (_E.ENOENT, _E.EIO, _E.EIO, _E.EIO),
    Status.POISONED: (_E.EIO, _E.EIO, _E.EIO, _E.EIO),
    Status.FAILSAFE: (_E.EROFS, _E.EIO, _E.EROFS, _E.EROFS),
    Status.INVALID_ARGUMENT: (_E.EINVAL, _E.EINVAL, _E.EINVAL, _E.EINVAL),
    Status.FILE_TOO_LARGE: (_E.EFBIG, _E.EFBIG, _E.EFBIG, _E.EFBIG),
    Status.NO_XATTR: (_E.EIO, _E.EIO, _E.EIO, _E.ENODATA),
    Status.XATTR_TOO_LARGE: (_E.E2BIG, _E.EIO, _E.E2BIG, _E.E2BIG),
    Status.TOO_MANY_OPEN: (_E.EMFILE, _E.EMFILE, _E.EMFILE, _E.EMFILE),
    Status.NOT_SUPPORTED: (_E.EOPNOTSUPP, _E.EOPNOTSUPP, _E.EOPNOTSUPP, _E.EOPNOTSUPP),
    Status.TOO_MANY_LINKS: (_E.EMLINK, _E.EIO, _E.EMLINK, _E.EMLINK),
    Status.PROTOCOL: (_E.EIO, _E.EIO, _E.EIO, _E.EIO),
    Status.STALE: (_E.ESTALE, _E.ESTALE, _E.ESTALE, _E.ESTALE),
    Status.INTERNAL: (_E.EIO, _E.EIO, _E.EIO, _E.EIO),
}
"""Never ENOSYS: the kernel would stop asking for the whole life of the mount."""


def errno_for(status: Status, context: Context) -> int:
    """The errno that the caller sees; EIO for a status this version does not know."""
    row = ERRNO.get(status)
    return errno.EIO if row is None else row[context]

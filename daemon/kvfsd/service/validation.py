"""Bounds of what a host may put into a command; the DPU half trusts no host (pure).

Numbers are checked before they reach the catalog (SQLite's integers have 64 bits), names before they are sealed.
"""

from __future__ import annotations

import stat
from typing import Final

from kvfs import limits
from kvfs.errors import FileTooLargeError, InvalidArgumentError, NameTooLongError, XattrTooLargeError

INTEGER_MAX: Final = (1 << 63) - 1
U32_MAX: Final = (1 << 32) - 1
BLOCKS_PER_FILE_MAX: Final = limits.FILE_MAX_BYTES // limits.BLOCK_BYTES
_RESERVED_NAMES: Final = (b".", b"..")
_NODE_TYPES: Final = (stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK)
XATTR_FLAGS_MAX: Final = 2


def check_name(name: bytes) -> None:
    """A directory entry's name: 1 .. NAME_MAX_BYTES bytes, no `/`, no NUL, not `.` or `..`."""
    if len(name) > limits.NAME_MAX_BYTES:
        raise NameTooLongError(f"name of {len(name)} bytes is over {limits.NAME_MAX_BYTES}")
    if not name or name in _RESERVED_NAMES or b"/" in name or b"\0" in name:
        raise InvalidArgumentError("a name is empty, `.` or `..`, or has a slash or NUL in it")


def check_ino(ino: int) -> None:
    """An object number that the catalog could have."""
    if not 0 < ino <= INTEGER_MAX:
        raise InvalidArgumentError(f"object number {ino} is not 1 .. 2^63-1")


def check_block(block: int) -> None:
    """A block number of a file that may exist."""
    if not 0 <= block < BLOCKS_PER_FILE_MAX:
        raise FileTooLargeError(f"block {block} is not 0 .. {BLOCKS_PER_FILE_MAX - 1}")


def check_size(size: int) -> None:
    """A file size in bytes."""
    if not 0 <= size <= limits.FILE_MAX_BYTES:
        raise FileTooLargeError(f"size {size} is not 0 .. {limits.FILE_MAX_BYTES}")


def check_owner(uid: int | None, gid: int | None) -> None:
    """User and group: 32 bits without sign, or None."""
    for what, number in (("uid", uid), ("gid", gid)):
        if number is not None and not 0 <= number <= U32_MAX:
            raise InvalidArgumentError(f"{what} {number} is not 0 .. 2^32-1")


def check_times(*times_ns: int | None) -> None:
    """Nanoseconds since the epoch: 64 bits with sign, or None."""
    for time_ns in times_ns:
        if time_ns is not None and not -INTEGER_MAX <= time_ns <= INTEGER_MAX:
            raise InvalidArgumentError(f"time of {time_ns} ns does not fit 64 bits")


def check_permissions(mode: int | None) -> None:
    """A mode whose permission bits are to be set, or None."""
    if mode is not None and not 0 <= mode <= U32_MAX:
        raise InvalidArgumentError(f"mode {mode} is not 0 .. 2^32-1")


def check_node(mode: int, target: bytes) -> None:
    """Mode and target of a MakeNode: a directory, link, fifo or socket, and a target for links alone."""
    check_permissions(mode)
    kind = stat.S_IFMT(mode)
    if kind not in _NODE_TYPES or mode >> 16:
        raise InvalidArgumentError(f"mode {mode:o} is no directory, symbolic link, fifo or socket")
    if len(target) > limits.SYMLINK_MAX_BYTES:
        raise NameTooLongError(f"link target of {len(target)} bytes is over {limits.SYMLINK_MAX_BYTES}")
    if (kind == stat.S_IFLNK) != bool(target) or b"\0" in target:
        raise InvalidArgumentError("a symbolic link has a target without NUL, nothing else has one")


def check_regular(mode: int) -> None:
    """Mode of a Commit: a regular file."""
    check_permissions(mode)
    if not stat.S_ISREG(mode) or mode >> 16:
        raise InvalidArgumentError(f"mode {mode:o} is no regular file")


def check_xattr(name: bytes, value: bytes = b"") -> None:
    """Name and value of an extended attribute."""
    if not name or b"\0" in name:
        raise InvalidArgumentError("an attribute's name is empty or has a NUL in it")
    if len(name) > limits.XATTR_NAME_MAX_BYTES:
        raise NameTooLongError(f"attribute name of {len(name)} bytes is over {limits.XATTR_NAME_MAX_BYTES}")
    if len(value) > limits.XATTR_VALUE_MAX_BYTES:
        raise XattrTooLargeError(f"attribute value of {len(value)} bytes is over {limits.XATTR_VALUE_MAX_BYTES}")


def check_flags(what: str, flags: int, largest: int) -> None:
    """Flags that are one of 0 .. `largest`."""
    if not 0 <= flags <= largest:
        raise InvalidArgumentError(f"{what}: unknown flags {flags:#x}")

"""Commands, completions and events: all that ever crosses the queue pair.

Everything here is a plain value: integers, bytes and other such values. Nothing carries a pointer, a
descriptor or an identity claim (the tenant is a property of the attachment, never of a command).
An `ino` is the number of an object (file, directory, link ...); it is unique in a pool for ever and never
reused. Ino 1 stands for "the root directory of my tenant" in every command; the daemon translates it.
Times are nanoseconds since the epoch, sizes are bytes, `mode` is st_mode with its type bits.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

ROOT_INO = 1

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class _Value(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of values inside commands and results."""


class _Command(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of commands; the class name is the tag on the wire."""


class _Result(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of results; the class name is the tag on the wire."""


class Attributes(_Value, frozen=True):
    """What stat shows of an object, and the `generation` of its data (changes with every commit)."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    stored_bytes: int
    """Plaintext bytes of all stored blocks; holes cost nothing. This is what the quota charges."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    generation: int


class DirectoryEntry(_Value, frozen=True):
    """One name of a directory listing; `cookie` resumes the listing after it (1 .. 2^62-1)."""

    name: bytes
    cookie: int
    attributes: Attributes


# --- lookups -------------------------------------------------------------------------------------------


class Lookup(_Command, frozen=True):
    """Find `name` in directory `parent` -> Attributes; NOT_FOUND is the normal miss."""

    parent: int
    name: bytes


class GetAttributes(_Command, frozen=True):
    """Attributes of `ino` -> Attributes."""

    ino: int


class ReadDirectory(_Command, frozen=True):
    """List `ino` after `cookie` (0 = from the start), at most `limit` entries -> DirectoryListing."""

    ino: int
    cookie: int
    limit: int


class ReadLink(_Command, frozen=True):
    """Target of the symbolic link `ino` -> Bytes."""

    ino: int


class GetXattr(_Command, frozen=True):
    """Value of one extended attribute -> Bytes; NO_XATTR if there is none."""

    ino: int
    name: bytes


class ListXattrs(_Command, frozen=True):
    """Names of all extended attributes -> Names."""

    ino: int


class StatFilesystem(_Command, frozen=True):
    """The tenant's quota and use -> FilesystemUsage."""


# --- namespace (mutating) ------------------------------------------------------------------------------


class AllocateIno(_Command, frozen=True):
    """Reserve a fresh object number for a file that is being created -> Ino.

    Nothing is visible or durable until its Commit. QUOTA_EXCEEDED if the tenant has no object left.
    """


class MakeNode(_Command, frozen=True):
    """Create a directory, symbolic link, fifo or socket (never a regular file) -> Attributes."""

    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    target: bytes


class SetAttributes(_Command, frozen=True):
    """Change attributes of a published object; None leaves one as it is -> Attributes. Never the size."""

    ino: int
    mode: int | None
    uid: int | None
    gid: int | None
    atime_ns: int | None
    mtime_ns: int | None
    ctime_ns: int


class SetXattr(_Command, frozen=True):
    """Set an extended attribute; `flags` as in setxattr(2): 1 = create only, 2 = replace only -> Done."""

    ino: int
    name: bytes
    value: bytes
    flags: int


class RemoveXattr(_Command, frozen=True):
    """Remove an extended attribute -> Done; NO_XATTR if there is none."""

    ino: int
    name: bytes


class Unlink(_Command, frozen=True):
    """Remove a name that is not a directory -> Removed.

    With `keep_open` the object outlives its last name until ReleaseUnlinked, because this mount has it open.
    """

    parent: int
    name: bytes
    keep_open: bool


class RemoveDirectory(_Command, frozen=True):
    """Remove an empty directory -> Removed."""

    parent: int
    name: bytes


class Rename(_Command, frozen=True):
    """rename(2) -> Removed (the replaced object, ino 0 if none). `flags`: RENAME_NOREPLACE, RENAME_EXCHANGE.

    `keep_open`: a replaced object is open in this mount, see Unlink.
    """

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int
    keep_open: bool


class Link(_Command, frozen=True):
    """Give a published object another name -> Attributes."""

    ino: int
    parent: int
    name: bytes


class ReleaseUnlinked(_Command, frozen=True):
    """The last handle on an unlinked object was closed: free it -> Done. Unknown inos are no error."""

    ino: int


# --- data ----------------------------------------------------------------------------------------------


class OpenObject(_Command, frozen=True):
    """`ino` is opened: note the access of a reader -> Attributes. NOT_FOUND if it was quarantined or removed.

    `serial` is the mount's number of its open inode; until CloseObject ends it the object is not evicted. 0: none.
    """

    ino: int
    serial: int = 0
    reading: bool = True


class CloseObject(_Command, frozen=True):
    """The mount has closed its open inode `serial` of `ino` -> Done. Unknown ones are no error."""

    ino: int
    serial: int


class ReadBlock(_Command, frozen=True):
    """Read block `block` of `ino` -> Block, with the plaintext as payload.

    With `staged`, what this mount wrote and has not committed comes first. A payload shorter than
    `BLOCK_BYTES` is followed by zeros up to the file's size; an empty one is a hole.
    BAD_RECORD, MEDIUM_UNAVAILABLE.
    """

    ino: int
    block: int
    staged: bool


class WriteBlock(_Command, frozen=True):
    """Seal the payload (1 .. BLOCK_BYTES bytes) as block `block` of `ino`, uncommitted -> Done.

    It replaces an earlier uncommitted version. QUOTA_EXCEEDED, POOL_FULL, MEDIUM_UNAVAILABLE.
    """

    ino: int
    block: int


class Placement(_Value, frozen=True):
    """The name under which a Commit publishes a new file."""

    parent: int
    name: bytes


class Commit(_Command, frozen=True):
    """Publish all uncommitted blocks of `ino`, its size and attributes in one transaction -> Attributes.

    `entry` names a new file (an existing name is replaced, `keep_open` as for Rename); None for a file that is
    published already. `base_limit_bytes`: bytes of the previously committed content that are still valid; the
    blocks from there on are dropped unless they are among the uncommitted ones. `xattrs` are set with it.
    """

    ino: int
    entry: Placement | None
    size: int
    base_limit_bytes: int
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    keep_open: bool
    serial: int = 0
    """The open inode it belongs to, as in OpenObject; it stays open."""


class Discard(_Command, frozen=True):
    """Forget the uncommitted blocks of `ino` from block `from_block` on -> Done."""

    ino: int
    from_block: int


class Sync(_Command, frozen=True):
    """Make everything completed so far survive a power loss -> Done."""


Command: TypeAlias = (
    Lookup
    | GetAttributes
    | ReadDirectory
    | ReadLink
    | GetXattr
    | ListXattrs
    | StatFilesystem
    | AllocateIno
    | MakeNode
    | SetAttributes
    | SetXattr
    | RemoveXattr
    | Unlink
    | RemoveDirectory
    | Rename
    | Link
    | ReleaseUnlinked
    | OpenObject
    | CloseObject
    | ReadBlock
    | WriteBlock
    | Commit
    | Discard
    | Sync
)

MUTATING: frozenset[type] = frozenset(
    {MakeNode, SetAttributes, SetXattr, RemoveXattr, Unlink, RemoveDirectory, Rename, Link, Commit}
)
"""Commands whose completion is stored together with their effect and replayed when they come again.

The others are idempotent by themselves: reads, WriteBlock (replaces), Discard, ReleaseUnlinked, CloseObject, Sync, and
AllocateIno, whose repetition costs a number.
"""

# --- results -------------------------------------------------------------------------------------------


class Found(_Result, frozen=True):
    """Attributes of the object the command was about."""

    attributes: Attributes


class DirectoryListing(_Result, frozen=True):
    """A batch of names; `end` when there are no more."""

    entries: tuple[DirectoryEntry, ...]
    end: bool


class Bytes(_Result, frozen=True):
    """A link target or an attribute's value."""

    value: bytes


class Names(_Result, frozen=True):
    """Names of extended attributes."""

    names: tuple[bytes, ...]


class Ino(_Result, frozen=True):
    """A reserved object number."""

    ino: int


class Removed(_Result, frozen=True):
    """The object that lost a name: its ino (0 = none) and the names it has left."""

    ino: int
    nlink: int


class Block(_Result, frozen=True):
    """A block's plaintext is the payload, `length` bytes of it; 0 = a hole."""

    length: int


class FilesystemUsage(_Result, frozen=True):
    """Quota and use of the tenant (0 quota = no bound of its own), and what the pool has left for it."""

    quota_bytes: int
    used_bytes: int
    quota_objects: int
    used_objects: int
    pool_free_bytes: int
    pool_bytes: int


class Done(_Result, frozen=True):
    """Nothing but success."""


Result: TypeAlias = Found | DirectoryListing | Bytes | Names | Ino | Removed | Block | FilesystemUsage | Done


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A command with its identity: `cid` is a slot below `QUEUE_DEPTH`, `sequence` grows with each new command.

    A command that is sent again keeps both. (attachment epoch, cid, sequence) is what makes it exactly-once.
    """

    cid: int
    sequence: int
    command: Command


class Completion(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to the request in slot `cid`: `status` (kvfs.errors.Status), its text, and the result if OK."""

    cid: int
    sequence: int
    status: int
    detail: str
    result: Result | None


# --- events (daemon to host) ---------------------------------------------------------------------------


class EntryGone(_Result, frozen=True):
    """The name is not there any more (evicted, quarantined, removed by another mount)."""

    parent: int
    name: bytes


class ObjectChanged(_Result, frozen=True):
    """Data or attributes of `ino` changed behind this mount's back: drop what is cached of it."""

    ino: int


Event: TypeAlias = EntryGone | ObjectChanged

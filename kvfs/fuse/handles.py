"""What is open in this mount: inodes with handles, the handles, and the names that are not committed yet.

Ordinary inodes are not kept: object numbers are never reused and the daemon finds any of them, so there are no
lookup counts either.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import trio

from kvfs.commands import Attributes, CloseObject, Command, DirectoryEntry, ReleaseUnlinked
from kvfs.errors import KvfsError, NotFoundError, StaleError, TooManyOpenError
from kvfs.limits import INODE_HINTS_MAX, OPEN_FILES_MAX
from kvfs.openfile import OpenFile


@dataclass(slots=True, eq=False)
class OpenInode:
    """An object with at least one handle (or an operation that acts like one)."""

    ino: int
    attributes: Attributes | None = None
    """As last reported; None = to be asked for."""
    outdated: Attributes | None = None
    """What they were before the object changed behind this mount's back: all that is left if it is gone."""
    file: OpenFile | None = None
    """Its staging, from the first write, truncation or creation on."""
    handles: int = 0
    cached_handles: int = 0
    """Handles that read through the kernel's page cache."""
    serial: int = 0
    """Its number in OpenObject and CloseObject: another one each time that the object is opened anew."""
    told: bool = False
    """The daemon was told that it is open."""
    unlinked: bool = False
    """The daemon keeps the object only because this mount has it open."""
    failed: OpenFile | None = None
    """The last staging of it that was poisoned."""
    shown_generation: int = -1
    """What was staged over this generation of the data was read through a handle."""

    def doubt(self) -> None:
        """The object changed behind this mount's back: its attributes are to be asked for again."""
        self.outdated = self.attributes or self.outdated
        self.attributes = None

    def last_commands(self) -> Iterator[Command]:
        """What the daemon is to be told when nobody has it open any more."""
        if self.told:
            yield CloseObject(ino=self.ino, serial=self.serial)
        if self.unlinked:
            yield ReleaseUnlinked(ino=self.ino)

    @property
    def staged(self) -> OpenFile | None:
        """Its staging, if that differs from what the daemon has."""
        file = self.file
        return file if file is not None and (file.dirty or file.poison is not None) else None


@dataclass(slots=True, eq=False)
class Handle:
    """One open file description."""

    inode: OpenInode
    flags: int
    direct: bool
    """It was opened with direct_io: the kernel caches nothing for it."""
    generation: int = 0
    """Generation of the data that the kernel may cache through this handle; 0 = none."""
    next_offset: int = 0
    """Where a sequential reader reads next."""
    lost: OpenFile | None = None
    """The staging that was poisoned while this was open: flush, fsync and writes say so."""
    torn: bool = False
    """It may have shown bytes that will never be published, so that reads say so too."""

    @property
    def writable(self) -> bool:
        """It was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


@dataclass(slots=True, eq=False)
class DirectoryHandle:
    """One open directory: what was pending when the listing began, and the batch being read."""

    ino: int
    pending: list[tuple[bytes, OpenFile]] = field(default_factory=list)
    listed_pending: set[bytes] = field(default_factory=set)
    """Names that were listed as pending: the daemon's listing may have them by now, and must not repeat them."""
    batch: tuple[DirectoryEntry, ...] = ()
    batch_start: int = -1
    """Cookie after which `batch` begins; -1 = none."""
    batch_position: int = 0
    batch_end: bool = False
    batch_sequence: int = 0
    """Number of changes (ChangeLog) that the batch has seen."""

    def begin(self, pending: list[tuple[bytes, OpenFile]]) -> None:
        """The listing begins (again): forget what was read, see the names of now."""
        self.pending = pending
        self.listed_pending.clear()
        self.batch, self.batch_start, self.batch_position, self.batch_end = (), -1, 0, False


class OpenTable:
    """Handles by number, open inodes by object number; at most OPEN_FILES_MAX handles."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle | DirectoryHandle] = {}
        self._next_handle = 1
        self._inodes: dict[int, OpenInode] = {}
        self._serials = itertools.count(1)
        self._removals: dict[int, trio.Event] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def get(self, ino: int) -> OpenInode | None:
        """The inode, if it is open."""
        return self._inodes.get(ino)

    def inodes(self) -> Iterator[OpenInode]:
        """All open inodes."""
        return iter(list(self._inodes.values()))

    def staged(self, ino: int) -> OpenFile | None:
        """The staging of `ino`, if it is open and differs from what the daemon has."""
        inode = self._inodes.get(ino)
        return None if inode is None else inode.staged

    def handles_of(self, inode: OpenInode) -> Iterator[Handle]:
        """All its handles; slow, for what is rare."""
        return (held for held in self._handles.values() if isinstance(held, Handle) and held.inode is inode)

    async def acquire(self, ino: int) -> OpenInode:
        """The open inode with one handle more; waits for a removal of the object that is under way."""
        while (removal := self._removals.get(ino)) is not None:
            await removal.wait()
        return self.acquire_now(ino)

    def acquire_now(self, ino: int) -> OpenInode:
        """As `acquire`, for an object that nobody can be removing."""
        inode = self._inodes.get(ino)
        if inode is None:
            inode = self._inodes[ino] = OpenInode(ino, serial=next(self._serials))
        inode.handles += 1
        return inode

    def forget(self, inode: OpenInode) -> None:
        """The last handle of `inode` is gone."""
        assert inode.handles == 0
        del self._inodes[inode.ino]

    def begin_removal(self, ino: int) -> bool:
        """The object is about to lose a name -> whether it is open. Opens wait until `end_removal`."""
        self._removals.setdefault(ino, trio.Event())
        return ino in self._inodes

    def end_removal(self, ino: int) -> None:
        """The removal is decided."""
        removal = self._removals.pop(ino, None)
        if removal is not None:
            removal.set()

    def check_room(self) -> None:
        """Raise TooManyOpenError if no handle can be added."""
        if len(self._handles) >= OPEN_FILES_MAX:
            raise TooManyOpenError(f"{OPEN_FILES_MAX} files are open in this mount")

    def add(self, handle: Handle | DirectoryHandle) -> int:
        """Number a handle. Raises TooManyOpenError."""
        self.check_room()
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        return number

    def handle(self, number: int) -> Handle:
        """The file handle with this number."""
        handle = self._handles.get(number)
        if not isinstance(handle, Handle):
            raise StaleError(f"no open file has handle {number}")
        return handle

    def directory(self, number: int) -> DirectoryHandle:
        """The directory handle with this number."""
        handle = self._handles.get(number)
        if not isinstance(handle, DirectoryHandle):
            raise StaleError(f"no open directory has handle {number}")
        return handle

    def remove(self, number: int) -> Handle | DirectoryHandle:
        """Take a handle out."""
        handle = self._handles.pop(number, None)
        if handle is None:
            raise StaleError(f"handle {number} is not open")
        return handle


class ChangeLog:
    """Which objects this mount changed lately, so that a batch of a listing that is older than that is not served.

    The kernel believes the names and attributes of a listing for an hour. Bounded: what is forgotten counts as changed.
    """

    def __init__(self, max_inodes: int = INODE_HINTS_MAX) -> None:
        self._max_inodes = max_inodes
        self._changed: OrderedDict[int, int] = OrderedDict()
        self._forgotten = 0
        self.sequence = 0

    def note(self, *inos: int) -> None:
        """Attributes of these objects, or the names in these directories, have changed."""
        self.sequence += 1
        for ino in inos:
            self._changed[ino] = self.sequence
            self._changed.move_to_end(ino)
        while len(self._changed) > self._max_inodes:
            self._forgotten = self._changed.popitem(last=False)[1]

    def note_all(self) -> None:
        """Anything may have changed."""
        self.sequence += 1
        self._changed.clear()
        self._forgotten = self.sequence

    def changed_since(self, ino: int, sequence: int) -> bool:
        """`ino` changed, or may have, after `sequence` changes."""
        return self._changed.get(ino, self._forgotten) > sequence


class RemovedDirectories:
    """Last attributes of directories that were removed here: somebody may still have one open, or be in it."""

    MAX = 1024

    def __init__(self) -> None:
        self._attributes: OrderedDict[int, Attributes] = OrderedDict()

    def add(self, attributes: Attributes) -> None:
        """The directory lost its name."""
        self._attributes[attributes.ino] = msgspec.structs.replace(attributes, nlink=0)
        if len(self._attributes) > self.MAX:
            self._attributes.popitem(last=False)

    def get(self, ino: int) -> Attributes | None:
        """What stat shows of it."""
        return self._attributes.get(ino)


class AskedAnew:
    """Threads whose open or stat was answered with ESTALE.

    The kernel had the name from its cache; on ESTALE it asks for it anew and tries once more. A second ESTALE would
    reach the thread, to which a name that is gone is ENOENT.
    """

    MAX = 4096

    def __init__(self) -> None:
        self._threads: set[int] = set()

    def refusal(self, thread: int, ino: int) -> KvfsError:
        """What to raise when a thread asks for an object that is gone."""
        if thread in self._threads:
            self._threads.discard(thread)
            return NotFoundError(f"object {ino} is gone, and so was the one that had its name before")
        if len(self._threads) >= self.MAX:  # of threads that died in between, mostly
            self._threads.clear()
        self._threads.add(thread)
        return StaleError(f"object {ino} is gone")

    def end(self, thread: int) -> None:
        """The thread has an answer: a handle, or that there is no such name."""
        if self._threads:
            self._threads.discard(thread)


@dataclass(slots=True)
class _Hint:
    generation: int
    confirmed: bool = False
    """The kernel has dropped what it had of older generations."""
    served_bytes: int = 0


@dataclass(slots=True)
class CacheHints:
    """What the kernel's page cache holds of recently opened files; bounded, and forgetting only costs a re-read."""

    max_inodes: int = INODE_HINTS_MAX
    _hints: OrderedDict[int, _Hint] = field(default_factory=OrderedDict)

    def note_open(self, ino: int, generation: int) -> bool:
        """A file is opened -> whether what the kernel has cached of it is of this generation.

        The first opens of a generation make the kernel drop older data. It does so after our reply, at its own pace,
        so later opens may keep what is cached only when a read or release of one of those has come (`note_served`).
        """
        hint = self._hints.get(ino)
        if hint is not None and hint.generation == generation:
            self._hints.move_to_end(ino)
            return hint.confirmed
        self._hints[ino] = _Hint(generation)
        self._hints.move_to_end(ino)
        if len(self._hints) > self.max_inodes:
            self._hints.popitem(last=False)
        return False

    def note_served(self, ino: int, generation: int, count: int) -> None:
        """A handle that was opened for `generation` read `count` bytes into the page cache, or was released (0)."""
        hint = self._hints.get(ino)
        if hint is not None and hint.generation == generation:
            hint.confirmed = True
            hint.served_bytes += count

    def is_served(self, ino: int, generation: int, size: int) -> bool:
        """As many bytes as the file has went into the page cache: the kernel most likely has it all."""
        hint = self._hints.get(ino)
        return hint is not None and hint.generation == generation and hint.served_bytes >= size

    def forget(self, ino: int) -> None:
        """The kernel's pages of `ino` are of no known generation."""
        self._hints.pop(ino, None)

    def clear(self) -> None:
        """Forget everything."""
        self._hints.clear()

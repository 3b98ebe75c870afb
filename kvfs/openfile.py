"""What is known of a file that is being written: its size and attributes, its dirty blocks, what was sent of it.

State and arithmetic only: nothing here submits a command. `kvfs.staging` does, under the rules of docs/CONCURRENCY.md.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from kvfs.commands import Attributes, Commit, Placement, SetAttributes
from kvfs.errors import KvfsError, error_for
from kvfs.limits import BLOCK_BYTES

_ZEROS = memoryview(bytes(BLOCK_BYTES))


class BlockState(enum.Enum):
    """Who may touch a block's memory."""

    OPEN = enum.auto()
    """Anybody, between two checkpoints."""
    LOADING = enum.auto()
    """One task fetches the older content under it; the others wait for `settled`."""
    SENDING = enum.auto()
    """The content is being sealed and must not change; when it is `settled` the block is gone from the file."""


@dataclass(slots=True, eq=False)
class BlockBuffer:
    """One dirty block.

    `memory[:length]` is its content. `base_bytes`: older content counts up to there; what lies between `length` and
    `base_bytes` has not been loaded yet, so that a block which is overwritten from front to back is never read.
    """

    file: OpenFile
    index: int
    memory: memoryview
    slot: int | None = None
    length: int = 0
    base_bytes: int = 0
    written_bytes: int = 0
    state: BlockState = BlockState.OPEN
    settled: trio.Event | None = None

    @property
    def needs_base(self) -> bool:
        """Content between `length` and `base_bytes` is still to be loaded."""
        return self.base_bytes > self.length

    @property
    def is_full(self) -> bool:
        """Every byte was written (or as many bytes as there are): worth sending now."""
        return self.length == BLOCK_BYTES and self.written_bytes >= BLOCK_BYTES

    def begin(self, state: BlockState) -> None:
        """Leave OPEN; one task owns the block until `end`."""
        assert self.state is BlockState.OPEN
        self.state = state
        self.settled = trio.Event()

    def end(self) -> None:
        """Back to OPEN; wakes who waits."""
        self.state = BlockState.OPEN
        if self.settled is not None:
            self.settled.set()
            self.settled = None

    async def wait_settled(self) -> None:
        """Return once no task owns the block; the caller then looks it up again."""
        if self.settled is not None:
            await self.settled.wait()

    def put(self, start: int, piece: memoryview) -> None:
        """Write `piece` at `start`. A gap before it is a hole; the caller has loaded older content that lies there."""
        stop = start + len(piece)
        if start > self.length:
            self.memory[self.length : start] = _ZEROS[: start - self.length]
        self.memory[start:stop] = piece
        self.length = max(self.length, stop)
        self.written_bytes += len(piece)

    def merge_base(self, base: memoryview) -> None:
        """Put older content under what was written."""
        stop = min(len(base), self.base_bytes)
        if stop > self.length:
            self.memory[self.length : stop] = base[self.length : stop]
            self.length = stop
        self.base_bytes = 0

    def cut(self, length: int) -> None:
        """Forget everything from `length` on."""
        self.length = min(self.length, length)
        self.base_bytes = min(self.base_bytes, length)


@dataclass(slots=True, eq=False)
class OpenFile:
    """A file that is being written in this mount; all its handles share it."""

    committed: Attributes
    """As the daemon last reported it; for a new file: what it will be, with size 0."""
    entry: Placement | None = None
    """The name that the first commit publishes; None = published already, or unlinked before that."""
    published: bool = True
    unlinked: bool = False
    """No name is left: nothing of it will be committed."""
    serial: int = 0
    """The mount's number of the open inode it belongs to (`kvfs.commands.OpenObject`); 0 = nobody has it open."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    """Extended attributes of a file that is not published yet."""

    size: int = field(init=False)
    mode: int = field(init=False)
    uid: int = field(init=False)
    gid: int = field(init=False)
    atime_ns: int = field(init=False)
    mtime_ns: int = field(init=False)
    ctime_ns: int = field(init=False)
    base_limit_bytes: int = field(init=False)
    """Bytes of the committed content that still count."""
    changed: bool = False
    """Size or attributes differ from what is committed."""
    blocks: dict[int, BlockBuffer] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)
    """Blocks that the daemon holds uncommitted -> their length."""
    poison: KvfsError | None = None
    """Why this file will never be published; set once, never cleared."""
    on_poison: Callable[[OpenFile], None] | None = None
    """Called once, at the moment the file is poisoned; must not wait."""
    replaces_open: bool = False
    """The object whose name the first commit takes is open in this mount."""
    told: bool = False
    """A close has reported the poison."""
    discarded: bool = False
    """The daemon has forgotten what was sent before the poison."""
    commit_lock: trio.Lock = field(default_factory=trio.Lock)
    """Held by whoever commits, truncates, names or discards the file."""
    _sends: int = 0
    _gate_closed: bool = False
    _gate: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def __post_init__(self) -> None:
        self.adopt(self.committed)
        self.changed = not self.published

    @property
    def ino(self) -> int:
        """The object's number."""
        return self.committed.ino

    @property
    def dirty(self) -> bool:
        """Something is not committed."""
        return self.changed or bool(self.blocks) or bool(self.sent)

    # --- attributes ------------------------------------------------------------------------------------

    def adopt(self, attributes: Attributes) -> None:
        """Nothing is staged: the file is as the daemon reports it."""
        self.committed = attributes
        self.size = self.base_limit_bytes = attributes.size
        self.mode, self.uid, self.gid = attributes.mode, attributes.uid, attributes.gid
        self.atime_ns, self.mtime_ns, self.ctime_ns = attributes.atime_ns, attributes.mtime_ns, attributes.ctime_ns

    def change(self, command: SetAttributes) -> None:
        """Take over what `command` sets."""
        self.mode = self.mode if command.mode is None else stat.S_IFMT(self.mode) | stat.S_IMODE(command.mode)
        self.uid = self.uid if command.uid is None else command.uid
        self.gid = self.gid if command.gid is None else command.gid
        self.atime_ns = self.atime_ns if command.atime_ns is None else command.atime_ns
        self.mtime_ns = self.mtime_ns if command.mtime_ns is None else command.mtime_ns
        self.ctime_ns = command.ctime_ns

    def attributes(self) -> Attributes:
        """What stat shows in this mount. The stored bytes are an upper estimate until the commit."""
        committed = self.committed
        return Attributes(
            ino=committed.ino,
            mode=self.mode,
            nlink=0 if self.unlinked else committed.nlink,
            uid=self.uid,
            gid=self.gid,
            rdev=committed.rdev,
            size=self.size,
            stored_bytes=self._stored_bytes(),
            atime_ns=self.atime_ns,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
            generation=committed.generation,
        )

    def _stored_bytes(self) -> int:
        if not self.blocks and not self.sent:
            return min(self.committed.stored_bytes, self.base_limit_bytes)
        new = sum(self.sent.values()) + sum(block.length for block in self.blocks.values())
        return min(self.size, min(self.committed.stored_bytes, self.base_limit_bytes) + new)

    def note_write(self, now_ns: int) -> None:
        """The content changed now."""
        self.mtime_ns = self.ctime_ns = now_ns
        self.changed = True

    # --- poison ----------------------------------------------------------------------------------------

    def poison_with(self, cause: KvfsError) -> None:
        """An acknowledged write is lost or a write failed: the first cause stays."""
        if self.poison is None:
            self.poison = error_for(cause.status, str(cause))  # without the traceback, which holds the writer's buffers
            if self.on_poison is not None:
                self.on_poison(self)

    def check_poison(self) -> None:
        """Raise the cause again if the file is poisoned."""
        if self.poison is not None:
            raise error_for(self.poison.status, f"file lost a write: {self.poison}") from self.poison

    # --- older content ---------------------------------------------------------------------------------

    def base_bytes(self, index: int) -> int:
        """How much of block `index`, as the daemon holds it for this mount, counts."""
        sent = self.sent.get(index)
        if sent is not None:
            return sent
        return max(0, min(self.base_limit_bytes - index * BLOCK_BYTES, BLOCK_BYTES))

    def cut_sent(self, from_block: int) -> bool:
        """Forget blocks sent from `from_block` on -> whether there were any (they must be discarded)."""
        dropped = [index for index in self.sent if index >= from_block]
        for index in dropped:
            del self.sent[index]
        return bool(dropped)

    def buffers_from(self, from_block: int) -> Iterable[BlockBuffer]:
        """Dirty blocks from `from_block` on."""
        return [block for index, block in self.blocks.items() if index >= from_block]

    # --- the gate: no WriteBlock overlaps a Commit or Discard of the same file ---------------------------

    async def enter_gate(self) -> None:
        """Wait until the gate is open, then count as a send in progress; without a checkpoint if it is open."""
        while self._gate_closed:
            await self._gate.park()
        self._sends += 1

    def leave_gate(self) -> None:
        """The send is over."""
        self._sends -= 1
        if not self._sends and self._gate:
            self._gate.unpark_all()

    async def close_gate(self) -> None:
        """Let no send begin and wait for those in progress. The caller holds `commit_lock`."""
        self._gate_closed = True
        try:
            while self._sends:
                await self._gate.park()
        except BaseException:
            self.open_gate()
            raise

    def open_gate(self) -> None:
        """Let sends go on."""
        self._gate_closed = False
        self._gate.unpark_all()

    # --- commit ----------------------------------------------------------------------------------------

    def commit_command(self) -> Commit:
        """The Commit for the state of now. From here on, what changes belongs to the next one."""
        self.changed = False
        return Commit(
            ino=self.ino,
            entry=self.entry,
            size=self.size,
            base_limit_bytes=self.base_limit_bytes,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            atime_ns=self.atime_ns,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
            xattrs=tuple(self.xattrs.items()),
            keep_open=self.replaces_open,
            serial=self.serial,
        )

    def note_commit(self, command: Commit, attributes: Attributes) -> None:
        """`command` took effect: what was sent is the base now."""
        self.committed = attributes
        self.entry = None
        self.published = True
        self.base_limit_bytes = command.size
        self.sent.clear()
        self.xattrs.clear()

"""A DPU half in memory for tests of the host half: the QueuePair contract over dicts, with failures on demand."""

# ruff: noqa: N802  handlers are called as their commands

from __future__ import annotations

import itertools
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from kvfs import commands as c
from kvfs import errors as e
from kvfs.limits import BLOCK_BYTES, NAME_MAX_BYTES, XATTRS_PER_OBJECT_MAX_BYTES
from kvfs.queuepair import Buffer, QueuePair, Reply


@dataclass
class Node:
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int = 1
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    generation: int = 0
    target: bytes = b""
    blocks: dict[int, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    entries: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """name -> (ino, cookie)"""

    def attributes(self) -> c.Attributes:
        return c.Attributes(
            ino=self.ino,
            mode=self.mode,
            nlink=self.nlink,
            uid=self.uid,
            gid=self.gid,
            rdev=0,
            size=self.size,
            stored_bytes=sum(map(len, self.blocks.values())),
            atime_ns=self.atime_ns,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
            generation=self.generation,
        )


@dataclass
class Fault:
    """Raise `error` for the calls of a command from the `nth` on, `times` of them."""

    error: Exception
    nth: int = 1
    times: int = 1
    seen: int = 0

    def hit(self) -> bool:
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


class _Objects:
    """The objects, and the controls of a test over them."""

    def __init__(self, *, quota_bytes: int = 0, data_delay_s: float = 0.0) -> None:
        now = time.time_ns()
        self.nodes: dict[int, Node] = {
            1: Node(1, stat.S_IFDIR | 0o777, 0, 0, nlink=2, atime_ns=now, mtime_ns=now, ctime_ns=now)
        }
        self.staged: dict[int, dict[int, bytes]] = defaultdict(dict)
        self.allocated: set[int] = set()
        self.kept_open: set[int] = set()
        self.calls: Counter[str] = Counter()
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.holds: dict[str, trio.Event] = {}
        self.quota_bytes = quota_bytes
        self.bad: set[int] = set()
        """Objects that are hidden, without an event, by the first read of theirs."""
        self.data_delay_s = data_delay_s
        self.released = 0
        self.busy: Counter[int] = Counter()
        self.exclusive: set[int] = set()
        self._inos = itertools.count(2)
        self._generations = itertools.count(1)
        self._cookies = itertools.count(1)
        self._events: list[c.Event] = []
        self._event = trio.Event()

    def fail(self, command: str, error: Exception, nth: int = 1, times: int = 1) -> None:
        self.faults[command].append(Fault(error, nth, times))

    def clear_faults(self) -> None:
        self.faults.clear()

    def emit(self, *events: c.Event) -> None:
        self._events.extend(events)
        self._event.set()

    def at(self, path: str) -> Node:
        node = self.nodes[1]
        for part in path.split("/"):
            node = self.nodes[node.entries[part.encode()][0]]
        return node

    def content(self, path: str) -> bytes:
        node = self.at(path)
        out = bytearray(node.size)
        for index, data in node.blocks.items():
            start = index * BLOCK_BYTES
            out[start : start + len(data)] = data[: max(0, node.size - start)]
        return bytes(out)

    def _node(self, ino: int) -> Node:
        if ino not in self.nodes:
            raise e.NotFoundError(f"object {ino}")
        return self.nodes[ino]

    def _directory(self, ino: int) -> Node:
        node = self._node(ino)
        if not stat.S_ISDIR(node.mode):
            raise e.NotDirectoryError(f"object {ino}")
        return node

    def _entry(self, parent: int, name: bytes) -> Node:
        directory = self._directory(parent)
        if len(name) > NAME_MAX_BYTES:
            raise e.NameTooLongError("name")
        if name not in directory.entries:
            raise e.NotFoundError("name")
        return self.nodes[directory.entries[name][0]]

    def _touch(self, node: Node) -> None:
        node.mtime_ns = node.ctime_ns = time.time_ns()

    def _drop_name(self, directory: Node, name: bytes, keep_open: bool) -> c.Removed:
        node = self.nodes[directory.entries.pop(name)[0]]
        self._touch(directory)
        node.nlink = 0 if stat.S_ISDIR(node.mode) else node.nlink - 1
        node.ctime_ns = time.time_ns()
        if not node.nlink:
            if keep_open:
                self.kept_open.add(node.ino)
            else:
                del self.nodes[node.ino]
        return c.Removed(ino=node.ino, nlink=node.nlink)


class _DataCommands(_Objects):
    """Blocks and commits."""

    async def _write_block(self, command: c.WriteBlock, payload: Buffer) -> Reply:
        assert 1 <= len(payload) <= BLOCK_BYTES
        assert command.ino in self.nodes or command.ino in self.allocated
        assert command.ino not in self.exclusive, "a WriteBlock overlaps a Commit or Discard"
        self.busy[command.ino] += 1
        before = bytes(payload)
        try:
            await trio.sleep(self.data_delay_s)
        finally:
            self.busy[command.ino] -= 1
        assert bytes(payload) == before, "the payload changed while it was being sealed"
        used = sum(n.attributes().stored_bytes for n in self.nodes.values())
        used += sum(len(b) for blocks in self.staged.values() for b in blocks.values())
        if self.quota_bytes and used + len(payload) > self.quota_bytes:
            raise e.QuotaExceededError(f"{used} of {self.quota_bytes} bytes used")
        self.staged[command.ino][command.block] = before
        return Reply(c.Done())

    async def _read_block(self, command: c.ReadBlock) -> Reply:
        await trio.sleep(self.data_delay_s)
        if command.ino in self.bad:
            for directory in self.nodes.values():
                for name in [name for name, (ino, _) in directory.entries.items() if ino == command.ino]:
                    del directory.entries[name]
            self.nodes.pop(command.ino, None)
            raise e.BadRecordError(f"object {command.ino}")
        data = self.staged[command.ino].get(command.block) if command.staged else None
        if data is None:
            if command.ino not in self.nodes and command.ino not in self.allocated:
                raise e.NotFoundError(f"object {command.ino}")
            node = self.nodes.get(command.ino)
            data = node.blocks.get(command.block, b"") if node else b""
        buffer = bytearray(BLOCK_BYTES)
        buffer[: len(data)] = data

        def release() -> None:
            self.released += 1
            buffer[:] = b"\xee" * BLOCK_BYTES  # whoever still reads sees garbage

        return Reply(c.Block(length=len(data)), memoryview(buffer)[: len(data)], release)

    def _Commit(self, command: c.Commit) -> c.Result:
        node = self.nodes.get(command.ino)
        if command.entry is not None:
            directory = self._directory(command.entry.parent)
            assert node is None or node.nlink == 0
            old = directory.entries.get(command.entry.name)
            if old is not None:
                self._drop_name(directory, command.entry.name, command.keep_open)
            node = self.nodes[command.ino] = Node(command.ino, command.mode, command.uid, command.gid)
            self.allocated.discard(command.ino)
            directory.entries[command.entry.name] = (command.ino, next(self._cookies))
            self._touch(directory)
        if node is None:
            raise e.NotFoundError(f"object {command.ino}")
        first_gone = -(-command.base_limit_bytes // BLOCK_BYTES)
        node.blocks = {index: data for index, data in node.blocks.items() if index < first_gone}
        node.blocks.update(self.staged.pop(command.ino, {}))
        assert all(index * BLOCK_BYTES < command.size for index in node.blocks), "a block beyond the size"
        assert all(index * BLOCK_BYTES + len(data) <= command.size for index, data in node.blocks.items())
        node.size, node.mode, node.uid, node.gid = command.size, command.mode, command.uid, command.gid
        node.atime_ns, node.mtime_ns, node.ctime_ns = command.atime_ns, command.mtime_ns, command.ctime_ns
        node.xattrs.update(command.xattrs)
        node.generation = next(self._generations)
        return c.Found(node.attributes())

    def _Discard(self, command: c.Discard) -> c.Result:
        blocks = self.staged.get(command.ino, {})
        for index in [index for index in blocks if index >= command.from_block]:
            del blocks[index]
        if not command.from_block:
            self.staged.pop(command.ino, None)
        return c.Done()

    def _Sync(self, command: c.Sync) -> c.Result:
        return c.Done()

    def _OpenObject(self, command: c.OpenObject) -> c.Result:
        node = self._node(command.ino)
        if command.reading:
            node.atime_ns = time.time_ns()
        return c.Found(node.attributes())


class _LookupCommands(_Objects):
    """Commands that change nothing, and extended attributes."""

    def _Lookup(self, command: c.Lookup) -> c.Result:
        return c.Found(self._entry(command.parent, command.name).attributes())

    def _GetAttributes(self, command: c.GetAttributes) -> c.Result:
        return c.Found(self._node(command.ino).attributes())

    def _ReadDirectory(self, command: c.ReadDirectory) -> c.Result:
        entries = sorted(
            (cookie, name, ino)
            for name, (ino, cookie) in self._directory(command.ino).entries.items()
            if cookie > command.cookie
        )
        listed = tuple(
            c.DirectoryEntry(name=name, cookie=cookie, attributes=self.nodes[ino].attributes())
            for cookie, name, ino in entries[: command.limit]
        )
        return c.DirectoryListing(entries=listed, end=len(entries) <= command.limit)

    def _ReadLink(self, command: c.ReadLink) -> c.Result:
        return c.Bytes(self._node(command.ino).target)

    def _GetXattr(self, command: c.GetXattr) -> c.Result:
        xattrs = self._node(command.ino).xattrs
        if command.name not in xattrs:
            raise e.NoXattrError("attribute")
        return c.Bytes(xattrs[command.name])

    def _ListXattrs(self, command: c.ListXattrs) -> c.Result:
        return c.Names(tuple(self._node(command.ino).xattrs))

    def _SetXattr(self, command: c.SetXattr) -> c.Result:
        xattrs = self._node(command.ino).xattrs
        rest = sum(len(k) + len(v) for k, v in xattrs.items() if k != command.name)
        if rest + len(command.name) + len(command.value) > XATTRS_PER_OBJECT_MAX_BYTES:
            raise e.XattrTooLargeError("attributes")
        xattrs[command.name] = command.value
        return c.Done()

    def _RemoveXattr(self, command: c.RemoveXattr) -> c.Result:
        if self._node(command.ino).xattrs.pop(command.name, None) is None:
            raise e.NoXattrError("attribute")
        return c.Done()

    def _StatFilesystem(self, command: c.StatFilesystem) -> c.Result:
        used = sum(n.attributes().stored_bytes for n in self.nodes.values())
        return c.FilesystemUsage(
            quota_bytes=self.quota_bytes,
            used_bytes=used,
            quota_objects=0,
            used_objects=len(self.nodes) - 1,
            pool_free_bytes=(1 << 34) - used,
            pool_bytes=1 << 34,
        )


class _NameCommands(_Objects):
    """Names and attributes."""

    def _CloseObject(self, command: c.CloseObject) -> c.Result:
        return c.Done()

    def _AllocateIno(self, command: c.AllocateIno) -> c.Result:
        ino = next(self._inos)
        self.allocated.add(ino)
        return c.Ino(ino)

    def _MakeNode(self, command: c.MakeNode) -> c.Result:
        directory = self._directory(command.parent)
        assert stat.S_IFMT(command.mode) not in (0, stat.S_IFREG)
        if command.name in directory.entries:
            raise e.ExistsError("name")
        node = Node(next(self._inos), command.mode, command.uid, command.gid, target=command.target)
        node.size = len(command.target)
        node.atime_ns = time.time_ns()
        self._touch(node)
        if stat.S_ISDIR(node.mode):
            node.nlink = 2
            directory.nlink += 1
        self.nodes[node.ino] = node
        directory.entries[command.name] = (node.ino, next(self._cookies))
        self._touch(directory)
        return c.Found(node.attributes())

    def _SetAttributes(self, command: c.SetAttributes) -> c.Result:
        node = self._node(command.ino)
        if command.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(command.mode)
        for name in ("uid", "gid", "atime_ns", "mtime_ns", "ctime_ns"):
            if getattr(command, name) is not None:
                setattr(node, name, getattr(command, name))
        return c.Found(node.attributes())

    def _Unlink(self, command: c.Unlink) -> c.Result:
        if stat.S_ISDIR(self._entry(command.parent, command.name).mode):
            raise e.IsDirectoryError("name")
        return self._drop_name(self.nodes[command.parent], command.name, command.keep_open)

    def _RemoveDirectory(self, command: c.RemoveDirectory) -> c.Result:
        node = self._entry(command.parent, command.name)
        if not stat.S_ISDIR(node.mode):
            raise e.NotDirectoryError("name")
        if node.entries:
            raise e.NotEmptyError("name")
        self.nodes[command.parent].nlink -= 1
        return self._drop_name(self.nodes[command.parent], command.name, False)

    def _Rename(self, command: c.Rename) -> c.Result:
        node = self._entry(command.parent, command.name)
        source, target = self.nodes[command.parent], self._directory(command.new_parent)
        old = target.entries.get(command.new_name)
        if command.flags & c.RENAME_EXCHANGE:
            if old is None:
                raise e.NotFoundError("new name")
            mine = source.entries[command.name]
            source.entries[command.name] = (old[0], mine[1])
            target.entries[command.new_name] = (mine[0], old[1])
            return c.Removed(ino=0, nlink=0)
        removed = c.Removed(ino=0, nlink=0)
        if old is not None:
            if command.flags & c.RENAME_NOREPLACE:
                raise e.ExistsError("new name")
            if old[0] == node.ino:
                return removed
            other = self.nodes[old[0]]
            if stat.S_ISDIR(other.mode) != stat.S_ISDIR(node.mode):
                raise (e.IsDirectoryError if stat.S_ISDIR(other.mode) else e.NotDirectoryError)("new name")
            if other.entries:
                raise e.NotEmptyError("new name")
            removed = self._drop_name(target, command.new_name, command.keep_open)
        del source.entries[command.name]
        target.entries[command.new_name] = (node.ino, next(self._cookies))
        if stat.S_ISDIR(node.mode):
            source.nlink -= 1
            target.nlink += 1
        self._touch(source)
        self._touch(target)
        return removed

    def _Link(self, command: c.Link) -> c.Result:
        node, directory = self._node(command.ino), self._directory(command.parent)
        if command.name in directory.entries:
            raise e.ExistsError("name")
        if stat.S_ISDIR(node.mode):
            raise e.NotPermittedError("directory")
        node.nlink += 1
        node.ctime_ns = time.time_ns()
        directory.entries[command.name] = (node.ino, next(self._cookies))
        self._touch(directory)
        return c.Found(node.attributes())

    def _ReleaseUnlinked(self, command: c.ReleaseUnlinked) -> c.Result:
        if command.ino in self.kept_open:
            self.kept_open.discard(command.ino)
            del self.nodes[command.ino]
        self.allocated.discard(command.ino)
        self.staged.pop(command.ino, None)
        return c.Done()


class FakeDpu(_DataCommands, _LookupCommands, _NameCommands, QueuePair):
    """`submit` checks the contract with assertions: what the host half may not send fails the test."""

    async def submit(self, command: c.Command, payload: Buffer = b"") -> Reply:
        name = type(command).__name__
        self.calls[name] += 1
        hold = self.holds.get(name)
        if hold is not None:
            await hold.wait()
        for fault in self.faults[name]:
            if fault.hit():
                raise fault.error
        if isinstance(command, c.WriteBlock):
            return await self._write_block(command, payload)
        assert not len(payload)
        if isinstance(command, c.ReadBlock):
            return await self._read_block(command)
        handler: Callable[[c.Command], Reply | c.Result] = getattr(self, f"_{name}")
        if isinstance(command, c.Commit | c.Discard):
            assert not self.busy[command.ino], f"{name} overlaps a WriteBlock"
            self.exclusive.add(command.ino)
            try:
                await trio.lowlevel.checkpoint()
                return Reply(handler(command))
            finally:
                self.exclusive.discard(command.ino)
        return Reply(handler(command))

    def take_events(self) -> list[c.Event]:
        events, self._events = self._events, []
        self._event = trio.Event()
        return events

    def on_state_lost(self, call: Callable[[], None]) -> None:
        self.lose_state = call

    async def wait_event(self) -> None:
        if not self._events:
            await self._event.wait()

    async def aclose(self) -> None:
        self.staged.clear()

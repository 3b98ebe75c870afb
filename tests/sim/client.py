"""One client of a simulated pool: does one thing after another in a directory of its own, and notes what it was told.

It uses the host half's staging over the in-process queue pair, as a mount does, without the kernel between.
"""

from __future__ import annotations

import dataclasses
import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from kvfs import limits
from kvfs.blockreads import BlockReads
from kvfs.commands import (
    RENAME_EXCHANGE,
    AllocateIno,
    Attributes,
    Command,
    Discard,
    Found,
    GetAttributes,
    Ino,
    Link,
    Lookup,
    MakeNode,
    Placement,
    ReadBlock,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Sync,
    Unlink,
    WriteBlock,
)
from kvfs.errors import KvfsError
from kvfs.openfile import OpenFile
from kvfs.queuepair import QueuePair
from kvfs.staging import Staging
from tests.sim.model import Kind, Node, Path, State
from tests.sim.trace import Began, Ended, Synced, Trace

NAMES: Final = tuple(b"n%d" % number for number in range(7))
SIZES: Final = (0, 1, 700, 4096, 5000, 20_000, 70_000, limits.BLOCK_BYTES, limits.BLOCK_BYTES + 3000)
SIZE_WEIGHTS: Final = (2, 2, 4, 4, 6, 6, 4, 1, 1)
DIRECTORIES_MAX: Final = 6


@dataclass(frozen=True, slots=True)
class Handle:
    """What it takes to know where the clock of sequences is: the catalog's, asked after each answer."""

    sequence: Callable[[], int]
    trace: Trace


class Client:
    """Client number `number`; its directory `c<number>` is made by `start`."""

    def __init__(self, number: int, pair: QueuePair, nursery: trio.Nursery, handle: Handle, choice: random.Random):
        self.number = number
        self.history = [State()]
        self.errors: list[KvfsError] = []
        self.wrong: list[str] = []
        """What a read gave that was neither right nor an error."""
        self._pair = pair
        self._handle = handle
        self._random = choice
        self._tick = 0
        self._reads = BlockReads(pair, nursery)
        self._staging = Staging(pair, nursery, self._reads, memory_bytes=4 * limits.MIB, now_ns=lambda: self._tick)
        self._inos: dict[Path, int] = {}
        self._idents = 0
        self._versions = 0

    @property
    def state(self) -> State:
        """What was acknowledged."""
        return self.history[-1]

    @property
    def directory(self) -> bytes:
        """Its directory's name."""
        return b"c%d" % self.number

    async def start(self) -> None:
        """Make the client's directory."""
        result = (await self._pair.submit(MakeNode(1, self.directory, stat.S_IFDIR | 0o700, 1, 1, b""))).result
        assert isinstance(result, Found)
        self._inos = {(): result.attributes.ino}
        self.history = [State(sequence=self._handle.sequence())]

    async def find(self) -> None:
        """Go on in the directory that is there."""
        self._inos = {(): (await self._lookup(1, self.directory)).ino}

    async def act(self, name: str) -> None:
        """One step: `store`, `overwrite`, `truncate`, `unlink` ... (the methods `_do_...`); a step may find no work."""
        self._tick += 1_000_000
        await getattr(self, f"_do_{name}")()

    async def try_store(self) -> list[KvfsError]:
        """Store one more file -> why it was refused, if it was."""
        before = len(self.errors)
        self._tick += 1_000_000
        await self._create((b"last",))
        return self.errors[before:]

    # --- files -----------------------------------------------------------------------------------------

    async def _do_store(self) -> None:
        """A new file or a new version of one by a temporary name and rename, as most engines do."""
        parent, name = self._directory(), self._random.choice(NAMES)
        temporary, target = (*parent, b"tmp"), (*parent, name)
        if self._kind(target) is Kind.DIRECTORY or not await self._create(temporary):
            return
        await self._change(self.state.rename(temporary, target), self._rename(temporary, target, 0))

    async def _do_create(self) -> None:
        """A file under its own name; replaces what is there at close."""
        path = (*self._directory(), self._random.choice(NAMES))
        if self._kind(path) is not Kind.DIRECTORY:
            await self._create(path)

    async def _create(self, path: Path) -> bool:
        content = self._content()
        xattrs = ((b"user.kind", b"x" * self._random.randrange(40)),) if self._random.random() < 0.3 else ()
        self._idents += 1
        node = Node(self._idents, Kind.FILE, 0o640, content, self._version(), self._tick, xattrs)

        async def call() -> None:
            ino = (await self._pair.submit(AllocateIno())).result
            assert isinstance(ino, Ino)
            parent = await self._ino(path[:-1])
            attributes = Attributes(ino.ino, stat.S_IFREG | 0o640, 1, 7, 8, 0, 0, 0, 1, self._tick, 1, 0)
            file = OpenFile(attributes, entry=Placement(parent, path[-1]), published=False, xattrs=dict(xattrs))
            await self._publish(file, [(start, piece) for start, piece in self._pieces(content)])

        return await self._change(self.state.put(path, node), call)

    async def _do_overwrite(self) -> None:
        """Some bytes of a file, also behind its end."""
        path = self._file()
        if path is None:
            return
        node = self.state.nodes[path]
        offset = self._random.randrange(len(node.content) + 3000)
        data = self._random.randbytes(self._random.choice((1, 500, 9000)))
        await self._rewrite(path, _overwritten(node.content, offset, data), [(offset, data)])

    async def _do_append(self) -> None:
        """More at the end of a file."""
        path = self._file()
        if path is not None:
            data, node = self._random.randbytes(self._random.choice((10, 4096, 6000))), self.state.nodes[path]
            await self._rewrite(path, node.content + data, [(len(node.content), data)])

    async def _do_truncate(self) -> None:
        """Cut a file, or make it longer by a hole."""
        path = self._file()
        if path is not None:
            node = self.state.nodes[path]
            size = self._random.choice((0, len(node.content) // 2, len(node.content) + 5000))
            content = node.content[:size] + bytes(size - len(node.content[:size]))
            await self._rewrite(path, content, [], truncate=size)

    async def _rewrite(
        self, path: Path, content: bytes, pieces: list[tuple[int, bytes]], truncate: int | None = None
    ) -> None:
        node = self.state.nodes[path]
        after = dataclasses.replace(node, content=content, version=self._version(), mtime_ns=self._tick)

        async def call() -> None:
            attributes = await self._attributes(path)
            self._reads.note_generation(attributes.ino, attributes.generation)
            await self._publish(OpenFile(attributes), pieces, truncate)

        await self._change(self.state.update(after), call)

    async def _publish(self, file: OpenFile, pieces: list[tuple[int, bytes]], truncate: int | None = None) -> None:
        try:
            for offset, piece in pieces:
                await self._staging.write(file, offset, piece)
            if truncate is not None:
                await self._staging.truncate(file, truncate)
            await self._staging.commit(file)
            self._reads.note_generation(file.ino, file.committed.generation, same_content=True)
        except KvfsError:
            await self._staging.discard(file)
            raise

    async def _do_abandon(self) -> None:
        """Blocks that are never committed: a writer that dies, or gives up."""
        ino = (await self._submit(AllocateIno())).result
        assert isinstance(ino, Ino)
        await self._submit(WriteBlock(ino.ino, 0), self._random.randbytes(3000))
        path = self._file()
        if path is not None and self._random.random() < 0.5:
            await self._submit(WriteBlock((await self._attributes(path)).ino, 1), self._random.randbytes(100))
            # a later commit of the same attachment would publish it: give it up
            await self._discard(path)

    async def _do_read(self) -> None:
        """Read a file as it should be now."""
        path = self._file()
        if path is None:
            return
        want = self.state.nodes[path].content
        attributes = await self._attributes(path)
        have = b"".join(
            [await self._block(attributes, index) for index in range(-(-attributes.size // limits.BLOCK_BYTES))]
        )
        if have != want:
            self.wrong.append(f"client {self.number}: {path!r}: read {len(have)} bytes that were never stored there")

    async def _block(self, attributes: Attributes, index: int) -> bytes:
        reply = await self._submit(ReadBlock(attributes.ino, index, False))
        data = bytes(reply.payload)
        if reply.release is not None:
            reply.release()
        return data.ljust(min(limits.BLOCK_BYTES, attributes.size - index * limits.BLOCK_BYTES), b"\0")

    # --- names -----------------------------------------------------------------------------------------

    async def _do_mkdir(self) -> None:
        """A directory."""
        path = (*self._directory(), self._random.choice(NAMES))
        if path in self.state.nodes or len(self.state.paths(Kind.DIRECTORY)) >= DIRECTORIES_MAX or len(path) > 3:
            return
        self._idents += 1
        await self._make(path, Node(self._idents, Kind.DIRECTORY, 0o750), stat.S_IFDIR | 0o750, b"")

    async def _do_symlink(self) -> None:
        """A symbolic link."""
        path = (*self._directory(), self._random.choice(NAMES))
        if path not in self.state.nodes:
            self._idents += 1
            target = b"to/%d" % self._idents
            await self._make(path, Node(self._idents, Kind.SYMLINK, 0o777, target=target), stat.S_IFLNK | 0o777, target)

    async def _make(self, path: Path, node: Node, mode: int, target: bytes) -> None:
        async def call() -> None:
            await self._submit(MakeNode(await self._ino(path[:-1]), path[-1], mode, 1, 1, target))

        await self._change(self.state.put(path, node), call)

    async def _do_rmdir(self) -> None:
        """Remove an empty directory."""
        empty = [path for path in self.state.paths(Kind.DIRECTORY) if self.state.is_empty(path)]
        if empty:
            path = self._random.choice(empty)

            async def call() -> None:
                await self._submit(RemoveDirectory(await self._ino(path[:-1]), path[-1]))

            await self._change(self.state.remove(path), call)

    async def _do_unlink(self) -> None:
        """Remove a name."""
        path = self._file()
        if path is not None:

            async def call() -> None:
                await self._submit(Unlink(await self._ino(path[:-1]), path[-1], False))

            await self._change(self.state.remove(path), call)

    async def _do_rename(self) -> None:
        """Rename a file over anything but a directory, or a directory to a free name."""
        path = self._file() if self._random.random() < 0.7 else self._some(Kind.DIRECTORY)
        target = (*self._directory(), self._random.choice(NAMES))
        if path is None or path == target or self.state.is_below(target, path):
            return
        free = target not in self.state.nodes
        if free or (self._kind(target) is not Kind.DIRECTORY and self._kind(path) is not Kind.DIRECTORY):
            await self._change(self.state.rename(path, target), self._rename(path, target, 0))

    async def _do_exchange(self) -> None:
        """Let two files swap names."""
        first, second = self._file(), self._file()
        if first is not None and second is not None and first != second:
            await self._change(self.state.exchange(first, second), self._rename(first, second, RENAME_EXCHANGE))

    def _rename(self, source: Path, target: Path, flags: int) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            parents = [await self._ino(path[:-1]) for path in (source, target)]
            await self._submit(Rename(parents[0], source[-1], parents[1], target[-1], flags, False))

        return call

    async def _do_link(self) -> None:
        """Another name for a file."""
        path, target = self._file(), (*self._directory(), self._random.choice(NAMES))
        if path is None or target in self.state.nodes:
            return

        async def call() -> None:
            await self._submit(Link((await self._attributes(path)).ino, await self._ino(target[:-1]), target[-1]))

        await self._change(self.state.put(target, self.state.nodes[path]), call)

    async def _do_chmod(self) -> None:
        """Other permissions."""
        path = self._file()
        if path is not None:
            node = dataclasses.replace(self.state.nodes[path], mode=self._random.choice((0o600, 0o644, 0o666)))

            async def call() -> None:
                ino = (await self._attributes(path)).ino
                await self._submit(SetAttributes(ino, node.mode, None, None, None, None, self._tick))

            await self._change(self.state.update(node), call)

    async def _do_xattr(self) -> None:
        """Set or remove an extended attribute."""
        path = self._file()
        if path is None:
            return
        node = self.state.nodes[path]
        have = dict(node.xattrs)
        name, value = self._random.choice((b"user.a", b"user.kind")), self._random.randbytes(20)
        remove = name in have and self._random.random() < 0.5
        if remove:
            del have[name]
        else:
            have[name] = value
        after = dataclasses.replace(node, xattrs=tuple(sorted(have.items())))

        async def call() -> None:
            ino = (await self._attributes(path)).ino
            await self._submit(RemoveXattr(ino, name) if remove else SetXattr(ino, name, value, 0))

        await self._change(self.state.update(after), call)

    async def sync(self, all_clients: list[Client]) -> None:
        """Sync the pool: what every client was told before is safe from a power loss afterwards."""
        acked = tuple(len(client.history) - 1 for client in all_clients)
        try:
            await self._pair.submit(Sync())
        except KvfsError as error:
            self.errors.append(error)
        else:
            self._handle.trace.note(Synced(acked))

    # --- choosing and asking ---------------------------------------------------------------------------

    async def _change(self, after: State, call: Callable[[], Awaitable[None]]) -> bool:
        """Ask for a change -> whether it happened. An error means that it did not."""
        trace = self._handle.trace
        trace.note(Began(self.number, after))
        try:
            await call()
        except KvfsError as error:
            self.errors.append(error)
        else:
            self.history.append(after.with_sequence(self._handle.sequence()))
        trace.note(Ended(self.number, len(self.history) - 1))
        return self.history[-1].nodes is after.nodes

    async def _submit(self, command: Command, payload: bytes = b""):
        return await self._pair.submit(command, payload)

    async def _discard(self, path: Path) -> None:
        await self._submit(Discard((await self._attributes(path)).ino, 0))

    async def _lookup(self, parent: int, name: bytes) -> Attributes:
        result = (await self._submit(Lookup(parent, name))).result
        assert isinstance(result, Found)
        return result.attributes

    async def _ino(self, path: Path) -> int:
        ino = self._inos[()]
        for name in path:
            ino = (await self._lookup(ino, name)).ino
        return ino

    async def _attributes(self, path: Path) -> Attributes:
        result = (await self._submit(GetAttributes(await self._ino(path)))).result
        assert isinstance(result, Found)
        return result.attributes

    def _kind(self, path: Path) -> Kind | None:
        node = self.state.nodes.get(path)
        return node.kind if node else None

    def _some(self, kind: Kind) -> Path | None:
        paths = self.state.paths(kind)
        return self._random.choice(paths) if paths else None

    def _file(self) -> Path | None:
        return self._some(Kind.FILE)

    def _directory(self) -> Path:
        return self._random.choice([(), *self.state.paths(Kind.DIRECTORY)])

    def _content(self) -> bytes:
        return self._random.randbytes(self._random.choices(SIZES, SIZE_WEIGHTS)[0])

    def _version(self) -> int:
        self._versions += 1
        return self._versions

    def _pieces(self, content: bytes) -> list[tuple[int, bytes]]:
        """A file's content in the pieces in which it is written."""
        step = self._random.choice((4096, 128 * 1024, limits.BLOCK_BYTES))
        return [(start, content[start : start + step]) for start in range(0, len(content), step)]


def _overwritten(content: bytes, offset: int, data: bytes) -> bytes:
    head = content[:offset].ljust(offset, b"\0")
    return head + data + content[offset + len(data) :]

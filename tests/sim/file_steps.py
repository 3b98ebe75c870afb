"""What clients do to files: each step chooses for itself, and may find no work."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Awaitable, Callable
from typing import Final

from kvfs import limits
from kvfs.commands import AllocateIno, Attributes, Ino, Placement, ReadBlock, WriteBlock
from kvfs.errors import KvfsError
from kvfs.openfile import OpenFile
from tests.sim.client import NAMES, Client
from tests.sim.model import Kind, Node, Path
from tests.sim.name_steps import renaming


async def store(client: Client) -> None:
    """A new file or a new version of one by a temporary name and rename, as most engines do."""
    parent, name = client.some_directory(), client.random.choice(NAMES)
    temporary, target = (*parent, b"tmp"), (*parent, name)
    if client.kind_at(target) is Kind.DIRECTORY or not await _create(client, temporary):
        return
    await client.change(client.state.rename(temporary, target), renaming(client, temporary, target, 0))


async def create(client: Client) -> None:
    """A file under its own name; replaces what is there at close."""
    path = (*client.some_directory(), client.random.choice(NAMES))
    if client.kind_at(path) is not Kind.DIRECTORY:
        await _create(client, path)


async def _create(client: Client, path: Path) -> bool:
    content = client.new_content()
    xattrs = ((b"user.kind", b"x" * client.random.randrange(40)),) if client.random.random() < 0.3 else ()
    client.idents += 1
    node = Node(client.idents, Kind.FILE, 0o640, content, client.new_version(), client.tick, xattrs)

    async def call() -> None:
        ino = (await client.submit(AllocateIno())).result
        assert isinstance(ino, Ino)
        parent = await client.ino_of(path[:-1])
        attributes = Attributes(ino.ino, stat.S_IFREG | 0o640, 1, 7, 8, 0, 0, 0, 1, client.tick, 1, 0)
        file = OpenFile(attributes, entry=Placement(parent, path[-1]), published=False, xattrs=dict(xattrs))
        await _publish(client, file, client.in_pieces(content))

    return await client.change(client.state.put(path, node), call)


async def overwrite(client: Client) -> None:
    """Some bytes of a file, also behind its end."""
    path = client.some_file()
    if path is None:
        return
    node = client.state.nodes[path]
    offset = client.random.randrange(len(node.content) + 3000)
    data = client.random.randbytes(client.random.choice((1, 500, 9000)))
    await _rewrite(client, path, _overwritten(node.content, offset, data), [(offset, data)])


async def append(client: Client) -> None:
    """More at the end of a file."""
    path = client.some_file()
    if path is not None:
        data, node = client.random.randbytes(client.random.choice((10, 4096, 6000))), client.state.nodes[path]
        await _rewrite(client, path, node.content + data, [(len(node.content), data)])


async def truncate(client: Client) -> None:
    """Cut a file, or make it longer by a hole."""
    path = client.some_file()
    if path is not None:
        node = client.state.nodes[path]
        size = client.random.choice((0, len(node.content) // 2, len(node.content) + 5000))
        content = node.content[:size] + bytes(size - len(node.content[:size]))
        await _rewrite(client, path, content, [], truncate=size)


async def _rewrite(
    client: Client, path: Path, content: bytes, pieces: list[tuple[int, bytes]], truncate: int | None = None
) -> None:
    node = client.state.nodes[path]
    after = dataclasses.replace(node, content=content, version=client.new_version(), mtime_ns=client.tick)

    async def call() -> None:
        attributes = await client.attributes_of(path)
        client.reads.note_generation(attributes.ino, attributes.generation)
        await _publish(client, OpenFile(attributes), pieces, truncate)

    await client.change(client.state.update(after), call)


async def _publish(
    client: Client, file: OpenFile, pieces: list[tuple[int, bytes]], truncate: int | None = None
) -> None:
    try:
        for offset, piece in pieces:
            await client.staging.write(file, offset, piece)
        if truncate is not None:
            await client.staging.truncate(file, truncate)
        await client.staging.commit(file)
        client.reads.note_generation(file.ino, file.committed.generation, same_content=True)
    except KvfsError:
        await client.staging.discard(file)
        raise


async def abandon(client: Client) -> None:
    """Blocks that are never committed: a writer that dies, or gives up."""
    ino = (await client.submit(AllocateIno())).result
    assert isinstance(ino, Ino)
    await client.submit(WriteBlock(ino.ino, 0), client.random.randbytes(3000))
    path = client.some_file()
    if path is not None and client.random.random() < 0.5:
        await client.submit(WriteBlock((await client.attributes_of(path)).ino, 1), client.random.randbytes(100))
        # a later commit of the same attachment would publish it: give it up
        await client.discard(path)


async def read(client: Client) -> None:
    """Read a file as it should be now."""
    path = client.some_file()
    if path is None:
        return
    want = client.state.nodes[path].content
    attributes = await client.attributes_of(path)
    have = b"".join(
        [await _block(client, attributes, index) for index in range(-(-attributes.size // limits.BLOCK_BYTES))]
    )
    if have != want:
        client.wrong.append(f"client {client.number}: {path!r}: read {len(have)} bytes that were never stored there")


async def _block(client: Client, attributes: Attributes, index: int) -> bytes:
    reply = await client.submit(ReadBlock(attributes.ino, index, False))
    data = bytes(reply.payload)
    if reply.release is not None:
        reply.release()
    return data.ljust(min(limits.BLOCK_BYTES, attributes.size - index * limits.BLOCK_BYTES), b"\0")


def _overwritten(content: bytes, offset: int, data: bytes) -> bytes:
    head = content[:offset].ljust(offset, b"\0")
    return head + data + content[offset + len(data) :]


async def try_store(client: Client) -> list[KvfsError]:
    """Store one more file -> why it was refused, if it was."""
    before = len(client.errors)
    client.tick += 1_000_000
    await _create(client, (b"last",))
    return client.errors[before:]


STEPS: Final[dict[str, Callable[[Client], Awaitable[None]]]] = {
    step.__name__: step for step in (store, create, overwrite, append, truncate, abandon, read)
}

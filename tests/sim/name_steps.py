"""What clients do to names and attributes: each step chooses for itself, and may find no work."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Awaitable, Callable
from typing import Final

from kvfs.commands import (
    RENAME_EXCHANGE,
    Link,
    MakeNode,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
)
from tests.sim.client import DIRECTORIES_MAX, NAMES, Client
from tests.sim.model import Kind, Node, Path


async def mkdir(client: Client) -> None:
    """A directory."""
    path = (*client.some_directory(), client.random.choice(NAMES))
    if path in client.state.nodes or len(client.state.paths(Kind.DIRECTORY)) >= DIRECTORIES_MAX or len(path) > 3:
        return
    client.idents += 1
    await _make(client, path, Node(client.idents, Kind.DIRECTORY, 0o750), stat.S_IFDIR | 0o750, b"")


async def symlink(client: Client) -> None:
    """A symbolic link."""
    path = (*client.some_directory(), client.random.choice(NAMES))
    if path not in client.state.nodes:
        client.idents += 1
        target = b"to/%d" % client.idents
        await _make(client, path, Node(client.idents, Kind.SYMLINK, 0o777, target=target), stat.S_IFLNK | 0o777, target)


async def _make(client: Client, path: Path, node: Node, mode: int, target: bytes) -> None:
    async def call() -> None:
        await client.submit(MakeNode(await client.ino_of(path[:-1]), path[-1], mode, 1, 1, target))

    await client.change(client.state.put(path, node), call)


async def rmdir(client: Client) -> None:
    """Remove an empty directory."""
    empty = [path for path in client.state.paths(Kind.DIRECTORY) if client.state.is_empty(path)]
    if empty:
        path = client.random.choice(empty)

        async def call() -> None:
            await client.submit(RemoveDirectory(await client.ino_of(path[:-1]), path[-1]))

        await client.change(client.state.remove(path), call)


async def unlink(client: Client) -> None:
    """Remove a name."""
    path = client.some_file()
    if path is not None:

        async def call() -> None:
            await client.submit(Unlink(await client.ino_of(path[:-1]), path[-1], False))

        await client.change(client.state.remove(path), call)


async def rename(client: Client) -> None:
    """Rename a file over anything but a directory, or a directory to a free name."""
    path = client.some_file() if client.random.random() < 0.7 else client.some(Kind.DIRECTORY)
    target = (*client.some_directory(), client.random.choice(NAMES))
    if path is None or path == target or client.state.is_below(target, path):
        return
    free = target not in client.state.nodes
    if free or (client.kind_at(target) is not Kind.DIRECTORY and client.kind_at(path) is not Kind.DIRECTORY):
        await client.change(client.state.rename(path, target), renaming(client, path, target, 0))


async def exchange(client: Client) -> None:
    """Let two files swap names."""
    first, second = client.some_file(), client.some_file()
    if first is not None and second is not None and first != second:
        await client.change(client.state.exchange(first, second), renaming(client, first, second, RENAME_EXCHANGE))


def renaming(client: Client, source: Path, target: Path, flags: int) -> Callable[[], Awaitable[None]]:
    """What a rename asks for."""

    async def call() -> None:
        parents = [await client.ino_of(path[:-1]) for path in (source, target)]
        await client.submit(Rename(parents[0], source[-1], parents[1], target[-1], flags, False))

    return call


async def link(client: Client) -> None:
    """Another name for a file."""
    path, target = client.some_file(), (*client.some_directory(), client.random.choice(NAMES))
    if path is None or target in client.state.nodes:
        return

    async def call() -> None:
        await client.submit(Link((await client.attributes_of(path)).ino, await client.ino_of(target[:-1]), target[-1]))

    await client.change(client.state.put(target, client.state.nodes[path]), call)


async def chmod(client: Client) -> None:
    """Other permissions."""
    path = client.some_file()
    if path is not None:
        node = dataclasses.replace(client.state.nodes[path], mode=client.random.choice((0o600, 0o644, 0o666)))

        async def call() -> None:
            ino = (await client.attributes_of(path)).ino
            await client.submit(SetAttributes(ino, node.mode, None, None, None, None, client.tick))

        await client.change(client.state.update(node), call)


async def xattr(client: Client) -> None:
    """Set or remove an extended attribute."""
    path = client.some_file()
    if path is None:
        return
    node = client.state.nodes[path]
    have = dict(node.xattrs)
    name, value = client.random.choice((b"user.a", b"user.kind")), client.random.randbytes(20)
    remove = name in have and client.random.random() < 0.5
    if remove:
        del have[name]
    else:
        have[name] = value
    after = dataclasses.replace(node, xattrs=tuple(sorted(have.items())))

    async def call() -> None:
        ino = (await client.attributes_of(path)).ino
        await client.submit(RemoveXattr(ino, name) if remove else SetXattr(ino, name, value, 0))

    await client.change(client.state.update(after), call)


STEPS: Final[dict[str, Callable[[Client], Awaitable[None]]]] = {
    step.__name__: step for step in (mkdir, symlink, rmdir, unlink, rename, exchange, link, chmod, xattr)
}

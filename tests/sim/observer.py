"""What can be seen of a pool: every name, attribute and byte, through a session as a mount would."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvfs import limits
from kvfs.commands import (
    Attributes,
    Bytes,
    Command,
    DirectoryListing,
    Found,
    GetXattr,
    ListXattrs,
    Lookup,
    Names,
    ReadBlock,
    ReadDirectory,
    ReadLink,
)
from kvfs.errors import BadRecordError, MediumUnavailableError, NotFoundError
from kvfs.queuepair import QueuePair
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.sim.model import Kind, Path, Seen

_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}
UNREADABLE = (BadRecordError, MediumUnavailableError, NotFoundError)


@dataclass(slots=True)
class Observed:
    """One client's directory; `missing` if it is not there. `inos` of all paths."""

    tree: dict[Path, Seen] = field(default_factory=dict)
    inos: dict[Path, int] = field(default_factory=dict)
    stored_bytes: dict[int, int] = field(default_factory=dict)
    """Charged bytes of each object that has a name here."""
    missing: bool = False
    errors: list[str] = field(default_factory=list)
    """What was answered with an error and not with names or attributes."""


async def observe(service: Service, tenants: Sequence[str]) -> list[Observed]:
    """Everything of every client, client N in directory `cN` of its tenant."""
    found = []
    for number, tenant in enumerate(tenants):
        pair = InProcessQueuePair(service.attach(tenant))
        found.append(await _Walk(pair).directory(b"c%d" % number))
        await pair.aclose()
    return found


class _Walk:
    def __init__(self, pair: QueuePair) -> None:
        self._pair = pair
        self._found = Observed()

    async def directory(self, name: bytes) -> Observed:
        try:
            top = (await self._ask(Lookup(1, name), Found)).attributes
        except NotFoundError:
            return Observed(missing=True)
        except BadRecordError as error:
            return Observed(missing=True, errors=[str(error)])
        self._found.inos[()] = top.ino
        self._found.stored_bytes[top.ino] = 0
        waiting: list[tuple[Path, int]] = [((), top.ino)]
        while waiting:
            path, ino = waiting.pop()
            for entry in await self._entries(ino):
                below = (*path, entry.name)
                try:
                    self._found.tree[below] = await self._seen(entry.attributes)
                except UNREADABLE as error:
                    self._found.errors.append(f"{below}: {error}")
                    continue
                self._found.inos[below] = entry.attributes.ino
                self._found.stored_bytes[entry.attributes.ino] = entry.attributes.stored_bytes
                if stat.S_ISDIR(entry.attributes.mode):
                    waiting.append((below, entry.attributes.ino))
        # Content last: a record that cannot be read hides its object under all its names.
        contents: dict[int, bytes | None] = {}
        for path, seen in self._found.tree.items():
            ino = self._found.inos[path]
            if seen.kind is Kind.FILE:
                if ino not in contents:
                    contents[ino] = await self._content(ino, seen.size)
                self._found.tree[path] = dataclasses.replace(seen, content=contents[ino])
        return self._found

    async def _entries(self, ino: int) -> list[Any]:
        entries: list[Any] = []
        cookie, end = 0, False
        while not end:
            try:
                listing = await self._ask(ReadDirectory(ino, cookie, 5), DirectoryListing)
            except UNREADABLE as error:
                self._found.errors.append(f"directory {ino}: {error}")
                break
            entries += listing.entries
            cookie, end = (listing.entries[-1].cookie if listing.entries else cookie), listing.end
        return entries

    async def _seen(self, attributes: Attributes) -> Seen:
        kind = _KINDS[stat.S_IFMT(attributes.mode)]
        names = (await self._ask(ListXattrs(attributes.ino), Names)).names
        xattrs = [(name, (await self._ask(GetXattr(attributes.ino, name), Bytes)).value) for name in sorted(names)]
        target = (await self._ask(ReadLink(attributes.ino), Bytes)).value if kind is Kind.SYMLINK else b""
        return Seen(
            kind=kind,
            mode=stat.S_IMODE(attributes.mode),
            nlink=attributes.nlink,
            size=0 if kind is Kind.DIRECTORY else attributes.size,
            mtime_ns=attributes.mtime_ns if kind is Kind.FILE else 0,
            xattrs=tuple(xattrs),
            target=target,
            content=b"",
        )

    async def _content(self, ino: int, size: int) -> bytes | None:
        blocks = []
        for index in range(-(-size // limits.BLOCK_BYTES)):
            length = min(limits.BLOCK_BYTES, size - index * limits.BLOCK_BYTES)
            try:
                reply = await self._pair.submit(ReadBlock(ino, index, False))
            except UNREADABLE:
                return None
            blocks.append(bytes(reply.payload[:length]).ljust(length, b"\0"))
            if reply.release is not None:
                reply.release()
        return b"".join(blocks)

    async def _ask(self, command: Command, kind: type) -> Any:
        result = (await self._pair.submit(command)).result
        assert isinstance(result, kind), f"{command}: {result}"
        return result

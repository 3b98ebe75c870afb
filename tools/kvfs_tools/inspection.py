"""Looking into one tenant of a pool that is open for reading, closed otherwise or beside a live mount. Never writes.

It is liberal with damage: a name that does not open is shown by what is known of it, and what disappears while it is
looked at (a live pool goes on) is passed over.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from kvfs.errors import BadRecordError, FormatError, InvalidArgumentError, NotDirectoryError, NotFoundError
from kvfs.limits import BLOCK_BYTES
from kvfsd.catalog.rows import BlockRow, InodeRow
from kvfsd.crypto.keys import NameSealer
from kvfsd.pool.pool import Pool
from kvfsd.pool.tenants import Tenant
from kvfsd.service.sealedxattrs import XATTR_NAME
from kvfsd.service.session_lookups import LINK_TARGET

LISTING_BATCH = 512
BLOCK_BATCH = 1024
DEPTH_MAX = 4096
"""Directories below each other that a walk follows: a damaged catalog could hold a circle."""


@dataclass(frozen=True, slots=True)
class Node:
    """An object and one of its names; `name_bad` says that the name could not be opened and `path` is a stand-in."""

    path: bytes
    inode: InodeRow
    name_bad: bool = False

    @property
    def kind(self) -> str:
        """file, directory, link, fifo, socket or other."""
        return _KINDS.get(stat.S_IFMT(self.inode.mode), "other")


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


class TenantView:
    """The namespace of one tenant, read from the catalog with the tenant's names key."""

    def __init__(self, pool: Pool, tenant: Tenant) -> None:
        self.pool = pool
        self.tenant = tenant
        self._catalog = pool.catalog
        self._names: NameSealer = pool.ring.names(tenant.number)

    def find(self, path: bytes) -> Node:
        """The object at `path` (from the tenant's root, links not followed).

        Raises:
            NotFoundError: there is no such name.
            NotDirectoryError: a name on the way is no directory.
            InvalidArgumentError: `..` in the path.
        """
        number = self.tenant.number
        inode = self._catalog.inodes.get(number, self.tenant.root_ino)
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        for part in parts:
            if part == b"..":
                raise InvalidArgumentError("a path here has no ..; name the object from the root of the tenant")
            if not stat.S_ISDIR(inode.mode):
                raise NotDirectoryError("a name on the way to it is no directory")
            found = self._catalog.namespace.lookup(number, inode.ino, self._names.seal_name(inode.ino, part))
            if found is None:
                raise NotFoundError(f"tenant {self.tenant.name} has no such name; kvfsctl ls shows what there is")
            inode = found
        return Node(b"/" + b"/".join(parts), inode)

    def children(self, directory: Node) -> Iterator[Node]:
        """What lies in a directory, in the order of the catalog; nothing if it has gone meanwhile."""
        cookie, end = 0, False
        prefix = directory.path.rstrip(b"/") + b"/"
        while not end:
            try:
                listed, end = self._catalog.namespace.list_directory(
                    self.tenant.number, directory.inode.ino, cookie, LISTING_BATCH
                )
            except (NotFoundError, NotDirectoryError, BadRecordError):
                return
            for entry in listed:
                name, bad = self._open_name(directory.inode.ino, entry.name, entry.inode.ino)
                yield Node(prefix + name, entry.inode, name_bad=bad)
                cookie = entry.cookie

    def _open_name(self, parent: int, sealed: bytes, ino: int) -> tuple[bytes, bool]:
        try:
            return self._names.open_name(parent, sealed), False
        except FormatError:
            return b"?object-%d" % ino, True

    def walk(self, start: Node) -> Iterator[Node]:
        """`start` and everything below it, parents first; holds one open listing per level."""
        yield start
        levels = [self.children(start)] if stat.S_ISDIR(start.inode.mode) else []
        while levels:
            node = next(levels[-1], None)
            if node is None:
                levels.pop()
                continue
            yield node
            if stat.S_ISDIR(node.inode.mode) and len(levels) < DEPTH_MAX:
                levels.append(self.children(node))

    def blocks(self, inode: InodeRow) -> Iterator[BlockRow]:
        """The committed blocks of an object in order, holes left out."""
        for first in range(0, -(-inode.size // BLOCK_BYTES), BLOCK_BATCH):
            yield from self._catalog.blocks.locate_range(self.tenant.number, inode.ino, first, BLOCK_BATCH)

    def link_target(self, inode: InodeRow) -> bytes | None:
        """The target of a symbolic link; None for everything else, and for one that does not open."""
        try:
            return self._names.open_value(inode.ino, LINK_TARGET, inode.target) if inode.target else None
        except FormatError:
            return None

    def xattr_names(self, ino: int) -> list[bytes]:
        """Names of the extended attributes; one that does not open is shown as ?."""
        names: list[bytes] = []
        try:
            sealed_names = self._catalog.xattrs.names(self.tenant.number, ino)
        except BadRecordError:
            return [b"?"]
        for sealed in sealed_names:
            try:
                names.append(self._names.open_value(ino, XATTR_NAME, sealed))
            except FormatError:
                names.append(b"?")
        return names

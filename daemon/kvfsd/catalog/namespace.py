"""Names: lookup, listing, insertion, links and removal (rename is in `renames`). Names are sealed throughout.

Hidden names are those of quarantined objects: they are misses for every lookup, and give way to what takes the name.
"""

from __future__ import annotations

import stat
from typing import Final

from kvfs import limits
from kvfs.errors import (
    ExistsError,
    IsDirectoryError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
    TooManyLinksError,
)
from kvfsd.catalog.database import Database, Row
from kvfsd.catalog.inodes import Inodes
from kvfsd.catalog.rows import INODE_QUARANTINED, Entry, InodeRow, ListedEntry, RemovedName, cookie_of
from kvfsd.catalog.schema import LISTING_COLUMNS
from kvfsd.ondisk.metalog import DropEntry, PutEntry

_FIND: Final = (
    f"SELECT {LISTING_COLUMNS} FROM dirent d CROSS JOIN inode i ON i.ino=d.ino"
    " WHERE d.tenant=? AND d.parent=? AND d.cookie=? AND d.sealed_name=?"
)
_LIST: Final = (
    f"SELECT d.sealed_name, d.cookie, {LISTING_COLUMNS} FROM dirent d CROSS JOIN inode i ON i.ino=d.ino"
    f" WHERE d.tenant=? AND d.parent=? AND i.flags & {INODE_QUARANTINED} = 0"
)
_FLAGS: Final = InodeRow._fields.index("flags")


class Namespace:
    """Directories of all tenants. Changes run inside the caller's transaction."""

    def __init__(self, database: Database, inodes: Inodes) -> None:
        self._database = database
        self._inodes = inodes

    # --- lookups ---------------------------------------------------------------------------------------

    def lookup(self, tenant: int, parent: int, name: bytes) -> InodeRow | None:
        """The object called `name` in directory `parent`; None is the normal miss (no exception on the hot path)."""
        row = self._database.one(_FIND, (tenant, parent, cookie_of(name), name))
        if row is None or row[_FLAGS] & INODE_QUARANTINED:
            return None
        return InodeRow._make(row)

    def list_directory(self, tenant: int, ino: int, cookie: int, limit: int) -> tuple[list[ListedEntry], bool]:
        """Names after `cookie` (0: from the start), about `limit` of them, and whether these are the last.

        The order is that of the cookies; names that share one (see `rows.cookie_of`) always come together, so a batch
        may be longer than `limit`. Names that come or go while listing never move others.
        """
        self._inodes.directory(tenant, ino)
        key = (tenant, ino)
        rows = self._database.all(
            f"{_LIST} AND d.cookie>? ORDER BY d.cookie, d.sealed_name LIMIT ?", (*key, cookie, limit)
        )
        if len(rows) < limit:
            return [_listed(row) for row in rows], True
        twins = f"{_LIST} AND d.cookie=? AND d.sealed_name>? ORDER BY d.sealed_name"
        rows += self._database.all(twins, (*key, rows[-1][1], rows[-1][0]))
        return [_listed(row) for row in rows], False

    def find_hidden_too(self, entry: Entry) -> InodeRow | None:
        """The object behind a name, whether hidden or not."""
        row = self._database.one(_FIND, (entry.tenant, entry.parent, cookie_of(entry.name), entry.name))
        return InodeRow._make(row) if row else None

    def visible(self, entry: Entry) -> InodeRow:
        """The object behind a name; NotFoundError."""
        row = self.lookup(*entry)
        if row is None:
            raise NotFoundError(f"no such name in directory {entry.parent}")
        return row

    def is_empty(self, tenant: int, ino: int) -> bool:
        """Whether a directory shows no name."""
        return self._database.one(f"{_LIST} LIMIT 1", (tenant, ino)) is None

    # --- changes ---------------------------------------------------------------------------------------

    def insert_node(self, entry: Entry, node: InodeRow) -> InodeRow:
        """Add a new object under a new name -> its row.

        Link count (2 for a directory) and `parent` are set here. ExistsError, NotFoundError (the directory),
        QuotaExceededError.
        """
        parent = self._inodes.directory(entry.tenant, entry.parent)
        self.make_room(entry, node.ctime_ns)
        is_directory = stat.S_ISDIR(node.mode)
        node = node._replace(nlink=2 if is_directory else 1, parent=entry.parent if is_directory else 0)
        self._inodes.insert(entry.tenant, node)
        self.put_entry(entry, node.ino)
        self._inodes.touch(entry.tenant, parent, node.ctime_ns, 1 if is_directory else 0)
        return node

    def make_room(self, entry: Entry, now_ns: int) -> None:
        """ExistsError if the name is taken; a hidden object behind it loses the name."""
        row = self.find_hidden_too(entry)
        if row is None:
            return
        if not row.flags & INODE_QUARANTINED:
            raise ExistsError(f"name taken in directory {entry.parent}")
        self.drop_entry(entry)
        self._inodes.lose_name(entry.tenant, row, now_ns, None)

    def add_link(self, entry: Entry, ino: int, now_ns: int) -> InodeRow:
        """Give a published object another name -> its row. NotPermittedError for directories, TooManyLinksError."""
        row = self._inodes.get(entry.tenant, ino)
        if stat.S_ISDIR(row.mode):
            raise NotPermittedError(f"object {ino} is a directory")
        if not row.nlink:
            raise NotFoundError(f"object {ino} has no name any more")
        if row.nlink >= limits.LINKS_MAX:
            raise TooManyLinksError(f"object {ino} has {row.nlink} names")
        parent = self._inodes.directory(entry.tenant, entry.parent)
        self.make_room(entry, now_ns)
        row = row._replace(nlink=row.nlink + 1, ctime_ns=now_ns)
        self._inodes.update(entry.tenant, row)
        self.put_entry(entry, ino)
        self._inodes.touch(entry.tenant, parent, now_ns)
        return row

    def remove_entry(self, entry: Entry, now_ns: int, keep_for: int | None = None) -> RemovedName:
        """unlink(2); `keep_for` as in `Inodes.lose_name`. NotFoundError, IsDirectoryError."""
        row = self.visible(entry)
        if stat.S_ISDIR(row.mode):
            raise IsDirectoryError(f"object {row.ino} is a directory")
        parent = self._inodes.directory(entry.tenant, entry.parent)
        self.drop_entry(entry)
        removed = self._inodes.lose_name(entry.tenant, row, now_ns, keep_for)
        self._inodes.touch(entry.tenant, parent, now_ns)
        return removed

    def remove_directory(self, entry: Entry, now_ns: int) -> RemovedName:
        """rmdir(2). NotFoundError, NotDirectoryError, NotEmptyError."""
        row = self.visible(entry)
        if not stat.S_ISDIR(row.mode):
            raise NotDirectoryError(f"object {row.ino} is no directory")
        self.destroy_directory(entry.tenant, row, now_ns)
        parent = self._inodes.directory(entry.tenant, entry.parent)
        self.drop_entry(entry)
        self._inodes.touch(entry.tenant, parent, now_ns, -1)
        return RemovedName(row.ino, 0)

    def destroy_directory(self, tenant: int, row: InodeRow, now_ns: int) -> None:
        """Delete an empty directory's object, and the hidden names in it; NotEmptyError."""
        if not self.is_empty(tenant, row.ino):
            raise NotEmptyError(f"directory {row.ino} is not empty")
        hidden = self._database.all("SELECT sealed_name FROM dirent WHERE tenant=? AND parent=?", (tenant, row.ino))
        for (name,) in hidden:
            entry = Entry(tenant, row.ino, name)
            inode = self.find_hidden_too(entry)
            self.drop_entry(entry)
            if inode:
                self._inodes.lose_name(tenant, inode, now_ns, None)
        self._inodes.destroy(tenant, row)

    # --- entries themselves ----------------------------------------------------------------------------

    def put_entry(self, entry: Entry, ino: int) -> None:
        """Let a name stand for `ino`, whatever it stood for."""
        self._database.require_transaction()
        self._database.run(
            "INSERT OR REPLACE INTO dirent VALUES(?,?,?,?,?)",
            (entry.tenant, entry.parent, cookie_of(entry.name), entry.name, ino),
        )
        self._database.log(entry.tenant, PutEntry(entry.parent, entry.name, ino))

    def drop_entry(self, entry: Entry) -> None:
        """Delete a name."""
        self._database.require_transaction()
        self._database.run(
            "DELETE FROM dirent WHERE tenant=? AND parent=? AND cookie=? AND sealed_name=?",
            (entry.tenant, entry.parent, cookie_of(entry.name), entry.name),
        )
        self._database.log(entry.tenant, DropEntry(entry.parent, entry.name))


def _listed(row: Row) -> ListedEntry:
    return ListedEntry(row[0], row[1], InodeRow._make(row[2:]))

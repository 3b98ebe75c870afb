"""Names: lookup, listing, insertion, links and removal (rename is in `renames`). Names are sealed throughout.

Hidden names are those of quarantined objects: they are misses for every lookup, and give way to what takes the name.
So are damaged ones, whose row or whose object's row fails its check; that is told (`DamageReports`).
"""

from __future__ import annotations

import stat
from typing import Final

from kvfs import limits
from kvfs.errors import (
    BadRecordError,
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
from kvfsd.catalog.rowmacs import total
from kvfsd.catalog.rows import INODE_QUARANTINED, Entry, InodeRow, ListedEntry, RemovedName, cookie_of
from kvfsd.catalog.schema import LISTING_COLUMNS
from kvfsd.ondisk.metalog import DropEntry, PutEntry

_ENTRY: Final = "tenant=? AND parent=? AND cookie=? AND sealed_name=?"
_FIND: Final = f"SELECT ino, mac FROM dirent WHERE {_ENTRY}"
"""Two columns: `sqlite3` describes every column of every query, and most lookups miss. A hit asks for the rest."""
_LIST: Final = (
    f"SELECT d.sealed_name, d.cookie, d.ino, d.mac, {LISTING_COLUMNS} FROM dirent d LEFT JOIN inode i"
    " ON i.ino=d.ino AND i.tenant=d.tenant WHERE d.tenant=? AND d.parent=?"
)
_EMPTY_BATCH: Final = 16


class Namespace:
    """Directories of all tenants. Changes run inside the caller's transaction."""

    def __init__(self, database: Database, inodes: Inodes) -> None:
        self._database = database
        self._inodes = inodes

    # --- lookups ---------------------------------------------------------------------------------------

    def lookup(self, tenant: int, parent: int, name: bytes) -> InodeRow | None:
        """The object called `name` in directory `parent`; None is the normal miss (no exception on the hot path)."""
        found = self._database.one(_FIND, (tenant, parent, cookie_of(name), name))
        if found is None:
            return None
        row = self._behind(tenant, parent, name, found)
        return None if row is None or row.flags & INODE_QUARANTINED else row

    def _behind(self, tenant: int, parent: int, name: bytes, found: Row) -> InodeRow | None:
        """The object of a name whose row has (ino, mac); None if any of it is damaged, which is told."""
        ino, mac = found
        if self._database.macs.of(tenant).entry(parent, name, ino) != mac:
            self._database.damage.note("dirent", tenant, parent, f"a name in directory {parent} fails its check")
            return None
        try:
            return self._inodes.find(tenant, ino) or self._lost(tenant, ino)
        except BadRecordError:
            return None

    def _lost(self, tenant: int, ino: int) -> InodeRow:
        raise self._database.damage.note("inode", tenant, ino, f"row of object {ino} is lost")

    def list_directory(self, tenant: int, ino: int, cookie: int, limit: int) -> tuple[list[ListedEntry], bool]:
        """Names after `cookie` (0: from the start), about `limit` of them, and whether these are the last.

        The order is that of the cookies; names that share one (see `rows.cookie_of`) come together, so a batch may be
        longer than `limit`, and shorter where names are hidden. Names that come or go while listing never move others.
        A directory that fits one batch is compared with the sum over its names in its own row.
        """
        directory, whole = self._inodes.directory(tenant, ino), cookie == 0
        while True:
            rows, end = self._batch(tenant, ino, cookie, limit)
            if whole and end:
                _compare(self._database, tenant, directory, [row[3] for row in rows])
            listed = [entry for row in rows if (entry := self._listed(tenant, ino, row)) is not None]
            if listed or end:
                return listed, end
            whole, cookie = False, rows[-1][1]

    def _batch(self, tenant: int, ino: int, cookie: int, limit: int) -> tuple[list[Row], bool]:
        key = (tenant, ino)
        query = f"{_LIST} AND d.cookie>? ORDER BY d.cookie, d.sealed_name LIMIT ?"
        rows = self._database.all(query, (*key, cookie, limit))
        if len(rows) < limit:
            return rows, True
        twins = f"{_LIST} AND d.cookie=? AND d.sealed_name>? ORDER BY d.sealed_name"
        return rows + self._database.all(twins, (*key, rows[-1][1], rows[-1][0])), False

    def _listed(self, tenant: int, parent: int, row: Row) -> ListedEntry | None:
        name, cookie, ino, mac = row[:4]
        if self._database.macs.of(tenant).entry(parent, name, ino) != mac or cookie != cookie_of(name):
            self._database.damage.note("dirent", tenant, parent, f"a name in directory {parent} fails its check")
            return None
        try:
            inode = self._inodes.checked(tenant, row[4:]) if row[4] is not None else self._lost(tenant, ino)
        except BadRecordError:
            return None
        return None if inode.flags & INODE_QUARANTINED else ListedEntry(name, cookie, inode)

    def find_hidden_too(self, entry: Entry) -> InodeRow | None:
        """The object behind a name, whether hidden or not; None also for a damaged name, which gives way."""
        found = self._database.one(_FIND, (entry.tenant, entry.parent, cookie_of(entry.name), entry.name))
        return self._behind(*entry, found) if found else None

    def visible(self, entry: Entry) -> InodeRow:
        """The object behind a name; NotFoundError."""
        row = self.lookup(*entry)
        if row is None:
            raise NotFoundError(f"no such name in directory {entry.parent}")
        return row

    def is_empty(self, tenant: int, ino: int) -> bool:
        """Whether a directory shows no name."""
        return not self.list_directory(tenant, ino, 0, _EMPTY_BATCH)[0]

    # --- changes ---------------------------------------------------------------------------------------

    def insert_node(self, entry: Entry, node: InodeRow) -> InodeRow:
        """Add a new object under a new name -> its row.

        Link count (2 for a directory) and `parent` are set here. ExistsError, NotFoundError (the directory),
        QuotaExceededError.
        """
        parent = self._inodes.directory(entry.tenant, entry.parent)
        members = self.make_room(entry, node.ctime_ns)
        is_directory = stat.S_ISDIR(node.mode)
        node = node._replace(nlink=2 if is_directory else 1, parent=entry.parent if is_directory else 0)
        self._inodes.insert(entry.tenant, node)
        members += self.put_entry(entry, node.ino)
        self._inodes.touch(entry.tenant, parent, node.ctime_ns, members, 1 if is_directory else 0)
        return node

    def make_room(self, entry: Entry, now_ns: int) -> int:
        """ExistsError if the name is taken; a hidden object behind it loses the name -> change of the names' sum."""
        row = self.find_hidden_too(entry)
        if row is None:
            return 0
        if not row.flags & INODE_QUARANTINED:
            raise ExistsError(f"name taken in directory {entry.parent}")
        members = self.drop_entry(entry, row.ino)
        self._inodes.lose_name(entry.tenant, row, now_ns, None)
        return members

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
        members = self.make_room(entry, now_ns)
        row = row._replace(nlink=row.nlink + 1, ctime_ns=now_ns)
        self._inodes.update(entry.tenant, row)
        members += self.put_entry(entry, ino)
        self._inodes.touch(entry.tenant, parent, now_ns, members)
        return row

    def remove_entry(self, entry: Entry, now_ns: int, keep_for: int | None = None) -> RemovedName:
        """unlink(2); `keep_for` as in `Inodes.lose_name`. NotFoundError, IsDirectoryError."""
        row = self.visible(entry)
        if stat.S_ISDIR(row.mode):
            raise IsDirectoryError(f"object {row.ino} is a directory")
        parent = self._inodes.directory(entry.tenant, entry.parent)
        members = self.drop_entry(entry, row.ino)
        removed = self._inodes.lose_name(entry.tenant, row, now_ns, keep_for)
        self._inodes.touch(entry.tenant, parent, now_ns, members)
        return removed

    def remove_directory(self, entry: Entry, now_ns: int) -> RemovedName:
        """rmdir(2). NotFoundError, NotDirectoryError, NotEmptyError."""
        row = self.visible(entry)
        if not stat.S_ISDIR(row.mode):
            raise NotDirectoryError(f"object {row.ino} is no directory")
        self.destroy_directory(entry.tenant, row, now_ns)
        parent = self._inodes.directory(entry.tenant, entry.parent)
        self._inodes.touch(entry.tenant, parent, now_ns, self.drop_entry(entry, row.ino), -1)
        return RemovedName(row.ino, 0)

    def destroy_directory(self, tenant: int, row: InodeRow, now_ns: int) -> None:
        """Delete an empty directory's object, and the hidden names in it; NotEmptyError."""
        if not self.is_empty(tenant, row.ino):
            raise NotEmptyError(f"directory {row.ino} is not empty")
        hidden = self._database.all("SELECT sealed_name FROM dirent WHERE tenant=? AND parent=?", (tenant, row.ino))
        for (name,) in hidden:
            entry = Entry(tenant, row.ino, name)
            inode = self.find_hidden_too(entry)
            self.drop_entry(entry, inode.ino if inode else 0)
            if inode:
                self._inodes.lose_name(tenant, inode, now_ns, None)
        self._inodes.destroy(tenant, row)

    def remove_hidden(self, entry: Entry, ino: int, now_ns: int) -> RemovedName | None:
        """Delete a name of a hidden object, and the object with its last one; None if it is not hidden there now."""
        row = self.find_hidden_too(entry)
        if row is None or row.ino != ino or not row.flags & INODE_QUARANTINED:
            return None
        self._inodes.adjust(entry.tenant, entry.parent, self.drop_entry(entry, ino))
        return self._inodes.lose_name(entry.tenant, row, now_ns, None)

    # --- entries themselves ----------------------------------------------------------------------------

    def put_entry(self, entry: Entry, ino: int, replaced_ino: int = 0) -> int:
        """Let a name stand for `ino` -> change of the sum over the directory's names.

        `replaced_ino` is what `find_hidden_too` says that it stands for now, 0 for nothing or something damaged.
        """
        self._database.require_transaction()
        tenant, parent, name = entry
        check = self._database.macs.of(tenant).entry
        values = (tenant, parent, cookie_of(name), name, ino, check(parent, name, ino))
        self._database.log(tenant, PutEntry(parent, name, ino))
        if replaced_ino:
            self._database.run("INSERT OR REPLACE INTO dirent VALUES(?,?,?,?,?,?)", values)
            return values[5] - check(parent, name, replaced_ino)
        if self._database.run("INSERT OR IGNORE INTO dirent VALUES(?,?,?,?,?,?)", values):
            return values[5]
        damaged = self._database.one(f"SELECT mac FROM dirent WHERE {_ENTRY}", values[:4])
        self._database.run("INSERT OR REPLACE INTO dirent VALUES(?,?,?,?,?,?)", values)
        return values[5] - (damaged[0] if damaged and isinstance(damaged[0], int) else 0)

    def drop_entry(self, entry: Entry, ino: int) -> int:
        """Delete a name that stands for `ino` -> change of the sum over the directory's names."""
        self._database.require_transaction()
        tenant, parent, name = entry
        self._database.run(f"DELETE FROM dirent WHERE {_ENTRY}", (tenant, parent, cookie_of(name), name))
        self._database.log(tenant, DropEntry(parent, name))
        return -self._database.macs.of(tenant).entry(parent, name, ino)


def _compare(database: Database, tenant: int, directory: InodeRow, checks: list[object]) -> None:
    """Tell it if the names of a directory are not those that its row counts."""
    numbers = [check for check in checks if isinstance(check, int)]
    if len(numbers) != len(checks) or total(*numbers) != directory.members:
        text = f"names of directory {directory.ino} are lost or damaged"
        database.damage.note("names", tenant, directory.ino, text)

"""Objects put aside: hidden where they are because a record went bad, or unlinked and kept for a while."""

from __future__ import annotations

from kvfs.errors import ExistsError, NotFoundError
from kvfsd.catalog.database import Database
from kvfsd.catalog.inodes import Inodes
from kvfsd.catalog.namespace import Namespace
from kvfsd.catalog.rows import INODE_QUARANTINED, Entry, InodeRow, QuarantineRow, RemovedName
from kvfsd.catalog.schema import TenantState


class QuarantineRows:
    """What is in quarantine stays charged until it is restored or expires."""

    def __init__(self, database: Database, namespace: Namespace, inodes: Inodes) -> None:
        self._database = database
        self._namespace = namespace
        self._inodes = inodes

    def hide(self, tenant: int, ino: int, reason: str, now_ns: int) -> None:
        """The object is a miss from now on under all its names; its data stays for inspection. NotFoundError."""
        row = self._found(tenant, ino)
        self._put(QuarantineRow(tenant, ino, 0, b"", reason, now_ns))
        self._inodes.update(tenant, row._replace(flags=row.flags | INODE_QUARANTINED))

    def unhide(self, tenant: int, ino: int) -> None:
        """The object's data is good again (a replica came back). NotFoundError."""
        row = self._found(tenant, ino)
        self._delete(tenant, ino)
        self._inodes.update(tenant, row._replace(flags=row.flags & ~INODE_QUARANTINED))

    def unlink_into(self, entry: Entry, reason: str, now_ns: int, keep_for: int | None = None) -> RemovedName:
        """unlink(2) that `restore` can undo: used for an unlink that follows a fault. NotFoundError, IsDirectoryError.

        An object with other names just loses this one.
        """
        row = self._namespace.visible(entry)
        if row.nlink > 1:
            return self._namespace.remove_entry(entry, now_ns, keep_for)
        self._put(QuarantineRow(entry.tenant, row.ino, entry.parent, entry.name, reason, now_ns))
        if keep_for is not None:
            return self._namespace.remove_entry(entry, now_ns, keep_for)
        # The row in `quarantine` keeps the object; an attachment number that no one has stands for it.
        removed = self._namespace.remove_entry(entry, now_ns, keep_for=0)
        self._database.run(
            "DELETE FROM open_unlinked WHERE tenant=? AND ino=? AND attachment=0", (entry.tenant, row.ino)
        )
        return removed

    def restore(self, tenant: int, ino: int, now_ns: int) -> Entry:
        """Undo `unlink_into` -> the name; NotFoundError (object or directory), ExistsError if the name is taken."""
        kept = self.get(tenant, ino)
        row = self._found(tenant, ino)
        if not kept.sealed_name or row.nlink:
            raise ExistsError(f"object {ino} has its name")
        entry = Entry(tenant, kept.parent, kept.sealed_name)
        parent = self._inodes.directory(tenant, kept.parent)
        members = self._namespace.make_room(entry, now_ns)
        self._delete(tenant, ino)
        self._inodes.restore(tenant, row._replace(nlink=1, ctime_ns=now_ns))
        members += self._namespace.put_entry(entry, ino)
        self._inodes.touch(tenant, parent, now_ns, members)
        return entry

    def expire(self, before_ns: int, limit: int = 64, tenant: int | None = None) -> int:
        """Free up to `limit` unlinked objects that were put aside before `before_ns` -> how many there were.

        `tenant`: only that tenant's, because only it needs room.
        """
        self._database.require_transaction()
        rows = self._database.all(
            "SELECT tenant, ino FROM quarantine"
            " WHERE time_ns<?1 AND length(sealed_name)>0 AND (?2 IS NULL OR tenant=?2)"
            " AND tenant IN (SELECT tenant FROM tenant WHERE state=?4) LIMIT ?3",
            (before_ns, tenant, limit, TenantState.ACTIVE),
        )
        for tenant, ino in rows:
            self._delete(tenant, ino)
            self._inodes.release_unlinked(0, tenant, ino)
        return len(rows)

    def get(self, tenant: int, ino: int) -> QuarantineRow:
        """The row of one object; NotFoundError."""
        row = self._database.one(
            "SELECT tenant, ino, parent, sealed_name, reason, time_ns FROM quarantine WHERE tenant=? AND ino=?",
            (tenant, ino),
        )
        if row is None:
            raise NotFoundError(f"object {ino} is not in quarantine")
        return QuarantineRow._make(row)

    def all(self, tenant: int, limit: int = 1024) -> list[QuarantineRow]:
        """Up to `limit` rows of the tenant, by object number."""
        rows = self._database.all(
            "SELECT tenant, ino, parent, sealed_name, reason, time_ns FROM quarantine WHERE tenant=? LIMIT ?",
            (tenant, limit),
        )
        return [QuarantineRow._make(row) for row in rows]

    def _found(self, tenant: int, ino: int) -> InodeRow:
        row = self._inodes.find(tenant, ino)
        if row is None:
            raise NotFoundError(f"no object {ino}")
        return row

    def _put(self, row: QuarantineRow) -> None:
        self._database.require_transaction()
        self._database.run("INSERT OR REPLACE INTO quarantine VALUES(?,?,?,?,?,?)", row)

    def _delete(self, tenant: int, ino: int) -> None:
        self._database.require_transaction()
        self._database.run("DELETE FROM quarantine WHERE tenant=? AND ino=?", (tenant, ino))

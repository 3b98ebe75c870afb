"""What belongs to one attachment (one mount's time on the pool): stored completions, and what dies with it."""

from __future__ import annotations

from typing import Final

from kvfsd.catalog.blocks import Blocks
from kvfsd.catalog.database import Database
from kvfsd.catalog.doomed import Doomed
from kvfsd.catalog.inodes import Inodes

RECOVER_BATCH: Final = 512


class Attachments:
    """Attachment epochs are numbers from `Database.next_attachment`, never used twice."""

    def __init__(self, database: Database, blocks: Blocks, inodes: Inodes, doomed: Doomed) -> None:
        self._database = database
        self._blocks = blocks
        self._inodes = inodes
        self._doomed = doomed

    def store_completion(self, attachment: int, cid: int, sequence: int, blob: bytes) -> None:
        """Keep the encoded completion of slot `cid`, in the transaction of its effect; replaces the slot's last."""
        self._database.require_transaction()
        self._database.run("INSERT OR REPLACE INTO completion VALUES(?,?,?,?)", (attachment, cid, sequence, blob))

    def completion(self, attachment: int, cid: int, sequence: int) -> bytes | None:
        """The stored completion of exactly that command, if it was carried out before."""
        row = self._database.one(
            "SELECT blob FROM completion WHERE attachment=? AND cid=? AND sequence=?", (attachment, cid, sequence)
        )
        return row[0] if row else None

    def recover_some(self, attachment: int | None) -> bool:
        """Drop a batch of what a dead attachment left (None: of all that ever were) -> whether there was anything.

        Uncommitted blocks, nameless objects it had open, stored completions. Call it in a transaction, until False.
        """
        if self._blocks.drop_staged_of(attachment, RECOVER_BATCH):
            return True
        where, key = ("1", ()) if attachment is None else ("attachment=?", (attachment,))
        unlinked = self._database.all(
            f"SELECT attachment, tenant, ino FROM open_unlinked WHERE {where} LIMIT ?", (*key, RECOVER_BATCH)
        )
        for owner, tenant, ino in unlinked:
            self._inodes.release_unlinked(owner, tenant, ino)
        if unlinked:
            return True
        return self._database.run(f"DELETE FROM completion WHERE {where}", key) > 0

    def recover(self, attachment: int | None = None) -> None:
        """`recover_some` until nothing is left, a transaction per batch, and doomed objects reaped (at pool open)."""
        more = True
        while more:
            with self._database.transaction():
                more = self.recover_some(attachment)
        more = True
        while more:
            with self._database.transaction():
                more = self._doomed.reap(RECOVER_BATCH)

"""What belongs to one attachment (one mount's time on the pool): stored completions, and what dies with it."""

from __future__ import annotations

from typing import Final, NamedTuple

from kvfsd.catalog.blocks import Blocks
from kvfsd.catalog.database import Database
from kvfsd.catalog.doomed import Doomed
from kvfsd.catalog.inodes import Inodes

RECOVER_BATCH: Final = 512
_NOT_KEPT: Final = "attachment NOT IN (SELECT attachment FROM attachment)"


class KeptAttachment(NamedTuple):
    """An attachment that may be resumed: SHA-256 of its token, and the boot of the machine it was made in."""

    attachment: int
    tenant: int
    token_digest: bytes
    boot: bytes


class Attachments:
    """Attachment epochs are numbers from `Database.next_attachment`, never used twice.

    One that is `keep`t outlives the process: recovery leaves what it staged, until it is `recover`ed by its number.
    """

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

    # --- attachments that may be resumed ---------------------------------------------------------------

    def keep(self, row: KeptAttachment) -> None:
        """From here on the attachment outlives this process."""
        self._database.require_transaction()
        self._database.run("INSERT INTO attachment VALUES(?,?,?,?)", row)

    def kept(self) -> list[KeptAttachment]:
        """All that may be resumed, oldest first."""
        rows = self._database.all("SELECT attachment, tenant, token_digest, boot FROM attachment ORDER BY attachment")
        return [KeptAttachment._make(row) for row in rows]

    def give_inos(self, attachment: int, first: int, count: int) -> None:
        """The attachment may use these object numbers for new objects."""
        self._database.require_transaction()
        self._database.run("INSERT INTO attachment_ino VALUES(?,?,?)", (attachment, first, count))

    def owns_ino(self, attachment: int, ino: int) -> bool:
        """Whether the number was given to the attachment, and no object has it."""
        row = self._database.one(
            "SELECT first, count FROM attachment_ino WHERE attachment=? AND first<=? ORDER BY first DESC LIMIT 1",
            (attachment, ino),
        )
        if row is None or ino >= row[0] + row[1]:
            return False
        return self._database.one("SELECT 1 FROM inode WHERE ino=?", (ino,)) is None

    def staged(self, attachment: int) -> list[tuple[int, int]]:
        """Objects of which the attachment has uncommitted blocks, and how many plaintext bytes of each."""
        rows = self._database.all(
            "SELECT ino, sum(length) FROM staged_block WHERE attachment=? GROUP BY ino", (attachment,)
        )
        return [(row[0], row[1]) for row in rows]

    def last_sequences(self, attachment: int) -> list[tuple[int, int]]:
        """(slot, sequence) of its stored completions."""
        rows = self._database.all("SELECT cid, sequence FROM completion WHERE attachment=?", (attachment,))
        return [(row[0], row[1]) for row in rows]

    def forget_kept(self) -> None:
        """Nobody may come back: all that kept attachments left is dropped."""
        for row in self.kept():
            self.recover(row.attachment)

    # --- recovery --------------------------------------------------------------------------------------

    def recover_some(self, attachment: int | None) -> bool:
        """Drop a batch of what a dead attachment left (None: of all but kept ones) -> whether there was anything.

        Uncommitted blocks, nameless objects it had open, stored completions. Call it in a transaction, until False.
        """
        if self._blocks.drop_staged_of(attachment, RECOVER_BATCH):
            return True
        where, key = (_NOT_KEPT, ()) if attachment is None else ("attachment=?", (attachment,))
        unlinked = self._database.all(
            f"SELECT attachment, tenant, ino FROM open_unlinked WHERE {where} LIMIT ?", (*key, RECOVER_BATCH)
        )
        for owner, tenant, ino in unlinked:
            self._inodes.release_unlinked(owner, tenant, ino)
        if unlinked:
            return True
        self._database.run(f"DELETE FROM attachment_ino WHERE {where}", key)
        if attachment is not None:
            self._database.run("DELETE FROM attachment WHERE attachment=?", key)
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

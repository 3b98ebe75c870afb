"""Exactly once: the newest completion of each slot of an attachment is stored together with its command's effect.

A command that comes again, on this connection, on a later one or to a later process, gets the stored completion.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kvfs import limits
from kvfs.commands import Completion, Request, Result
from kvfs.errors import ProtocolError, Status
from kvfsd.catalog.attachments import Attachments
from kvfsd.service.validation import INTEGER_MAX

_DECODER: Final = msgspec.msgpack.Decoder(Completion)
_OK: Final = int(Status.OK)


class Completions:
    """The completions of one attachment. `resumed`: commands of an earlier session may come again."""

    def __init__(self, rows: Attachments, attachment: int, *, resumed: bool) -> None:
        self._rows = rows
        self._attachment = attachment
        self._resumed = resumed
        self._sequences = [0] * limits.QUEUE_DEPTH
        self._encoder = msgspec.msgpack.Encoder()

    def adopt(self) -> None:
        """Know the slots as a process that ended has left them."""
        for cid, sequence in self._rows.last_sequences(self._attachment):
            self._sequences[cid] = sequence

    def find(self, request: Request) -> Result | None:
        """The result of the command that this one repeats, None if it is new; ProtocolError if it can be neither."""
        cid, sequence = request.cid, request.sequence
        if not (0 <= cid < limits.QUEUE_DEPTH and 0 < sequence <= INTEGER_MAX):
            raise ProtocolError(f"request identity: cid {cid}, sequence {sequence}")
        last = self._sequences[cid]
        if sequence < last:
            raise ProtocolError(f"slot {cid}: sequence {sequence} comes after {last}")
        if sequence > last and not self._resumed:
            return None
        blob = self._rows.completion(self._attachment, cid, sequence)
        return None if blob is None else _DECODER.decode(blob).result

    def store(self, request: Request, result: Result) -> None:
        """Store what became of the command, in the transaction of its effect."""
        blob = self._encoder.encode(Completion(request.cid, request.sequence, _OK, "", result))
        self._rows.store_completion(self._attachment, request.cid, request.sequence, blob)

    def committed(self, request: Request) -> None:
        """That transaction is committed."""
        self._sequences[request.cid] = request.sequence

"""What one attachment is writing: object by object, what it holds of the quota until it is committed or given up."""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from kvfs import limits
from kvfs.errors import InvalidArgumentError, NotFoundError, TooManyOpenError
from kvfsd.catalog.inodes import Inodes
from kvfsd.datapath.admission import Admission, Reservation

LAPSED_MAX: Final = 4096
"""Objects that were allocated, then discarded from block 0; remembered, a truncated file may be written anew."""


class Reservations:
    """The reservations of one attachment by object; at most `limits.OPEN_FILES_MAX`.

    A `fresh` object was allocated by this attachment and is not published: nobody else can name it.
    """

    def __init__(self, admission: Admission, inodes: Inodes, tenant: int) -> None:
        self._admission = admission
        self._inodes = inodes
        self._tenant = tenant
        self._held: dict[int, Reservation] = {}
        self._fresh: set[int] = set()
        self._lapsed: OrderedDict[int, None] = OrderedDict()
        self._owns: Callable[[int], bool] = lambda ino: False

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, ino: int) -> bool:
        """Whether the object is being written by this attachment."""
        return ino in self._held

    def is_fresh(self, ino: int) -> bool:
        """Whether `ino` was allocated here and is neither published nor released."""
        return ino in self._fresh or self._may_revive(ino)

    def adopt(self, staged: Iterable[tuple[int, int]], owns: Callable[[int], bool]) -> None:
        """Go on for a process that ended: `staged` bytes by object are in the catalog and count again.

        `owns(ino)`: the number was allocated by this attachment and no object has it. No quota is checked: what was
        acknowledged stays.
        """
        self._owns = owns
        for ino, staged_bytes in staged:
            reservation = Reservation(self._tenant)
            self._held[ino] = reservation
            fresh = owns(ino)
            self._admission.adopt(reservation, staged_bytes, counts_object=fresh)
            if fresh:
                self._fresh.add(ino)

    def allocate(self, ino: int) -> None:
        """A new object. Raises QuotaExceededError, TooManyOpenError."""
        reservation = Reservation(self._tenant)
        self._hold(ino, reservation)
        self._fresh.add(ino)
        try:
            self._admission.reserve_object(reservation)
        except BaseException:
            self._forget(ino)
            raise

    def for_write(self, ino: int) -> Reservation:
        """The reservation of an object that gets a block. NotFoundError, QuotaExceededError, TooManyOpenError."""
        reservation = self._held.get(ino)
        if reservation is not None:
            return reservation
        if self._may_revive(ino):
            return self._revive(ino)
        if not stat.S_ISREG(self._inodes.get(self._tenant, ino).mode):
            raise InvalidArgumentError(f"object {ino} is no regular file")
        reservation = Reservation(self._tenant)
        self._hold(ino, reservation)
        return reservation

    def for_commit(self, ino: int, *, new: bool) -> Reservation | None:
        """The reservation that a Commit turns into use; None if nothing is reserved.

        Raises NotFoundError for a `new` object that was not allocated here, QuotaExceededError.
        """
        if not new:
            if self.is_fresh(ino):
                raise InvalidArgumentError(f"object {ino} has no name yet: its first Commit needs one")
            return self._held.get(ino)
        if self._may_revive(ino):
            return self._revive(ino)
        if ino not in self._fresh:
            raise NotFoundError(f"object {ino} was not allocated by this attachment, or is published already")
        return self._held[ino]

    def committed(self, ino: int, reservation: Reservation | None) -> None:
        """The Commit is in the catalog."""
        self._fresh.discard(ino)
        if reservation is not None:
            self._admission.free(reservation)
        self.tidy(ino)

    def discarded(self, ino: int, from_block: int, freed_bytes: int) -> None:
        """Staged blocks were dropped; a fresh object dropped from block 0 does not count any more either."""
        reservation = self._held.get(ino)
        if reservation is None:
            return
        self._admission.free_staged(reservation, freed_bytes)
        if from_block == 0 and ino in self._fresh:
            self._admission.free_object(reservation)
            self._fresh.remove(ino)
            self._lapsed[ino] = None
            if len(self._lapsed) > LAPSED_MAX:
                self._lapsed.popitem(last=False)
        self.tidy(ino)

    def released(self, ino: int, freed_bytes: int) -> None:
        """A fresh object will never be published."""
        self.discarded(ino, 0, freed_bytes)
        self._lapsed.pop(ino, None)

    def tidy(self, ino: int) -> None:
        """Forget the reservation of `ino` if it holds nothing."""
        reservation = self._held.get(ino)
        if reservation is not None and reservation.idle and ino not in self._fresh:
            del self._held[ino]

    def close(self) -> None:
        """The attachment ends: nothing is reserved any more."""
        for reservation in self._held.values():
            self._admission.free(reservation)
        self._held.clear()
        self._fresh.clear()
        self._lapsed.clear()

    def _may_revive(self, ino: int) -> bool:
        return ino in self._lapsed or (ino not in self._fresh and self._owns(ino))

    def _revive(self, ino: int) -> Reservation:
        reservation = self._held.get(ino) or Reservation(self._tenant)
        self._admission.reserve_object(reservation)
        self._lapsed.pop(ino, None)
        self._fresh.add(ino)
        self._held[ino] = reservation
        return reservation

    def _hold(self, ino: int, reservation: Reservation) -> None:
        if len(self._held) >= limits.OPEN_FILES_MAX:
            raise TooManyOpenError(f"{len(self._held)} objects are being written by this attachment")
        self._held[ino] = reservation

    def _forget(self, ino: int) -> None:
        del self._held[ino]
        self._fresh.discard(ino)

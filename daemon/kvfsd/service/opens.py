"""Which objects a mount has open: they are not evicted, and what loses its names all the same stays until it is closed.

A mount numbers its open inodes; OpenObject and Commit bring that number, CloseObject ends it. Each may come twice.
"""

from __future__ import annotations

from kvfs import limits
from kvfs.errors import TooManyOpenError


class OpenObjects:
    """Open objects of one attachment; at most `limits.OPEN_FILES_MAX` pairs of object and number."""

    def __init__(self) -> None:
        self._serials: dict[int, set[int]] = {}
        self._count = 0
        self._nameless: set[int] = set()

    def __len__(self) -> int:
        return self._count

    def __contains__(self, ino: int) -> bool:
        return ino in self._serials

    def add(self, ino: int, serial: int) -> None:
        """The mount opened it; number 0 is that of mounts that tell nothing. TooManyOpenError."""
        if not serial:
            return
        serials = self._serials.setdefault(ino, set())
        if serial in serials:
            return
        if self._count >= limits.OPEN_FILES_MAX:
            if not serials:
                del self._serials[ino]
            raise TooManyOpenError(f"{self._count} objects are open in this attachment")
        serials.add(serial)
        self._count += 1

    def keep(self, ino: int) -> None:
        """An open object lost its last name, not through this mount: it is freed with its last close."""
        self._nameless.add(ino)

    def close(self, ino: int, serial: int) -> bool:
        """The mount closed it -> whether the object, which lost its names meanwhile, is to be freed now."""
        serials = self._serials.get(ino)
        if serials is None or serial not in serials:
            return False
        serials.discard(serial)
        self._count -= 1
        if serials:
            return False
        del self._serials[ino]
        if ino not in self._nameless:
            return False
        self._nameless.discard(ino)
        return True

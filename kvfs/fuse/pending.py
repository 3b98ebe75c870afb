"""Names that were created in this mount and are not committed yet, and those that never will be."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from kvfs.commands import Placement
from kvfs.openfile import OpenFile


class PendingNames:
    """(parent, name) -> the file that will be published there; handlers consult it before they ask the daemon."""

    LOST_MAX: Final = 1024

    def __init__(self) -> None:
        self._of_parent: dict[int, dict[bytes, OpenFile]] = {}
        self._lost: OrderedDict[tuple[int, bytes], OpenFile] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(names) for names in self._of_parent.values())

    def add(self, file: OpenFile) -> None:
        """Register a new file under the name it is to be published with."""
        assert file.entry is not None
        self._of_parent.setdefault(file.entry.parent, {})[file.entry.name] = file
        self._lost.pop((file.entry.parent, file.entry.name), None)

    def get(self, parent: int, name: bytes) -> OpenFile | None:
        """The pending file of that name."""
        names = self._of_parent.get(parent)
        return None if names is None else names.get(name)

    def remove(self, entry: Placement, file: OpenFile) -> None:
        """`file` was published, unlinked or dropped; no effect if it is not pending there."""
        names = self._of_parent.get(entry.parent)
        if names is not None and names.get(entry.name) is file:
            del names[entry.name]
            if not names:
                del self._of_parent[entry.parent]

    def move(self, file: OpenFile, entry: Placement) -> None:
        """`file` is to be published under another name than it was created with."""
        assert file.entry is not None
        self.remove(file.entry, file)
        file.entry = entry
        self.add(file)

    def lose(self, entry: Placement, file: OpenFile) -> None:
        """`file` is poisoned before it was published: nothing is found under its name, but who made it may clean up."""
        self.remove(entry, file)
        self._lost[entry.parent, entry.name] = file
        if len(self._lost) > self.LOST_MAX:
            self._lost.popitem(last=False)

    def lost(self, parent: int, name: bytes) -> OpenFile | None:
        """The file that was poisoned under a name. Of use only where nothing is found under that name."""
        return self._lost.get((parent, name))

    def forget_lost(self, parent: int, name: bytes) -> bool:
        """The name is unlinked -> whether a file was poisoned under it."""
        return self._lost.pop((parent, name), None) is not None

    def has_children(self, parent: int) -> bool:
        """A file is being created in directory `parent`."""
        return parent in self._of_parent

    def snapshot(self, parent: int) -> list[tuple[bytes, OpenFile]]:
        """All pending files of a directory."""
        return list(self._of_parent.get(parent, {}).items())

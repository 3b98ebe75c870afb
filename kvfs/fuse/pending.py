"""Names that were created in this mount and are not committed yet."""

from __future__ import annotations

from kvfs.commands import Placement
from kvfs.openfile import OpenFile


class PendingNames:
    """(parent, name) -> the file that will be published there; handlers consult it before they ask the daemon."""

    def __init__(self) -> None:
        self._of_parent: dict[int, dict[bytes, OpenFile]] = {}

    def __len__(self) -> int:
        return sum(len(names) for names in self._of_parent.values())

    def add(self, file: OpenFile) -> None:
        """Register a new file under the name it is to be published with."""
        assert file.entry is not None
        self._of_parent.setdefault(file.entry.parent, {})[file.entry.name] = file

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

    def has_children(self, parent: int) -> bool:
        """A file is being created in directory `parent`."""
        return parent in self._of_parent

    def snapshot(self, parent: int) -> list[tuple[bytes, OpenFile]]:
        """All pending files of a directory."""
        return list(self._of_parent.get(parent, {}).items())

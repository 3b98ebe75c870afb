"""Directories of vLLM's fs tier: which they are, which belong together, and what is remembered of their layout."""

from __future__ import annotations

import logging
import re
import stat
from typing import Final, NamedTuple

from kvfs import retention
from kvfs.errors import FormatError, NotFoundError, NoXattrError
from kvfsd.catalog import retention_flags as flags
from kvfsd.catalog.catalog import Catalog
from kvfsd.crypto.keys import KeyRing
from kvfsd.service import sealedxattrs
from kvfsd.service.sealedxattrs import OfTenant

log = logging.getLogger(__name__)

_BASE: Final = re.compile(rb".+_[0-9a-f]{12}", re.DOTALL)
"""vLLM's name of a base directory: the model's, and 12 hexadecimal digits of its fields' digest."""
_RANK: Final = re.compile(rb"_r[0-9]+")
LISTED_ROWS: Final = 256


class Layout(NamedTuple):
    """Value of `user.kvfs.layout`: SHA-256 of config.json; blocks below the generation are fenced (0: none)."""

    digest: bytes
    generation: int

    def value(self) -> bytes:
        """As the attribute has it."""
        return b"%s %d" % (self.digest, self.generation)

    @classmethod
    def of(cls, value: bytes) -> Layout:
        """From the attribute's value; FormatError."""
        found = re.fullmatch(rb"([0-9a-f]{64}) ([0-9]{1,19})", value)
        if found is None:
            raise FormatError(f"layout {value[:80]!r} is no digest with a generation")
        return cls(found[1], int(found[2]))


class Base(NamedTuple):
    """A directory with a config.json."""

    tenant: int
    directory: int


class Layouts:
    """Base directories of all tenants."""

    def __init__(self, catalog: Catalog, ring: KeyRing) -> None:
        self._catalog = catalog
        self._ring = ring

    def tops(self, base: Base) -> list[int]:
        """The base directory, and its ranks' beside it."""
        tops = [base.directory]
        entries = self._catalog.retention.names(*base, 1)
        if not entries:
            return tops
        parent, sealer = entries[0].parent, self._ring.names(base.tenant)
        own = sealer.open_name(parent, entries[0].name)
        cookie, end = 0, False
        while not end:
            listed, end = self._catalog.namespace.list_directory(base.tenant, parent, cookie, LISTED_ROWS)
            for one in listed:
                cookie = one.cookie
                if stat.S_ISDIR(one.inode.mode) and one.inode.ino != base.directory:
                    name = sealer.open_name(parent, one.name)
                    if name.startswith(own) and _RANK.fullmatch(name, len(own)):
                        tops.append(one.inode.ino)
        return tops

    def is_base(self, tenant: int, directory: int) -> bool:
        """Whether the directory has the name of one."""
        entries = self._catalog.retention.names(tenant, directory, 1)
        if not entries:
            return False
        name = self._ring.names(tenant).open_name(entries[0].parent, entries[0].name)
        return _BASE.fullmatch(name) is not None

    def layout(self, base: Base) -> Layout | None:
        """What is remembered; None: nothing, or it does not open."""
        try:
            return Layout.of(sealedxattrs.read_xattr(self._view(base), base.directory, retention.LAYOUT))
        except (NoXattrError, NotFoundError):
            return None
        except FormatError as error:
            log.warning("tenant %d: directory %d: %s", base.tenant, base.directory, error)
            return None

    def remember(self, base: Base, layout: Layout) -> bool:
        """Write it down, in a transaction; with a generation the directory is to be swept -> False if it is gone."""
        row = self._catalog.inodes.find(*base)
        if row is None:
            return False
        sealed = sealedxattrs.sealed_xattr(self._view(base), base.directory, retention.LAYOUT, layout.value())
        bits = row.flags | flags.LAYOUT | (flags.FENCED if layout.generation else 0)
        with self._catalog.transaction():
            self._catalog.inodes.update(base.tenant, row._replace(flags=bits))
            self._catalog.xattrs.put(base.tenant, base.directory, *sealed)  # changes the row as well
        return True

    def fenced_generation(self, base: Base) -> int:
        """The generation below which blocks are still to be swept; 0: none."""
        row = self._catalog.inodes.find(*base)
        layout = self.layout(base) if row is not None and row.flags & flags.FENCED else None
        return layout.generation if layout is not None else 0

    def swept(self, base: Base) -> None:
        """Nothing is left to be removed."""
        row = self._catalog.inodes.find(*base)
        if row is not None:
            with self._catalog.transaction():
                self._catalog.inodes.update(base.tenant, row._replace(flags=row.flags & ~flags.FENCED))

    def _view(self, base: Base) -> OfTenant:
        return OfTenant(base.tenant, self._catalog, self._ring.names(base.tenant))

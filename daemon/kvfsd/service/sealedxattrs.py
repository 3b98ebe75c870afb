"""Extended attributes as the catalog has them: names sealed for their object, values for object and name."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from kvfsd.catalog.catalog import Catalog
from kvfsd.crypto.keys import NameSealer

XATTR_NAME: Final = b"xattr-name"
XATTR_VALUE: Final = b"xattr-value:"
"""Purposes of sealed values (`NameSealer.seal_value`); an attribute's value is bound to its name too."""


class TenantView(Protocol):
    """What a session and `OfTenant` have in common."""

    @property
    def tenant(self) -> int:
        """Its number."""
        ...

    @property
    def catalog(self) -> Catalog:
        """The pool's."""
        ...

    @property
    def names(self) -> NameSealer:
        """Seals names of that tenant."""
        ...


class OfTenant(NamedTuple):
    """A tenant, for those who have no session of it."""

    tenant: int
    catalog: Catalog
    names: NameSealer


def sealed_name(view: TenantView, ino: int, name: bytes) -> bytes:
    """An attribute's name as its key in the catalog."""
    return view.names.seal_value(ino, XATTR_NAME, name)


def sealed_xattr(view: TenantView, ino: int, name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Name and value, sealed."""
    return sealed_name(view, ino, name), view.names.seal_value(ino, XATTR_VALUE + name, value)


def read_xattr(view: TenantView, ino: int, name: bytes) -> bytes:
    """The value in plaintext; NoXattrError, NotFoundError, FormatError (a damaged row)."""
    sealed = view.catalog.xattrs.get(view.tenant, ino, sealed_name(view, ino, name))
    return view.names.open_value(ino, XATTR_VALUE + name, sealed)


def read_names(view: TenantView, ino: int) -> tuple[bytes, ...]:
    """Names of all attributes; NotFoundError, FormatError."""
    sealed = view.catalog.xattrs.names(view.tenant, ino)
    return tuple(view.names.open_value(ino, XATTR_NAME, name) for name in sealed)

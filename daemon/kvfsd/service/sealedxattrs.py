"""Extended attributes as the catalog has them: names sealed for their object, values for object and name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvfsd.service.session import Session

XATTR_NAME: Final = b"xattr-name"
XATTR_VALUE: Final = b"xattr-value:"
"""Purposes of sealed values (`NameSealer.seal_value`); an attribute's value is bound to its name too."""


def sealed_name(session: Session, ino: int, name: bytes) -> bytes:
    """An attribute's name as its key in the catalog."""
    return session.names.seal_value(ino, XATTR_NAME, name)


def sealed_xattr(session: Session, ino: int, name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Name and value, sealed."""
    return sealed_name(session, ino, name), session.names.seal_value(ino, XATTR_VALUE + name, value)


def read_xattr(session: Session, ino: int, name: bytes) -> bytes:
    """The value in plaintext; NoXattrError, NotFoundError, FormatError (a damaged row)."""
    sealed = session.catalog.xattrs.get(session.tenant, ino, sealed_name(session, ino, name))
    return session.names.open_value(ino, XATTR_VALUE + name, sealed)


def read_names(session: Session, ino: int) -> tuple[bytes, ...]:
    """Names of all attributes; NotFoundError, FormatError."""
    sealed = session.catalog.xattrs.names(session.tenant, ino)
    return tuple(session.names.open_value(ino, XATTR_NAME, name) for name in sealed)

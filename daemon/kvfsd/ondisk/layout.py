"""How a structure on a medium is laid out: named little-endian fields, packed without gaps, checked by xxh3.

Every structure declares its fields once, here as data; codecs pack by it and `tests/kvfsd/ondisk` compares it with the
byte tables of docs/FORMAT.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import xxhash

from kvfs.errors import FormatError, InvalidArgumentError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Anything that holds contiguous bytes."""

CHECKSUM_BYTES: Final = 8
"""Every structure ends with the xxh3_64 (seed 0, little endian) of all bytes of it before."""


class Layout:
    """Fields of one structure as (name, `struct` code) pairs, in order; the last is its checksum.

    `what` is how error texts call the structure.
    """

    def __init__(self, what: str, fields: tuple[tuple[str, str], ...]) -> None:
        self.what = what
        self.fields = fields
        self._struct = struct.Struct("<" + "".join(code for _, code in fields))
        self.size_bytes = self._struct.size
        self._body = struct.Struct("<" + "".join(code for _, code in fields[:-1]))

    def rows(self) -> Iterator[tuple[int, int, str]]:
        """(offset, size, name) of each field, in order."""
        offset = 0
        for name, code in self.fields:
            size = struct.calcsize("<" + code)
            yield offset, size, name
            offset += size

    def pack(self, *values: Any) -> bytes:
        """The structure's bytes, its checksum added; InvalidArgumentError if a value does not fit its field."""
        try:
            body = self._body.pack(*values)
        except struct.error as error:
            raise InvalidArgumentError(f"{self.what}: a value does not fit its field: {error}: {values!r}") from None
        return body + xxhash.xxh3_64_intdigest(body).to_bytes(CHECKSUM_BYTES, "little")

    def unpack(self, data: Buffer, where: str) -> tuple[Any, ...]:
        """Values of all fields but the checksum, which is verified; FormatError names `where`.

        Bytes of `data` past the structure are ignored.
        """
        view = memoryview(data).cast("B")
        if len(view) < self.size_bytes:
            raise FormatError(f"{where}: {self.what}: want {self.size_bytes} bytes, have {len(view)}")
        have = xxhash.xxh3_64_intdigest(view[: self._body.size])
        *values, want = self._struct.unpack_from(view)
        if want != have:
            raise FormatError(f"{where}: {self.what} checksum: want {want:016x}, have {have:016x}")
        return tuple(values)

    def magic(self, data: Buffer, want: bytes, where: str) -> None:
        """FormatError unless `data` starts with `want`: told apart from damage because it is what strangers have."""
        have = bytes(memoryview(data).cast("B")[: len(want)])
        if have != want:
            raise FormatError(f"{where}: {self.what} magic: want {want!r}, have {have!r}")


def check(where: str, field: str, want: object, have: object) -> None:
    """FormatError naming `where` and `field` unless `have` equals `want`."""
    if want != have:
        raise FormatError(f"{where}: {field}: want {want!r}, have {have!r}")


def check_range(where: str, field: str, have: int, low: int, high: int) -> None:
    """FormatError naming `where` and `field` unless `low <= have <= high`."""
    if not low <= have <= high:
        raise FormatError(f"{where}: {field}: want {low} to {high}, have {have}")


def check_zero(where: str, field: str, data: Buffer) -> None:
    """FormatError naming `where`, `field` and the first byte of `data` that is not zero."""
    view = memoryview(data).cast("B")
    if bytes(len(view)) != view:
        offset = next(index for index, byte in enumerate(view) if byte)
        raise FormatError(f"{where}: {field}: want zeros, have {view[offset]:#04x} at byte {offset} of it")

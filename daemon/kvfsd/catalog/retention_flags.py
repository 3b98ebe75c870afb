"""How long an object is kept: pin, priority and expiry, packed into the `flags` of its inode row (pure).

They are part of the row, so that the indexes of eviction cannot disagree with it and the metadata log carries them. On
a directory the same bits are what new objects below it get, and the time is one to live instead of a moment.

    bit 0     quarantined (rows.INODE_QUARANTINED)
    bit 1     pinned
    bits 2-4  pin, priority, time to live were set here (a directory's "0" is not the same as nothing said)
    bit 5     directory: it has vLLM's config.json, its digest is known
    bit 6     directory: older blocks below it are fenced and being removed
    bits 8-15 priority, two's complement
    bits 16-  seconds: of a file the moment it expires (since the epoch, 0 never), of a directory the time to live
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kvfs import retention

PINNED: Final = 1 << 1
PIN_SET: Final = 1 << 2
PRIORITY_SET: Final = 1 << 3
TTL_SET: Final = 1 << 4
LAYOUT: Final = 1 << 5
FENCED: Final = 1 << 6
PRIORITY_SHIFT: Final = 8
TIME_SHIFT: Final = 16
EXPIRES: Final = 1 << TIME_SHIFT
"""Flags at or above this have a time in them."""
_TIME_MAX: Final = (1 << 46) - 1
_BITS_OF: Final = {retention.PIN: PIN_SET, retention.PRIORITY: PRIORITY_SET, retention.TTL: TTL_SET}


class Settings(NamedTuple):
    """What was said about keeping something; None: nothing, so that what is above it decides."""

    pin: int | None = None
    priority: int | None = None
    ttl_s: int | None = None

    def under(self, above: Settings) -> Settings:
        """These, and where they say nothing, what `above` says."""
        return Settings(*(mine if mine is not None else other for mine, other in zip(self, above, strict=True)))

    @property
    def complete(self) -> bool:
        """Nothing above can change them."""
        return None not in self


def priority_of(flags: int) -> int:
    """-128 .. 127; lower ones go first."""
    return (((flags >> PRIORITY_SHIFT) & 0xFF) ^ 0x80) - 0x80


def expiry_s(flags: int) -> int:
    """Of a file: the second in which it expires, 0 for never."""
    return flags >> TIME_SHIFT


def is_expired(flags: int, now_ns: int) -> bool:
    """Whether a file's time is over."""
    return flags >= EXPIRES and (flags >> TIME_SHIFT) * 1_000_000_000 <= now_ns


def settings_of_directory(flags: int) -> Settings:
    """What a directory says about new objects below it."""
    return Settings(
        pin=(flags & PINNED) // PINNED if flags & PIN_SET else None,
        priority=priority_of(flags) if flags & PRIORITY_SET else None,
        ttl_s=flags >> TIME_SHIFT if flags & TTL_SET else None,
    )


def with_setting(flags: int, name: bytes, value: int | None, expires_s: int) -> int:
    """The flags after setting one of `kvfs.retention`'s names to `value`, or removing it (None).

    `expires_s` is what stands for a time to live that is not 0: of a file the moment, of a directory the span.
    """
    known = _BITS_OF[name]
    flags = flags & ~known if value is None else flags | known
    if name == retention.PIN:
        return flags | PINNED if value else flags & ~PINNED
    if name == retention.PRIORITY:
        return flags & ~(0xFF << PRIORITY_SHIFT) | ((value or 0) & 0xFF) << PRIORITY_SHIFT
    return flags & (EXPIRES - 1) | (min(expires_s, _TIME_MAX) if value else 0) << TIME_SHIFT

"""Sizes as people write and read them; binary units only, so that nothing has two meanings."""

from __future__ import annotations

import re
from typing import Final

from kvfs.errors import ConfigError

SIZE_MAX_BYTES: Final = 1 << 62
_UNITS: Final[dict[str, int]] = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SHOWN: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,6}))?([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


def parse_size_bytes(text: str, what: str) -> int:
    """Bytes meant by `text`: 4096, 64M, 64MiB, 1.5t (k m g t p, binary, case does not matter).

    Raises:
        ConfigError: `text` is no size, not a whole number of bytes, or over 2^62; `what` names it.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{what}: {text!r} is no size; write for example 4096, 64M or 1.5T")
    whole, fraction, unit = found.group(1), found.group(2) or "", found.group(3).lower()
    parts: int = 10 ** len(fraction)
    scaled, rest = divmod(int(whole + fraction) << _UNITS[unit], parts)
    if rest:
        raise ConfigError(f"{what}: {text!r} is not a whole number of bytes")
    if scaled > SIZE_MAX_BYTES:
        raise ConfigError(f"{what}: {text!r} is over 4096P")
    return scaled


def format_bytes(count: int) -> str:
    """`count` bytes with three or four significant digits: 0 B, 1023 B, 1.5 KiB, 64.0 GiB."""
    if abs(count) < 1024:
        return f"{count} B"
    power = min((abs(count).bit_length() - 1) // 10, len(_SHOWN))
    return f"{count / (1 << 10 * power):.1f} {_SHOWN[power - 1]}"

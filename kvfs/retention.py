"""Extended attributes that say how long an object is kept: names, values, and the words of its state (pure).

Both halves read them: the mount refuses a bad value of a file that is not published yet, the DPU half trusts no mount.
"""

from __future__ import annotations

import re
from typing import Final

from kvfs.errors import InvalidArgumentError, NotPermittedError

PREFIX: Final = b"user.kvfs."
"""The name space that is kvfs's own: other names in it are refused, so that they can get a meaning later."""
PIN: Final = b"user.kvfs.pin"
""""1" or "0": a pinned object is never evicted."""
PRIORITY: Final = b"user.kvfs.priority"
"""PRIORITY_MIN .. PRIORITY_MAX, 0 unless set: what has a lower one is evicted first, however recently it was used."""
TTL: Final = b"user.kvfs.ttl"
"""Seconds from the last change of the content, or from when this was set; then the object is a miss. 0: no end."""
STATE: Final = b"user.kvfs.state"
"""Read only: words of `STATE_WORDS`, one space between them, in that order. It is not listed."""
LAYOUT: Final = b"user.kvfs.layout"
"""Read only, on a directory with vLLM's config.json: its digest, see docs/OPERATIONS.md, layout guard."""
SETTINGS: Final = (PIN, PRIORITY, TTL)

PRIORITY_MIN: Final = -100
PRIORITY_MAX: Final = 100
TTL_MAX_S: Final = 10 * 366 * 86_400
STATE_WORDS: Final = ("directory", "sealed", "staged", "open", "pinned", "expiring")
"""sealed: published, on the media. staged: being written by this mount, not published. open: some mount has it open."""

_BOUNDS: Final = {PIN: (0, 1), PRIORITY: (PRIORITY_MIN, PRIORITY_MAX), TTL: (0, TTL_MAX_S)}
_NUMBER: Final = re.compile(rb"-?[0-9]{1,10}")


def parse_setting(name: bytes, value: bytes) -> int:
    """The number that an attribute of SETTINGS is set to.

    Raises InvalidArgumentError naming attribute and bounds for any other name with PREFIX, or a value that is no number
    in bounds; NotPermittedError for STATE and LAYOUT.
    """
    check_name(name)
    least, most = _BOUNDS[name]
    number = int(value) if _NUMBER.fullmatch(value) else most + 1
    if not least <= number <= most:
        raise InvalidArgumentError(f"{name.decode()}: {value[:20]!r} is not {least} .. {most}")
    return number


def check_name(name: bytes) -> None:
    """InvalidArgumentError unless `name` can be set; NotPermittedError for STATE and LAYOUT."""
    if name in (STATE, LAYOUT):
        raise NotPermittedError(f"{name.decode()} is read only")
    if name not in _BOUNDS:
        known = ", ".join(one.decode() for one in SETTINGS)
        raise InvalidArgumentError(f"{name[:40]!r}: kvfs has {known} and {STATE.decode()}")


def state_text(words: set[str]) -> bytes:
    """The value of STATE."""
    return " ".join(word for word in STATE_WORDS if word in words).encode()

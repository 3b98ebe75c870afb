"""A tenant's access list: who may attach to it through a daemon (pure)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Access:
    """Users and groups of this machine, and digests of mount credentials."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    credential_digests: frozenset[bytes] = frozenset()


def credential_digest(credential: bytes) -> bytes:
    """What is kept of a mount credential. It is 32 random bytes, so it needs no salt and no stretching."""
    return hashlib.sha256(b"kvfs/v1/mount-credential" + credential).digest()

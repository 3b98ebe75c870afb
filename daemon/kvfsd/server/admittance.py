"""Who may attach to a tenant: decided by what the kernel says of the peer, or by a mount credential (pure).

A tenant's access list names uids, gids and SHA-256 digests of credentials. The user that the daemon itself runs as may
attach to every tenant: it can read the keys anyway. Nobody else may, root included, unless the list says so.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from kvfs.errors import PermissionDeniedError
from kvfsd.pool.access import Access, credential_digest


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as the kernel knows it (SO_PEERCRED, SO_PEERGROUPS; unix(7), socket(7))."""

    pid: int
    uid: int
    gids: frozenset[int]

    def __str__(self) -> str:
        return f"process {self.pid} of uid {self.uid}"


def check(tenant: str, access: Access | None, peer: Peer, credential: bytes, own_uid: int) -> str:
    """By what right the peer may attach: "owner", "uid", "gid" or "credential". `access` None: there is no such tenant.

    Raises PermissionDeniedError, with one text whether the tenant exists or not: names are not for strangers to try.
    """
    if access is not None:
        if credential:
            digest = credential_digest(credential)
            if any(hmac.compare_digest(digest, known) for known in access.credential_digests):
                return "credential"
        elif peer.uid == own_uid:
            return "owner"
        elif peer.uid in access.uids:
            return "uid"
        elif peer.gids & access.gids:
            return "gid"
    shown = "the credential does not open it" if credential else f"uid {peer.uid} may not attach to it"
    raise PermissionDeniedError(f"tenant {tenant!r}: there is none, or {shown}")

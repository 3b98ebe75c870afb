"""Who may attach: the kernel's word or a credential, nothing else."""

from __future__ import annotations

import os
import socket

import pytest

from kvfs.errors import PermissionDeniedError
from kvfsd.pool.access import Access, credential_digest
from kvfsd.server.admittance import Peer, check
from kvfsd.server.peers import peer_of

SECRET = bytes(range(32))
ACCESS = Access(frozenset({1000}), frozenset({50}), frozenset({credential_digest(SECRET)}))
OWN = 900


def peer(uid: int, *gids: int) -> Peer:
    return Peer(1, uid, frozenset(gids))


def test_the_daemons_own_user_a_listed_user_or_group_and_a_credential_may_attach() -> None:
    assert check("t", ACCESS, peer(OWN), b"", OWN) == "owner"
    assert check("t", Access(), peer(OWN), b"", OWN) == "owner"
    assert check("t", ACCESS, peer(1000), b"", OWN) == "uid"
    assert check("t", ACCESS, peer(7, 3, 50), b"", OWN) == "gid"
    assert check("t", ACCESS, peer(7), SECRET, OWN) == "credential"


@pytest.mark.parametrize("uid", [0, 7, 50])
def test_nobody_else_may_not_even_root(uid: int) -> None:
    with pytest.raises(PermissionDeniedError, match=f"uid {uid}"):
        check("t", ACCESS, peer(uid, 1000), b"", OWN)


def test_a_wrong_credential_is_not_made_up_for_by_the_user() -> None:
    for uid in (OWN, 1000):
        with pytest.raises(PermissionDeniedError, match="credential"):
            check("t", ACCESS, peer(uid, 50), b"x" * 32, OWN)


def test_a_missing_tenant_and_a_refused_one_look_the_same() -> None:
    texts = []
    for access in (None, ACCESS):
        with pytest.raises(PermissionDeniedError) as caught:
            check("t", access, peer(7), b"", OWN)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    with pytest.raises(PermissionDeniedError):
        check("t", None, peer(OWN), b"", OWN)


def test_the_kernel_names_process_user_and_all_groups() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        found = peer_of(ours)
    assert (found.pid, found.uid) == (os.getpid(), os.getuid())
    assert found.gids == {os.getgid(), *os.getgroups()}

"""How a connection of the queue pair begins and ends: hello, welcome, farewell (docs/PROTOCOL.md, connections).

The host speaks first. What it says of itself is a claim; the daemon decides by the peer's credentials or by the
mount credential, never by a name alone.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kvfs import limits
from kvfs.errors import ProtocolError, Status

SHARED_SLOTS: Final = 1
"""Payloads lie in memory that both sides share (kvfs.sharedslots); the welcome brings its descriptor."""
FEATURES_KNOWN: Final = SHARED_SLOTS
"""Optional features that this code speaks, a bit each; both sides use what both know."""
CREDENTIAL_BYTES: Final = 32
TOKEN_BYTES: Final = 16
_NUMBER_MAX: Final = (1 << 63) - 1


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """The host's first frame: the tenant it wants, what it has to show, and the attachment that it goes on with."""

    features: int
    tenant: str
    credential: bytes = b""
    """A mount credential (CREDENTIAL_BYTES), or nothing: then the peer's uid and gid count."""
    attachment: int = 0
    """0: a new attachment."""
    token: bytes = b""
    """What the daemon gave out with `attachment`; whoever has it may resume."""


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """The daemon's answer. With a status other than OK it ends the connection, and only `detail` counts beside it."""

    status: int
    detail: str = ""
    features: int = 0
    attachment: int = 0
    token: bytes = b""
    resumed: bool = False
    """False although an attachment was named: the daemon does not know it, what was not committed is lost."""
    data_depth: int = 0
    """Data commands (ReadBlock, WriteBlock, Sync) that the host may have outstanding."""
    grace_ms: int = 0
    """How long the attachment outlives its connection."""


class Farewell(msgspec.Struct, frozen=True, array_like=True):
    """From the host: detach for good. From the daemon, in answer: done, nothing uncommitted is left."""


def check_hello(hello: Hello) -> None:
    """Bounds of a hello. Raises ProtocolError."""
    if not 0 <= hello.features <= _NUMBER_MAX:
        raise ProtocolError(f"hello: features {hello.features} are not 0 .. 2^63-1")
    if not 0 < len(hello.tenant.encode("utf-8", "surrogatepass")) <= limits.TENANT_NAME_MAX_BYTES:
        raise ProtocolError(f"hello: a tenant's name is 1 .. {limits.TENANT_NAME_MAX_BYTES} bytes")
    if len(hello.credential) not in (0, CREDENTIAL_BYTES):
        raise ProtocolError(f"hello: a credential of {len(hello.credential)} bytes, want {CREDENTIAL_BYTES} or none")
    if not 0 <= hello.attachment <= _NUMBER_MAX:
        raise ProtocolError(f"hello: attachment {hello.attachment} is not 0 .. 2^63-1")
    if len(hello.token) != (TOKEN_BYTES if hello.attachment else 0):
        raise ProtocolError(f"hello: a token of {len(hello.token)} bytes with attachment {hello.attachment}")


def check_welcome(welcome: Welcome) -> None:
    """Bounds of a welcome. Raises ProtocolError."""
    if not 0 <= welcome.status <= max(Status):
        raise ProtocolError(f"welcome: unknown status {welcome.status}")
    if welcome.status != Status.OK:
        return
    if not 0 < welcome.attachment <= _NUMBER_MAX or len(welcome.token) != TOKEN_BYTES:
        raise ProtocolError(f"welcome: attachment {welcome.attachment} with a token of {len(welcome.token)} bytes")
    if not 0 < welcome.data_depth < limits.QUEUE_DEPTH or not 0 <= welcome.grace_ms <= _NUMBER_MAX:
        raise ProtocolError(f"welcome: data depth {welcome.data_depth}, grace {welcome.grace_ms} ms")

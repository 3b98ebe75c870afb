"""Attachments of a daemon: each is a session that outlives its connections, for a time, and restarts of the daemon.

An attachment ends when its mount says farewell, or GRACE_MS after its last connection broke. However the daemon ends,
attachments stay in the catalog with what they staged, and the next daemon waits for them as for any that lost its
connection. After a restart of the machine there are no mounts left that could come back.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Final

import trio

from kvfs import limits
from kvfs.errors import DeadlineExceededError, NotFoundError, PermissionDeniedError, TooManyOpenError
from kvfs.handshake import TOKEN_BYTES, Hello
from kvfsd.catalog.attachments import KeptAttachment
from kvfsd.server.connection import Connection
from kvfsd.service.service import Service
from kvfsd.service.session import Session

log = logging.getLogger(__name__)

GRACE_MS: Final = 60_000
"""How long an attachment without a connection is kept: twice what a command waits, and a restart takes seconds."""
ATTACHMENTS_PER_TENANT_MAX: Final = 256
INOS_PER_RUN: Final = 1024
"""Object numbers given to an attachment at a time: a transaction for so many new files."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Attachment:
    """One mount's time on the pool."""

    def __init__(self, tenant: str, session: Session, token_digest: bytes) -> None:
        self.tenant = tenant
        self.session = session
        self.token_digest = token_digest
        self.connection: Connection | None = None
        self.returned = trio.Event()
        """Set when a connection takes it up, or it ends; a new one each time that the connection is lost."""
        self._next = self._stop = 0
        session.next_ino = self._next_ino

    @property
    def number(self) -> int:
        """Its number, never used again."""
        return self.session.attachment

    def _next_ino(self) -> int:
        """A number for a new object, from a run that the catalog knows as this attachment's."""
        if self._next == self._stop:
            catalog = self.session.catalog
            self._next = catalog.database.next_inos(INOS_PER_RUN)
            self._stop = self._next + INOS_PER_RUN
            with catalog.transaction():
                catalog.attachments.give_inos(self.number, self._next, INOS_PER_RUN)
        self._next += 1
        return self._next - 1


class AttachmentTable:
    """All attachments of a daemon. Timers run in `nursery`."""

    def __init__(self, service: Service, nursery: trio.Nursery, grace_ms: int = GRACE_MS) -> None:
        self._service = service
        self._nursery = nursery
        self.grace_ms = grace_ms
        self._attachments: dict[int, Attachment] = {}
        self._boot = _boot_id()
        self._suspended = False

    def __len__(self) -> int:
        return len(self._attachments)

    def of_tenant(self, tenant: str) -> int:
        """How many attachments the tenant has."""
        return sum(attachment.tenant == tenant for attachment in self._attachments.values())

    def restore(self) -> None:
        """Take over what the daemon before left: it is kept for the time of grace from now on."""
        catalog = self._service.catalog
        for row in catalog.attachments.kept():
            try:
                if row.boot != self._boot:
                    raise NotFoundError("the machine was restarted since")
                name = self._service.pool.tenants.name_of(row.tenant)
                session = self._service.attach(name, resume=row.attachment)
            except NotFoundError as error:
                log.info("attachment %d of the daemon before is dropped: %s", row.attachment, error)
                catalog.attachments.recover(row.attachment)
                continue
            session.adopt()
            attachment = Attachment(name, session, row.token_digest)
            self._attachments[row.attachment] = attachment
            self.lost(attachment)

    async def attach(self, hello: Hello) -> tuple[Attachment, bytes]:
        """The attachment that `hello` resumes, or a new one, and its token. Nothing runs on it any more.

        The caller says `connected` before its next checkpoint.

        Raises:
            NotFoundError: the tenant is gone.
            PermissionDeniedError: the token is wrong, or the attachment is another tenant's.
            TooManyOpenError: the tenant has ATTACHMENTS_PER_TENANT_MAX.
            DeadlineExceededError: what runs on its old connection does not end, or the daemon does.
        """
        self._refuse_if_suspended()
        known = self._attachments.get(hello.attachment)
        if known is None:
            return self._new(hello.tenant)
        if known.tenant != hello.tenant or not hmac.compare_digest(known.token_digest, _digest(hello.token)):
            raise PermissionDeniedError(f"attachment {hello.attachment}: the token does not open it")
        if known.connection is not None:
            await known.connection.give_way()
            self._refuse_if_suspended()
        if self._attachments.get(hello.attachment) is not known or known.connection is not None:
            raise DeadlineExceededError(f"attachment {hello.attachment} was taken up by somebody else")
        return known, hello.token

    def _refuse_if_suspended(self) -> None:
        if self._suspended:
            raise DeadlineExceededError("the daemon is ending")

    def _new(self, tenant: str) -> tuple[Attachment, bytes]:
        if self.of_tenant(tenant) >= ATTACHMENTS_PER_TENANT_MAX:
            raise TooManyOpenError(f"tenant {tenant} has {ATTACHMENTS_PER_TENANT_MAX} attachments")
        session = self._service.attach(tenant)
        token = self._service.pool.ports.randomness.token(TOKEN_BYTES)
        attachment = Attachment(tenant, session, _digest(token))
        catalog = self._service.catalog
        row = KeptAttachment(session.attachment, session.tenant, attachment.token_digest, self._boot)
        with catalog.transaction():
            catalog.attachments.keep(row)
        self._attachments[session.attachment] = attachment
        return attachment, token

    def connected(self, attachment: Attachment, connection: Connection) -> None:
        """The connection serves the attachment from now on."""
        attachment.connection = connection
        attachment.returned.set()

    def lost(self, attachment: Attachment) -> None:
        """Its connection is gone, and nothing runs on it any more: the time of grace begins."""
        attachment.connection = None
        attachment.returned = trio.Event()
        if not attachment.session.closed:
            self._nursery.start_soon(self._expire, attachment, attachment.returned)

    async def _expire(self, attachment: Attachment, returned: trio.Event) -> None:
        with trio.move_on_after(self.grace_ms / 1000):
            await returned.wait()
        if not returned.is_set():
            log.info("attachment %d of tenant %s did not come back: dropped", attachment.number, attachment.tenant)
            await self.end(attachment)

    async def end(self, attachment: Attachment) -> None:
        """Detach for good: what is not committed is dropped."""
        self._attachments.pop(attachment.number, None)
        attachment.returned.set()
        await attachment.session.aclose()

    async def suspend_all(self) -> None:
        """The daemon ends, its attachments do not: the next one restores them. No connection serves them any more."""
        self._suspended = True
        for attachment in list(self._attachments.values()):
            attachment.returned.set()
            await attachment.session.suspend()
        self._attachments.clear()


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(b"kvfs/v1/attachment-token" + token).digest()


def _boot_id() -> bytes:
    try:
        return _BOOT_ID.read_bytes().strip()[: limits.NAME_MAX_BYTES]
    except OSError:
        return b""

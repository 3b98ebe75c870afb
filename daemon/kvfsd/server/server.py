"""The listening side: connections in, each with its hello and its right to attach, and an orderly end."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from kvfs import limits, wire
from kvfs.buffers import BufferPool
from kvfs.errors import KvfsError, ProtocolError, TooManyOpenError
from kvfs.framestream import ConnectionLostError, FrameStream, receive_within
from kvfs.handshake import FEATURES_KNOWN, SHARED_SLOTS, Hello, Welcome
from kvfs.sharedslots import SharedSlots
from kvfsd.pool.access import Access
from kvfsd.server import admittance
from kvfsd.server.admittance import Peer
from kvfsd.server.attachments import GRACE_MS, Attachment, AttachmentTable
from kvfsd.server.connection import DATA_DEPTH, Connection, refusal
from kvfsd.server.peers import peer_of
from kvfsd.service.service import Service

log = logging.getLogger(__name__)
audit = logging.getLogger("kvfsd.audit")

CONNECTIONS_MAX: Final = 1024
STRANGERS_PER_UID_MAX: Final = 16
"""Connections of one user that have not been let in yet."""
HELLO_DEADLINE_MS: Final = 5_000
PAYLOADS_KEPT: Final = 32
ACCEPT_PAUSE_MS: Final = 100


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server behaves."""

    access: Callable[[str], Access | None] = lambda tenant: Access()
    """Who may attach to a tenant; None: there is no such tenant."""
    grace_ms: int = GRACE_MS


class Server:
    """Serves queue pairs of one pool's service on listening sockets; `run` it in a nursery, `drain` it at the end."""

    def __init__(self, service: Service, options: ServerOptions | None = None) -> None:
        self._service = service
        self._options = options or ServerOptions()
        self._payloads = BufferPool(limits.BLOCK_BYTES, PAYLOADS_KEPT)
        self._connections: set[Connection] = set()
        self._open = 0
        self._strangers: Counter[int] = Counter()
        self._accepting = trio.CancelScope()
        self._stopped = trio.Event()
        self.table: AttachmentTable | None = None

    def of_tenant(self, tenant: str) -> int:
        """How many attachments a tenant has."""
        return self.table.of_tenant(tenant) if self.table is not None else 0

    async def run(self, listeners: list[socket.socket]) -> None:
        """Accept and serve until `drain`; owns and closes the listeners."""
        try:
            async with trio.open_nursery() as nursery:
                self.table = AttachmentTable(self._service, nursery, self._options.grace_ms)
                self.table.restore()
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept_all, listener, nursery)
                await self._stopped.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                if self.table is not None:
                    await self.table.suspend_all()

    async def drain(self, deadline_ms: int = limits.DRAIN_DEADLINE_MS) -> None:
        """Stop accepting, let commands in flight finish and answer, end the connections, keep the attachments."""
        self._accepting.cancel()
        async with trio.open_nursery() as nursery:
            for connection in list(self._connections):
                nursery.start_soon(connection.drain, deadline_ms)
        if self.table is not None:
            await self.table.suspend_all()
        self._stopped.set()

    # --- connections -----------------------------------------------------------------------------------

    async def _accept_all(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        with listener:
            listener.setblocking(False)
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:  # out of descriptors, or the peer is gone already
                    log.warning("accept failed: %s", error.strerror)
                    await trio.sleep(ACCEPT_PAUSE_MS / 1000)
                    continue
                nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: socket.socket) -> None:
        """One connection from accept to its end. A bug in here costs this connection, never the others."""
        stream = FrameStream(connection, wire.Kind.HELLO, take_payload=self._take_payload)
        self._open += 1
        try:
            await self._converse(stream, peer_of(connection))
        except (ConnectionLostError, KvfsError) as error:
            log.info("a connection ended: %s", error)
        except Exception:
            log.exception("a connection failed")
            self._service.metrics.counters.internal_errors += 1
            if self._service.options.raise_internal_errors:
                raise
        finally:
            self._open -= 1
            stream.close()

    def _take_payload(self, length: int) -> memoryview:
        return memoryview(self._payloads.acquire())[:length]

    async def _converse(self, stream: FrameStream, peer: Peer) -> None:
        attachment, connection, welcome = await self._let_in(stream, peer)
        table = self.table
        assert table is not None
        self._connections.add(connection)
        try:
            await connection.serve(wire.encode_welcome(welcome))
        finally:
            self._connections.discard(connection)
            table.lost(attachment)
        if connection.farewell:
            await table.end(attachment)
            await stream.send(wire.encode_farewell())

    async def _let_in(self, stream: FrameStream, peer: Peer) -> tuple[Attachment, Connection, Welcome]:
        """Take the hello: attachment, connection, and the welcome to be sent. A refusal is told and raised."""
        self._strangers[peer.uid] += 1
        try:
            if self._open > CONNECTIONS_MAX or self._strangers[peer.uid] > STRANGERS_PER_UID_MAX:
                raise TooManyOpenError("too many connections")
            hello = (await receive_within(stream, HELLO_DEADLINE_MS)).message
            if not isinstance(hello, Hello):
                raise ProtocolError("a connection that does not begin with a hello")
            self._check_right(hello, peer)
            assert self.table is not None
            attachment, token = await self.table.attach(hello)
        except KvfsError as error:
            await stream.send(wire.encode_welcome(Welcome(*refusal(error))))
            raise
        finally:
            self._strangers[peer.uid] -= 1
            if not self._strangers[peer.uid]:
                del self._strangers[peer.uid]
        connection = Connection(stream, attachment.session, self._payloads)
        self.table.connected(attachment, connection)
        stream.reader.accept(wire.Kind.REQUEST, wire.Kind.FAREWELL)
        if hello.features & SHARED_SLOTS:
            stream.reader.shared = SharedSlots.create(DATA_DEPTH)
        return attachment, connection, self._welcome(hello, attachment, token)

    def _welcome(self, hello: Hello, attachment: Attachment, token: bytes) -> Welcome:
        return Welcome(
            status=0,
            features=hello.features & FEATURES_KNOWN,
            attachment=attachment.number,
            token=token,
            resumed=attachment.number == hello.attachment,
            data_depth=DATA_DEPTH,
            grace_ms=self._options.grace_ms,
        )

    def _check_right(self, hello: Hello, peer: Peer) -> None:
        try:
            access = self._options.access(hello.tenant)
            right = admittance.check(hello.tenant, access, peer, hello.credential, os.geteuid())
        except KvfsError as error:
            self._service.metrics.counters.attachments_refused += 1
            audit.warning("attach refused: %s: %s", peer, error)
            raise
        audit.info("attach: %s as tenant %r by %s", peer, hello.tenant, right)

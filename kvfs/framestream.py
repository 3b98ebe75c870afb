"""A connection of the queue pair: frames over a unix stream socket, with deadlines for a peer that stalls."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

import trio

from kvfs import limits
from kvfs.errors import DeadlineExceededError
from kvfs.framereader import FrameReader, new_payload
from kvfs.queuepair import Buffer
from kvfs.wire import Frame, Kind

HALF_FRAME_DEADLINE_MS: Final = 10_000
"""A frame that has begun must go on within this time; between frames a peer may be silent for ever."""
SEND_DEADLINE_MS: Final = 20_000
"""One frame must be taken by the peer within this time, else the connection is dropped."""
SOCKET_BUFFER_BYTES: Final = 2 * limits.MIB
"""Asked for with SO_SNDBUF: a block in one send (the kernel grants net.core.wmem_max, 208 KiB by default)."""
FRAMES_PER_TURN: Final = 32
"""Frames taken without a checkpoint, from a peer that is never silent."""


class ConnectionLostError(Exception):
    """The other side is gone, or this side gave it up. Never leaves the transport."""


class FrameStream:
    """One connected socket, non-blocking, owned by the stream. One task receives; any task may send."""

    def __init__(
        self, connection: socket.socket, *accept: Kind, take_payload: Callable[[int], memoryview] = new_payload
    ) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._socket = connection
        self.reader = FrameReader(*accept, take_payload=take_payload)
        self.descriptors: list[int] | None = None
        """Descriptors that came with what was received; None: they are not taken."""
        self._taken = 0
        self._sending = False
        self._senders = trio.lowlevel.ParkingLot()
        self.closed = False

    # --- receiving -------------------------------------------------------------------------------------

    async def receive(self) -> Frame | None:
        """The next frame; None when the peer has ended the connection between two frames.

        Raises:
            ConnectionLostError: it is broken, or was closed here.
            ProtocolError: the peer breaks the protocol.
            DeadlineExceededError: the peer stalls inside a frame.
        """
        while (frame := self.reader.next_frame()) is None:
            if not await self._receive_some():
                self.reader.finish()
                return None
        self._taken += 1
        if self._taken >= FRAMES_PER_TURN:
            self._taken = 0
            await trio.lowlevel.checkpoint()
        return frame

    async def _receive_some(self) -> int:
        while True:
            if self.closed:
                raise ConnectionLostError("closed here")
            try:
                with self.reader.wanted() as view:
                    count = self._socket.recv_into(view) if self.descriptors is None else self._receive_message(view)
            except (BlockingIOError, InterruptedError):
                await self._wait_readable()
                continue
            except OSError as error:
                raise ConnectionLostError(str(error)) from None
            self.reader.received(count)
            return count

    def _receive_message(self, view: memoryview) -> int:
        """As recv_into, and keep the descriptor that comes along."""
        space = socket.CMSG_SPACE(array.array("i").itemsize)
        count, ancillary, _, _ = self._socket.recvmsg_into([view], space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and self.descriptors is not None:
                self.descriptors += array.array("i", data)
        return count

    async def _wait_readable(self) -> None:
        self._taken = 0
        deadline_s = HALF_FRAME_DEADLINE_MS / 1000 if self.reader.inside_frame else float("inf")
        with trio.move_on_after(deadline_s) as scope:
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except (trio.ClosedResourceError, OSError) as error:
                raise ConnectionLostError(str(error)) from None
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"the peer sent half a frame and no more for {HALF_FRAME_DEADLINE_MS} ms")

    # --- sending ---------------------------------------------------------------------------------------

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Send one frame, whole, after those whose sending has begun; without a checkpoint when the socket takes it.

        A frame that cannot be finished (deadline, cancellation) ends the connection: the peer has lost the boundary.

        Raises:
            ConnectionLostError: the connection is broken, was closed here, or the peer does not take the frame.
        """
        while self._sending:
            await self._senders.park()
        if self.closed:
            raise ConnectionLostError("closed here")
        self._sending = True
        try:
            await self._send(buffers)
        except OSError as error:
            self.close()
            raise ConnectionLostError(str(error)) from None
        except BaseException:
            self.close()
            raise
        finally:
            self._sending = False
            self._senders.unpark()

    def send_with_descriptor(self, buffers: Sequence[Buffer], descriptor: int) -> None:
        """Send a first, short frame with a descriptor. ConnectionLostError if the socket does not take it whole."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            if self._socket.sendmsg(buffers, rights) == sum(memoryview(buffer).nbytes for buffer in buffers):
                return
        except OSError as error:
            self.close()
            raise ConnectionLostError(str(error)) from None
        self.close()
        raise ConnectionLostError("the socket did not take the welcome")

    async def _send(self, buffers: Sequence[Buffer]) -> None:
        try:
            sent = self._socket.sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            sent = 0
        total = sum(memoryview(buffer).nbytes for buffer in buffers)
        if sent == total:
            return
        with trio.move_on_after(SEND_DEADLINE_MS / 1000) as scope:
            await self._send_rest(_rest(buffers, sent))
        if scope.cancelled_caught:
            raise ConnectionLostError(f"the peer did not take a frame within {SEND_DEADLINE_MS} ms")

    async def _send_rest(self, views: list[memoryview]) -> None:
        while views:
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except trio.ClosedResourceError:
                raise ConnectionLostError("closed here") from None
            with contextlib.suppress(BlockingIOError, InterruptedError):
                views = _rest(views, self._socket.sendmsg(views))

    # --- end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection at once; whoever waits on it gets ConnectionLostError. Twice is harmless."""
        if self.closed:
            return
        self.closed = True
        for descriptor in self.descriptors or ():
            os.close(descriptor)
        self.descriptors = None
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._senders.unpark_all()


def _rest(buffers: Sequence[Buffer], sent: int) -> list[memoryview]:
    """What is left of `buffers` after `sent` bytes."""
    rest: list[memoryview] = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        if sent >= view.nbytes:
            sent -= view.nbytes
        else:
            rest.append(view[sent:])
            sent = 0
    return rest


async def receive_within(stream: FrameStream, deadline_ms: int) -> Frame:
    """The next frame, which must come within `deadline_ms`. Raises as `receive`; ConnectionLostError at the end too."""
    with trio.move_on_after(deadline_ms / 1000):
        frame = await stream.receive()
        if frame is None:
            raise ConnectionLostError("the peer closed the connection")
        return frame
    raise DeadlineExceededError(f"no answer within {deadline_ms} ms")

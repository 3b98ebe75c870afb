"""Direct reads and writes of large extents by the kernel's own asynchronous I/O (io_submit(2)): no thread, no wait.

A worker thread costs two hops and, worse, takes the interpreter's lock from the event loop in the middle of its work;
a submitted request costs about 40 us of CPU per MiB and tells its completion through an eventfd (measured beside
threads in docs/adr/0007-kernel-aio.md). It is asynchronous only for descriptors with O_DIRECT and memory aligned to
the device's blocks; anything else is for the caller's threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from typing import Final

import trio

DEPTH: Final = 64
"""Requests in flight per context; more wait. Of the system's fs.aio-max-nr, 65,536 by default."""

_CALLS: Final = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""io_setup, io_destroy, io_getevents, io_submit: asm/unistd_64.h, asm-generic/unistd.h."""
_READ: Final = 0
_WRITE: Final = 1
_FLAG_EVENTFD: Final = 1
_REQUEST: Final = struct.Struct("<QIIHhIQQqQII")
"""struct iocb of linux/aio_abi.h: data, key, flags, opcode, priority, descriptor, address, bytes, offset, 0, flags,
eventfd."""
_EVENT: Final = struct.Struct("<QQqq")
"""struct io_event: data, request, result, 0."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class KernelAio:
    """One context: up to DEPTH requests in flight. Make it with `open`; lives on one event loop.

    There is no task behind it: of those that wait for a request, one watches the eventfd and wakes the others.
    Nobody leaves before the kernel has let go of the memory, so waiting is not cancellable.
    """

    def __init__(self, calls: tuple[int, int, int, int], context: int) -> None:
        _, self._destroy_call, self._events_call, self._submit_call = calls
        self._context = ctypes.c_ulong(context)
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._requests = ctypes.create_string_buffer(_REQUEST.size * DEPTH)
        start = ctypes.addressof(self._requests)
        self._pointers = [ctypes.c_void_p(start + _REQUEST.size * slot) for slot in range(DEPTH)]
        self._events = ctypes.create_string_buffer(_EVENT.size * DEPTH)
        self._no_wait = (ctypes.c_long * 2)(0, 0)
        self._free = list(range(DEPTH))
        self._room = trio.lowlevel.ParkingLot()
        self._results: list[int | None] = [None] * DEPTH
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._watched = False

    @classmethod
    def open(cls) -> KernelAio | None:
        """A context; None where the system has none to give (another processor, a sandbox, fs.aio-max-nr used up)."""
        calls = _CALLS.get(platform.machine())
        if calls is None or not hasattr(os, "eventfd"):
            return None
        context = ctypes.c_ulong(0)
        if _libc.syscall(ctypes.c_long(calls[0]), ctypes.c_long(DEPTH), ctypes.byref(context)) != 0:
            return None
        return cls(calls, context.value)

    def close(self) -> None:
        """Give the context back; waits in the kernel for what is in flight."""
        if self._eventfd >= 0:
            _libc.syscall(ctypes.c_long(self._destroy_call), self._context)
            os.close(self._eventfd)
            self._eventfd = -1

    async def read(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        """Read into `buffer` -> bytes read, 0 at the end. OSError as pread(2)."""
        return await self._run(_READ, descriptor, buffer, offset)

    async def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write `data` (its memory must be writable, which is how ctypes finds it) -> bytes written. OSError."""
        return await self._run(_WRITE, descriptor, data, offset)

    async def _run(self, opcode: int, descriptor: int, memory: memoryview, offset: int) -> int:
        while not self._free:
            await self._room.park()
        slot = self._free.pop()
        try:
            held = ctypes.c_char.from_buffer(memory)  # pins the memory's address while it is referred to
            _REQUEST.pack_into(
                self._requests, slot * _REQUEST.size,
                slot, 0, 0, opcode, 0, descriptor, ctypes.addressof(held), len(memory), offset, 0,
                _FLAG_EVENTFD, self._eventfd,
            )  # fmt: skip
            self._submit(slot)
            try:
                result = await self._wait(slot)
            finally:
                del held
        finally:
            self._results[slot] = None
            self._free.append(slot)
            if self._room:
                self._room.unpark()
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _submit(self, slot: int) -> None:
        if _libc.syscall(self._submit_call, self._context, 1, ctypes.byref(self._pointers[slot])) != 1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    async def _wait(self, slot: int) -> int:
        while (result := self._results[slot]) is None:
            if self._watched:
                self._waiting[slot] = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(_not_cancellable)
            else:
                await self._watch()
        return result

    async def _watch(self) -> None:
        """Wait for completions, hand them out; then somebody else's turn to watch."""
        self._watched = True
        try:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(self._eventfd)
            self._collect()
        finally:
            self._watched = False
            if self._waiting:
                trio.lowlevel.reschedule(self._waiting.popitem()[1])

    def _collect(self) -> None:
        with contextlib.suppress(BlockingIOError):  # woken for nothing: an error here would free memory in flight
            os.eventfd_read(self._eventfd)
        count = _libc.syscall(self._events_call, self._context, 0, DEPTH, self._events, self._no_wait)
        for number in range(max(0, count)):
            slot, _, result, _ = _EVENT.unpack_from(self._events, number * _EVENT.size)
            self._results[slot] = result
            task = self._waiting.pop(slot, None)
            if task is not None:
                trio.lowlevel.reschedule(task)


def _not_cancellable(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED

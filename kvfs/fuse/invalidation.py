"""Revoking what the kernel caches: names and attributes are handed out for an hour because they can be revoked.

Notifications block while the kernel holds a lock that a request of ours needs, so they run in one thread, one batch
after the other, and never inside a handler. The queue is bounded and holds each revocation once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
from collections import OrderedDict
from typing import Final, TypeAlias

import pyfuse3
import trio

from kvfs.limits import INVALIDATIONS_MAX

log = logging.getLogger(__name__)

Revocation: TypeAlias = tuple[str, int, bytes]
"""(kind, ino or parent, name); kinds: entry, inode (data and attributes), attributes."""

_BATCH: Final = 256
_ATIME_INTERVAL_S: Final = 10.0
"""How long stat in this mount may show an older access time (FUSE caches attributes, opens do not refresh them)."""

FUSE_NOTIFY_INC_EPOCH: Final = 8
"""Linux 6.16: every cached name is asked for again. Written as a bare notification; pyfuse3 has no call for it."""


class Invalidations:
    """The queue and the task that works it off."""

    def __init__(self) -> None:
        self._queue: OrderedDict[Revocation, None] = OrderedDict()
        self._all = False
        self._wakeup = trio.Event()
        self._accessed: set[int] = set()
        self.device: int | None = None
        """Descriptor of /dev/fuse."""

    def entry(self, parent: int, name: bytes) -> None:
        """The name is gone or means another object."""
        self._add(("entry", parent, name))

    def inode(self, ino: int) -> None:
        """Data and attributes changed."""
        self._add(("inode", ino, b""))

    def everything(self) -> None:
        """Nothing that the kernel caches may be trusted."""
        self._all = True
        self._wakeup.set()

    def accessed(self, ino: int) -> None:
        """The access time changed: the attributes are revoked within `_ATIME_INTERVAL_S`."""
        if len(self._accessed) < INVALIDATIONS_MAX:
            self._accessed.add(ino)

    def _add(self, revocation: Revocation) -> None:
        if len(self._queue) >= INVALIDATIONS_MAX:
            self._queue.clear()
            self.everything()
            return
        self._queue[revocation] = None
        self._wakeup.set()

    async def run(self) -> None:
        """Work the queue off until cancelled."""
        while True:
            with trio.move_on_after(_ATIME_INTERVAL_S) as interval:
                await self._wakeup.wait()
            self._wakeup = trio.Event()
            if interval.cancelled_caught:
                for ino in self._accessed:
                    self._queue[("attributes", ino, b"")] = None
                self._accessed.clear()
            if self._all:
                self._all = False
                await trio.to_thread.run_sync(self._revoke_everything, abandon_on_cancel=True)
            while self._queue:
                batch = [self._queue.popitem(last=False)[0] for _ in range(min(_BATCH, len(self._queue)))]
                await trio.to_thread.run_sync(_revoke, batch, abandon_on_cancel=True)

    def _revoke_everything(self) -> None:
        if self.device is None:
            return
        try:
            os.write(self.device, struct.pack("<IiQ", 16, FUSE_NOTIFY_INC_EPOCH, 0))
        except OSError as error:
            log.warning("the kernel cannot revoke all names at once (%s): stale ones last an hour", error.strerror)


def _revoke(batch: list[Revocation]) -> None:
    """Tell the kernel, in a thread; an object or name that it does not know is no error."""
    for kind, ino, name in batch:
        try:
            if kind == "entry":
                pyfuse3.invalidate_entry(ino, name)
            else:
                pyfuse3.invalidate_inode(ino, attr_only=kind == "attributes")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):
                log.warning("revoking a cached %s failed: %s", kind, error.strerror)


def fuse_descriptors() -> frozenset[int]:
    """Descriptors of this process that are /dev/fuse."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}") == "/dev/fuse":
                found.add(int(number))
    return frozenset(found)

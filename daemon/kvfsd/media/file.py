"""A medium in a sparse file or on a raw block device.

Blocks are read and written past the page cache by the kernel's asynchronous I/O, without a thread
(docs/adr/0007-direct-media-io.md). Small extents go through the page cache in place. What cannot be done that way
(tmpfs, memory that is not aligned, a system without it) runs in a worker thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import stat
from pathlib import Path
from typing import Final

from kvfs import limits
from kvfs.errors import (
    ExistsError,
    InvalidArgumentError,
    KvfsError,
    MediumUnavailableError,
    NotPermittedError,
    PoolBusyError,
    PoolFullError,
)
from kvfsd.media.base import Capability, check_extent
from kvfsd.media.kernelaio import KernelAio
from kvfsd.ports import Offload

INLINE_MAX_BYTES: Final = 64 * limits.KIB
"""Extents up to this go through the page cache in place: a write of 64 KiB takes 6-11 us there, of 1 MiB 120-170 us,
and a disk that throttles writers would stop the event loop (measured, 2 cores, ext4). Larger ones go past it into space
that was reserved: 71 us of CPU per MiB instead of 210."""

_ZEROS: Final = memoryview(bytes(limits.MIB))
_FALLOC_KEEP_SIZE: Final = 0x01
_FALLOC_PUNCH_HOLE: Final = 0x02
_FALLOC_ZERO_RANGE: Final = 0x10
_TRIM_MODES: Final = (_FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, _FALLOC_ZERO_RANGE | _FALLOC_KEEP_SIZE)
"""Tried in this order; linux/falloc.h. Both leave zeros, on block devices too."""
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
_OUT_OF_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class FileMedium:
    """One file or block device, locked against every other process. Make it with `create` or `open`.

    Operations that are done in place do not checkpoint: loops over them give way themselves.
    """

    def __init__(self, path: Path, descriptor: int, size_bytes: int, offload: Offload, *, read_only: bool) -> None:
        self.name = str(path)
        self.size_bytes = size_bytes
        self.capabilities = Capability.NONE if read_only else Capability.PARALLEL_APPEND | Capability.TRIM
        self._descriptor = descriptor
        self._direct = _open_direct(path, read_only=read_only)
        self._aio = KernelAio.open() if self._direct >= 0 else None
        self._offload = offload
        self._read_only = read_only
        self._nowait_works = True
        self._lost_writes = ""

    @classmethod
    def create(cls, path: Path, size_bytes: int, offload: Offload) -> FileMedium:
        """A new sparse file of `size_bytes` (a multiple of 4 KiB), mode 0600, locked. Blocks briefly.

        ExistsError if `path` is there: existing files and devices are opened, never replaced.
        """
        if size_bytes % limits.RECORD_ALIGN_BYTES or not limits.MEDIUM_MIN_BYTES <= size_bytes <= 2**62:
            raise InvalidArgumentError(
                f"medium {path}: size: want a multiple of {limits.RECORD_ALIGN_BYTES} "
                f"from {limits.MEDIUM_MIN_BYTES} to 2^62, have {size_bytes}"
            )
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise ExistsError(f"medium {path}: exists already") from None
        except OSError as error:
            raise _failed(str(path), "create", 0, error) from error
        try:
            _lock(path, descriptor, fcntl.LOCK_EX)
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
            _sync_directory(path.parent)
        except BaseException as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _failed(str(path), "create", size_bytes, error) from error
            raise
        return cls(path, descriptor, size_bytes, offload, read_only=False)

    @classmethod
    def open(cls, path: Path, offload: Offload, *, read_only: bool = False) -> FileMedium:
        """The existing file or block device at `path`; its size is what the system says. Blocks briefly.

        PoolBusyError if another process has it open (readers share it with readers); MediumUnavailableError if it
        cannot be opened; InvalidArgumentError if it is neither file nor block device.
        """
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        try:
            if stat.S_ISBLK(path.stat().st_mode) and not read_only:
                flags |= os.O_EXCL  # refuses a device that is mounted or part of another one
            descriptor = os.open(path, flags)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise PoolBusyError(f"medium {path}: the device is in use: {error.strerror}") from None
            raise _failed(str(path), "open", 0, error) from error
        try:
            _lock(path, descriptor, fcntl.LOCK_SH if read_only else fcntl.LOCK_EX)
            size_bytes = _size_of(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, size_bytes, offload, read_only=read_only)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        self._check("read", offset, len(buffer))
        try:
            done = await self._read_direct(offset, buffer) or self._read_cached(offset, buffer)
            if done < len(buffer):
                descriptor, rest = self._descriptor, buffer[done:]
                await self._offload.run(functools.partial(_read_all, descriptor, rest, offset + done))
        except OSError as error:
            raise _failed(self.name, "read", offset, error) from error

    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`."""
        self._check("write", offset, len(data))
        self._check_writable()
        try:
            if len(data) <= INLINE_MAX_BYTES:
                _write_all(self._descriptor, data, offset)
            else:
                await self._write_large(offset, data)
        except OSError as error:
            raise _write_failed(self.name, "write", offset, error) from error

    async def reserve(self, offset: int, length: int) -> None:
        """Allocate the range in the file; a system that cannot do that finds room at each write."""
        self._check("reserve", offset, length)
        self._check_writable()
        try:
            await self._offload.run(functools.partial(_allocate, self._descriptor, offset, length))
        except OSError as error:
            raise _write_failed(self.name, "reserve", offset, error) from error

    async def flush(self) -> None:
        """Make writes durable (fdatasync). Once it failed, this and every write fail until the medium is opened anew.

        Linux drops what it could not write back and reports that once, so a second success would prove nothing.
        """
        self._check_open("flush", 0)
        self._check_writable()
        try:
            await self._offload.run(functools.partial(os.fdatasync, self._descriptor))
        except OSError as error:
            self._lost_writes = f"writes were lost in a failed flush: {error.strerror}"
            raise _failed(self.name, "flush", 0, error) from error

    async def trim(self, offset: int, length: int) -> None:
        """Punch a hole; where that is not supported, write zeros."""
        self._check("trim", offset, length)
        self._check_writable()
        try:
            await self._offload.run(functools.partial(_trim, self._descriptor, offset, length))
        except OSError as error:
            raise _failed(self.name, "trim", offset, error) from error

    async def aclose(self) -> None:
        """Close the descriptor, which drops the lock. Closing twice is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        direct, self._direct = self._direct, -1
        if self._aio is not None:
            self._aio.close()
        try:
            if direct >= 0:
                os.close(direct)
            os.close(descriptor)
        except OSError as error:
            raise _failed(self.name, "close", 0, error) from error

    async def _read_direct(self, offset: int, buffer: memoryview) -> int:
        """Read past the page cache -> bytes read; 0 where that cannot be done."""
        if self._aio is None or len(buffer) <= INLINE_MAX_BYTES or buffer.readonly:
            return 0
        try:
            return await self._aio.read(self._direct, buffer, offset)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return 0

    async def _write_large(self, offset: int, data: memoryview) -> None:
        """Write past the page cache, or through it in a thread what cannot go that way."""
        done = 0
        if self._aio is not None and not data.readonly:
            try:
                done = await self._aio.write(self._direct, data, offset)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        if done < len(data):
            rest = functools.partial(_write_all, self._descriptor, data[done:], offset + done)
            await self._offload.run(rest)

    def _read_cached(self, offset: int, buffer: memoryview) -> int:
        """Bytes that were in the page cache and are in `buffer` now; a disk is never waited for."""
        if not self._nowait_works:
            return 0
        try:
            return os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._nowait_works = False  # tmpfs for one
            return 0

    def _check(self, operation: str, offset: int, length: int) -> None:
        check_extent(self.name, self.size_bytes, offset, length)
        self._check_open(operation, offset)

    def _check_open(self, operation: str, offset: int) -> None:
        if self._descriptor < 0:
            raise MediumUnavailableError(f"medium {self.name}: {operation} at {offset}: closed")

    def _check_writable(self) -> None:
        if self._read_only:
            raise NotPermittedError(f"medium {self.name}: opened read only")
        if self._lost_writes:
            raise MediumUnavailableError(f"medium {self.name}: {self._lost_writes}")


def _failed(name: str, operation: str, offset: int, error: OSError) -> KvfsError:
    """The domain error of a system call that failed."""
    return MediumUnavailableError(f"medium {name}: {operation} at {offset}: {error.strerror or error}")


def _write_failed(name: str, operation: str, offset: int, error: OSError) -> KvfsError:
    """The domain error of a system call that needs space."""
    if error.errno in _OUT_OF_SPACE:
        return PoolFullError(f"medium {name}: {operation} at {offset}: {error.strerror}")
    return _failed(name, operation, offset, error)


def _open_direct(path: Path, *, read_only: bool) -> int:
    """A second descriptor that goes past the page cache; -1 where the system has no such thing."""
    try:
        return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def _allocate(descriptor: int, offset: int, length: int) -> None:
    """Find space for the range; its content stays."""
    if _libc.fallocate(descriptor, _FALLOC_KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number))


def _lock(path: Path, descriptor: int, kind: int) -> None:
    """Take the lock without waiting: the kernel drops it with the process, so no stale lock survives a crash."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PoolBusyError(f"medium {path}: another process has it open") from None
    except OSError as error:
        raise _failed(str(path), "lock", 0, error) from error


def _size_of(path: Path, descriptor: int) -> int:
    """Bytes of a file or block device, rounded down to 4 KiB."""
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise InvalidArgumentError(f"medium {path}: neither a file nor a block device")
        size = os.lseek(descriptor, 0, os.SEEK_END)
    except OSError as error:
        raise _failed(str(path), "size", 0, error) from error
    return size - size % limits.RECORD_ALIGN_BYTES


def _sync_directory(path: Path) -> None:
    """Make a new name in the directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer`, waiting for the disk; OSError if the file ends before."""
    # One request for all of it: the read-ahead of a disk is 128 KiB by default, eight waits for a block.
    os.posix_fadvise(descriptor, offset, len(buffer), os.POSIX_FADV_WILLNEED)
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise OSError(errno.EIO, f"the medium ends at {offset + done}")
        done += count


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data`, however often the system takes only a part."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _trim(descriptor: int, offset: int, length: int) -> None:
    """Turn the range into zeros, giving space back if the system can."""
    for mode in _TRIM_MODES:
        if _libc.fallocate(descriptor, mode, offset, length) == 0:
            return
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number))
    for start in range(offset, offset + length, len(_ZEROS)):
        _write_all(descriptor, _ZEROS[: offset + length - start], start)

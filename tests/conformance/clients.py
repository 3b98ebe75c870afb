"""What the clients of the contract do to files, call by call, without a line of theirs.

Every function uses bare system calls, so that a short read or write is seen and not retried by a library.
"""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import random
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20


def pattern(seed: int | str, size: int) -> bytes:
    """`size` incompressible bytes that only `seed` determines."""
    return random.Random(f"kvfs {seed}").randbytes(size)


def page_buffer(data: bytes) -> mmap.mmap:
    """`data` in page-aligned memory, as O_DIRECT wants and as engines allocate."""
    buffer = mmap.mmap(-1, max(len(data), 1))
    buffer[: len(data)] = data
    return buffer


def write_whole(path: str | Path, flags: int, data: bytes, mode: int = 0o666) -> None:
    """open, ONE write of everything, close. A short write fails."""
    descriptor = os.open(path, os.O_WRONLY | flags, mode)
    try:
        with page_buffer(data) as buffer:
            written = os.write(descriptor, memoryview(buffer)[: len(data)])
    finally:
        os.close(descriptor)
    assert written == len(data), f"short write: {written} of {len(data)}"


def read_whole(path: str | Path, size: int, flags: int = 0) -> bytes:
    """open, ONE readv of `size` bytes, close. A short read fails."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        with mmap.mmap(-1, size) as buffer:
            got = os.readv(descriptor, [buffer])
            assert got == size, f"short read: {got} of {size}"
            return buffer[:size]
    finally:
        os.close(descriptor)


def store_by_rename(path: Path, data: bytes, flags: int = 0) -> None:
    """Store as vLLM's fs tier does: a fresh temporary name, one write, close, rename."""
    temporary = path.with_name(f"{path.name}.{random.randrange(1 << 62):x}.tmp")
    write_whole(temporary, os.O_CREAT | os.O_EXCL | os.O_TRUNC | flags, data)
    os.rename(temporary, path)


def expect_errno(wanted: int | Sequence[int], call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """`call(*args)` must fail with (one of) the errno `wanted`, shown by name when it is another."""
    codes = [wanted] if isinstance(wanted, int) else list(wanted)
    code, result = outcome(call, *args, **kwargs)
    names = "/".join(errno.errorcode[code] for code in codes)
    assert code in codes, f"wanted {names}, got {errno.errorcode.get(code, 'success')}: {result!r}"


def outcome(call: Callable[..., object], *args: Any, **kwargs: Any) -> tuple[int, object]:
    """(0, result) of `call(*args)`, or (errno, error) when it fails: for what may work or be refused."""
    try:
        return 0, call(*args, **kwargs)
    except OSError as error:
        return error.errno or -1, error


def as_user(uid: int, gid: int, call: Callable[[], object], groups: Sequence[int] = ()) -> object:
    """Run `call` in a forked child under another uid -> its (picklable) result; its OSError is raised here."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        _run_child(send, uid, gid, call, groups)
    os.close(send)
    with open(receive, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    assert answer, "the child died"
    kind, value = pickle.loads(answer)
    if kind == "os":
        raise OSError(*value)
    assert kind == "ok", value
    return value


def _run_child(send: int, uid: int, gid: int, call: Callable[[], object], groups: Sequence[int]) -> None:
    try:
        os.setgroups(list(groups))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        answer = ("ok", call())
    except OSError as error:
        answer = ("os", (error.errno, error.strerror))
    except BaseException:
        answer = ("error", traceback.format_exc())
    try:
        with open(send, "wb") as stream:
            stream.write(pickle.dumps(answer))
    finally:
        os._exit(0)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes uids: needs root")

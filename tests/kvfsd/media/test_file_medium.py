import errno
import fcntl
import os
import sys

import pytest
import trio

from kvfs import limits
from kvfs.errors import (
    ExistsError,
    InvalidArgumentError,
    MediumUnavailableError,
    NotPermittedError,
    PoolBusyError,
    PoolFullError,
)
from kvfsd.media import file as file_module
from kvfsd.media.file import FileMedium
from kvfsd.ports import InlineOffload

UNIT = limits.RECORD_ALIGN_BYTES
SIZE = limits.MEDIUM_MIN_BYTES
OFFLOAD = InlineOffload()


@pytest.fixture
async def medium(tmp_path):
    made = FileMedium.create(tmp_path / "medium", SIZE, OFFLOAD)
    yield made
    await made.aclose()


async def test_new_file_is_sparse_private_and_of_its_size(medium):
    info = os.stat(medium.name)
    assert info.st_size == SIZE
    assert info.st_blocks == 0
    assert info.st_mode & 0o777 == 0o600


async def test_trim_gives_space_back(medium):
    await medium.write(limits.MIB, memoryview(b"x" * 4 * limits.MIB))
    before = os.stat(medium.name).st_blocks
    await medium.trim(limits.MIB, 4 * limits.MIB)
    assert os.stat(medium.name).st_blocks < before
    assert os.stat(medium.name).st_size == SIZE


async def test_trim_writes_zeros_where_the_system_cannot_punch(medium, monkeypatch):
    monkeypatch.setattr(file_module, "_TRIM_MODES", ())
    await medium.write(0, memoryview(b"x" * 3 * limits.MIB))
    await medium.trim(UNIT, 2 * limits.MIB)
    buffer = bytearray(3 * limits.MIB)
    await medium.read_into(0, memoryview(buffer))
    assert buffer == b"x" * UNIT + bytes(2 * limits.MIB) + b"x" * (limits.MIB - UNIT)


async def test_create_never_replaces(medium, tmp_path):
    with pytest.raises(ExistsError, match="exists already"):
        FileMedium.create(tmp_path / "medium", SIZE, OFFLOAD)


@pytest.mark.parametrize("size", [0, SIZE - UNIT, SIZE + 1, 2**63, -1])
def test_create_bounds_the_size(tmp_path, size):
    with pytest.raises(InvalidArgumentError, match="size: want"):
        FileMedium.create(tmp_path / "medium", size, OFFLOAD)
    assert not (tmp_path / "medium").exists()


def test_create_in_a_missing_directory_is_named(tmp_path):
    with pytest.raises(MediumUnavailableError, match="create at 0: No such file"):
        FileMedium.create(tmp_path / "none" / "medium", SIZE, OFFLOAD)


OPENER = """
import pathlib, sys
from kvfs.errors import PoolBusyError
from kvfsd.media.file import FileMedium
from kvfsd.ports import InlineOffload
for read_only in (False, True):
    try:
        FileMedium.open(pathlib.Path(sys.argv[1]), InlineOffload(), read_only=read_only)
    except PoolBusyError as error:
        print("busy")
"""


async def test_open_is_exclusive_across_processes(medium):
    done = await trio.run_process([sys.executable, "-c", OPENER, medium.name], capture_stdout=True)
    assert done.stdout == b"busy\nbusy\n"


async def test_lock_goes_with_close(medium, tmp_path):
    await medium.aclose()
    again = FileMedium.open(tmp_path / "medium", OFFLOAD)
    await again.aclose()


async def test_readers_share_and_cannot_write(medium, tmp_path):
    await medium.write(0, memoryview(b"y" * UNIT))
    await medium.aclose()
    one = FileMedium.open(tmp_path / "medium", OFFLOAD, read_only=True)
    two = FileMedium.open(tmp_path / "medium", OFFLOAD, read_only=True)
    with pytest.raises(PoolBusyError):
        FileMedium.open(tmp_path / "medium", OFFLOAD)
    buffer = bytearray(UNIT)
    await two.read_into(0, memoryview(buffer))
    assert buffer == b"y" * UNIT
    for call in (one.write(0, memoryview(buffer)), one.trim(0, UNIT), one.flush()):
        with pytest.raises(NotPermittedError, match="read only"):
            await call
    await one.aclose()
    await two.aclose()


async def test_descriptor_is_not_inherited(medium):
    assert fcntl.fcntl(medium._descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_directory_is_refused(tmp_path):
    with pytest.raises((InvalidArgumentError, MediumUnavailableError), match=r"directory|neither"):
        FileMedium.open(tmp_path, OFFLOAD, read_only=True)


async def test_file_that_was_cut_short_is_an_error_not_a_short_read(medium):
    os.truncate(medium.name, SIZE - UNIT)
    with pytest.raises(MediumUnavailableError, match=f"read at {SIZE - 2 * UNIT}: the medium ends at {SIZE - UNIT}"):
        await medium.read_into(SIZE - 2 * UNIT, memoryview(bytearray(2 * UNIT)))


async def test_reads_work_without_nowait(medium, monkeypatch):
    """Tmpfs refuses RWF_NOWAIT: it is tried once, then reads go to the threads."""
    calls = []
    real = os.preadv

    def preadv(descriptor, buffers, offset, flags=0):
        calls.append(flags)
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(descriptor, buffers, offset)

    await medium.write(0, memoryview(b"z" * UNIT))
    monkeypatch.setattr(os, "preadv", preadv)
    for _ in range(2):
        buffer = bytearray(UNIT)
        await medium.read_into(0, memoryview(buffer))
        assert buffer == b"z" * UNIT
    assert calls == [os.RWF_NOWAIT, 0, 0]


async def test_rest_of_a_partly_cached_read_is_fetched(medium, monkeypatch):
    real = os.preadv

    def preadv(descriptor, buffers, offset, flags=0):
        if flags:
            return real(descriptor, [buffers[0][:UNIT]], offset)
        return real(descriptor, [buffers[0][:UNIT]], offset)  # and the blocking read comes in pieces, too

    data = b"".join(bytes([value]) * UNIT for value in range(1, 5))
    await medium.write(0, memoryview(data))
    monkeypatch.setattr(os, "preadv", preadv)
    buffer = bytearray(4 * UNIT)
    await medium.read_into(0, memoryview(buffer))
    assert buffer == data


async def test_short_writes_are_completed(medium, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[:1000], offset))
    await medium.write(0, memoryview(b"w" * 2 * UNIT))
    buffer = bytearray(2 * UNIT)
    await medium.read_into(0, memoryview(buffer))
    assert buffer == b"w" * 2 * UNIT


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (errno.EIO, MediumUnavailableError, "write at 8192: Input/output error"),
        (errno.ENOSPC, PoolFullError, "write at 8192: No space left"),
        (errno.EDQUOT, PoolFullError, "write at 8192: Disk quota exceeded"),
    ],
)
async def test_errors_name_medium_operation_and_offset(medium, monkeypatch, number, error, text):
    def pwrite(descriptor, data, offset):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(error, match=text) as caught:
        await medium.write(8192, memoryview(bytes(UNIT)))
    assert medium.name in str(caught.value)


async def test_failed_flush_is_never_followed_by_a_success(medium, monkeypatch):
    def fdatasync(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(MediumUnavailableError, match="flush at 0: Input/output error"):
        await medium.flush()
    monkeypatch.undo()
    with pytest.raises(MediumUnavailableError, match="lost in a failed flush"):
        await medium.flush()
    with pytest.raises(MediumUnavailableError, match="lost in a failed flush"):
        await medium.write(0, memoryview(bytes(UNIT)))
    await medium.read_into(0, memoryview(bytearray(UNIT)))

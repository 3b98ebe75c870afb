"""Direct I/O by the kernel: many at once, errors, memory it cannot take, and a system that has none."""

import mmap
import os

import pytest
import trio

from kvfs import limits
from kvfsd.media import file as file_module
from kvfsd.media import kernelaio
from kvfsd.media.file import FileMedium
from kvfsd.media.kernelaio import DEPTH, KernelAio
from kvfsd.ports import ThreadOffload

MIB = limits.MIB
SIZE = limits.MEDIUM_MIN_BYTES


def aligned(content: bytes) -> memoryview:
    buffer = mmap.mmap(-1, len(content))
    buffer.write(content)
    return memoryview(buffer)


@pytest.fixture
def aio():
    made = KernelAio.open()
    if made is None:
        pytest.skip("this system gives no asynchronous I/O context")
    yield made
    made.close()


@pytest.fixture
def direct(tmp_path):
    try:
        descriptor = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"no O_DIRECT here: {error.strerror}")
    os.ftruncate(descriptor, 2 * DEPTH * 4096)
    yield descriptor
    os.close(descriptor)


async def test_more_requests_than_the_context_holds_all_arrive(aio, direct):
    count = 2 * DEPTH
    blocks = [aligned(bytes([number]) * 4096) for number in range(count)]
    done = []

    async def write(number: int) -> None:
        done.append(await aio.write(direct, blocks[number], number * 4096))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(write, number)
    assert done == [4096] * count
    everything = aligned(bytes(count * 4096))
    assert await aio.read(direct, everything, 0) == count * 4096
    assert everything == b"".join(bytes([number]) * 4096 for number in range(count))


async def test_a_read_at_the_end_is_short_and_past_it_empty(aio, direct):
    end = 2 * DEPTH * 4096
    assert await aio.read(direct, aligned(bytes(8192)), end - 4096) == 4096
    assert await aio.read(direct, aligned(bytes(4096)), end) == 0


async def test_errors_are_those_of_the_system_and_use_nothing_up(aio, direct, tmp_path):
    read_only = os.open(tmp_path / "f", os.O_RDONLY | os.O_DIRECT)
    try:
        for _ in range(2 * DEPTH):
            with pytest.raises(OSError, match="Bad file descriptor"):
                await aio.write(read_only, aligned(bytes(4096)), 0)
    finally:
        os.close(read_only)
    with pytest.raises(OSError, match="Invalid argument"):
        await aio.write(direct, memoryview(bytearray(8193))[1:], 0)
    assert await aio.write(direct, aligned(b"x" * 4096), 0) == 4096


async def test_cancellation_waits_until_the_kernel_lets_go_of_the_memory(aio, direct):
    block = aligned(b"y" * MIB)
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await aio.write(direct, block, 0) == MIB
    back = aligned(bytes(MIB))
    await aio.read(direct, back, 0)
    assert back == block


async def test_the_task_that_watches_may_end_first(aio, direct):
    """Whoever watches the eventfd hands that over: nobody waits for ever when its own request is done."""
    finished = []

    async def store(name: int, length: int) -> None:
        for turn in range(20):
            await aio.write(direct, aligned(bytes([name]) * length), (name * 20 + turn) % 64 * 4096)
        finished.append(name)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for name in range(6):
                nursery.start_soon(store, name, 4096 * (1 + name * 7))
    assert sorted(finished) == list(range(6))


async def test_a_wake_up_for_nothing_frees_no_memory(aio, direct, monkeypatch):
    """The eventfd may be found empty; the request in flight is waited for all the same."""
    real, woken = trio.lowlevel.wait_readable, []

    async def early(descriptor: int) -> None:
        woken.append(descriptor)
        if len(woken) > 3:
            await real(descriptor)

    monkeypatch.setattr(kernelaio.trio.lowlevel, "wait_readable", early)
    monkeypatch.setattr(kernelaio.os, "eventfd_read", _nothing_there)
    assert await aio.write(direct, aligned(b"z" * 4096), 0) == 4096
    assert woken


def _nothing_there(_: int) -> int:
    raise BlockingIOError


@pytest.mark.parametrize("machine", ["riscv64", ""])
def test_an_unknown_processor_has_none(monkeypatch, machine):
    monkeypatch.setattr(kernelaio.platform, "machine", lambda: machine)
    assert KernelAio.open() is None


@pytest.mark.parametrize("missing", ["context", "descriptor"])
async def test_a_medium_works_without_it(tmp_path, monkeypatch, missing):
    if missing == "context":
        monkeypatch.setattr(file_module.KernelAio, "open", lambda: None)
    else:
        monkeypatch.setattr(file_module, "_open_direct", lambda path, *, read_only: -1)
    medium = FileMedium.create(tmp_path / "medium", SIZE, ThreadOffload())
    try:
        content = aligned(os.urandom(MIB))
        await medium.write(MIB, content)
        back = aligned(bytes(MIB))
        await medium.read_into(MIB, back)
        assert back == content
    finally:
        await medium.aclose()


async def test_what_went_past_the_cache_and_what_went_through_it_agree(tmp_path):
    """Large extents are direct, small ones cached: each sees the other's bytes at once."""
    medium = FileMedium.create(tmp_path / "medium", SIZE, ThreadOffload())
    try:
        await medium.write(0, aligned(b"a" * MIB))
        small = memoryview(bytearray(4096))
        await medium.read_into(4096, small)
        assert small == b"a" * 4096
        await medium.write(4096, memoryview(b"b" * 4096))
        large = aligned(bytes(MIB))
        await medium.read_into(0, large)
        assert large == b"a" * 4096 + b"b" * 4096 + b"a" * (MIB - 8192)
        await medium.write(0, aligned(b"c" * MIB))
        await medium.read_into(4096, small)
        assert small == b"c" * 4096
    finally:
        await medium.aclose()

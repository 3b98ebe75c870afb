"""Each row of the engine contract on a mount over the fake DPU half."""

from __future__ import annotations

import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvfs.limits import MIB
from tests.kvfs.fuse.conftest import ServedMount, write_new

pytestmark = pytest.mark.mount


def aligned(data: bytes) -> mmap.mmap:
    """Page-aligned memory, for O_DIRECT."""
    memory = mmap.mmap(-1, max(len(data), 1))
    memory[: len(data)] = data
    return memory


@pytest.mark.parametrize("direct", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_vllm_fs_tier(mount: ServedMount, direct: int) -> None:
    data = {number: os.urandom(2 * MIB) for number in range(32)}
    directory = mount.path / "model_r0/abc/de_g0"
    directory.mkdir(parents=True)

    def store(number: int) -> None:
        final = directory / f"{number}.bin"
        assert not os.access(final, os.F_OK)
        temporary = f"{final}.{os.urandom(4).hex()}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_TRUNC | direct, 0o644)
        assert os.write(descriptor, aligned(data[number]) if direct else data[number]) == 2 * MIB
        os.close(descriptor)
        os.rename(temporary, final)

    def load(number: int) -> None:
        descriptor = os.open(directory / f"{number}.bin", os.O_RDONLY | direct)
        memory = mmap.mmap(-1, 2 * MIB)
        assert os.readv(descriptor, [memory]) == 2 * MIB
        os.close(descriptor)
        assert memory[:] == data[number]

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(store, data))
        assert all(os.access(directory / f"{number}.bin", os.F_OK) for number in data)
        list(threads.map(load, data))
    assert sorted(os.listdir(directory)) == sorted(f"{number}.bin" for number in data)
    mount.settled(allocated=0, handles=0, inodes=0, pending=0, staged=0, blocks=0)


def test_vllm_probe_of_direct_io(mount: ServedMount) -> None:
    probe = mount.path / ".probe"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    assert os.write(descriptor, aligned(bytes(4096))) == 4096
    os.close(descriptor)
    os.unlink(probe)
    assert os.listdir(mount.path) == []


def test_example_connector_renames_before_close_and_maps(mount: ServedMount) -> None:
    header, body = b"h" * 264, os.urandom(3 * MIB + 17)
    temporary, final = mount.path / ".tmpabc", mount.path / "x.safetensors"
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(descriptor, len(header) + len(body))
    assert os.write(descriptor, header) == len(header)
    assert os.write(descriptor, body) == len(body)
    os.rename(temporary, final)
    os.close(descriptor)
    assert mount.content("x.safetensors") == header + body
    with open(final, "rb") as stream:
        private = mmap.mmap(stream.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        writable = mmap.mmap(stream.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        shared = mmap.mmap(stream.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    assert private[:] == shared[:] == header + body
    writable[:4] = b"mine"
    assert shared[:4] == header[:4]


def test_lmcache_fs_buffered_and_direct(mount: ServedMount) -> None:
    body, final = os.urandom(4 * MIB), mount.path / "m@1@0@abc@half.data"
    with open(f"{final}.tmp", "wb", buffering=0) as stream:
        assert stream.write(b"H" * 28) == 28
        assert stream.write(body) == len(body)
    os.rename(f"{final}.tmp", final)
    with open(final, "rb", buffering=0) as stream:
        assert stream.read(4096) == (b"H" * 28 + body)[:4096]
        assert stream.read() == (b"H" * 28 + body)[4096:]
    descriptor = os.open(f"{final}2", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    assert os.write(descriptor, aligned(body)) == len(body)
    os.close(descriptor)
    memory = mmap.mmap(-1, 4 * MIB)
    descriptor = os.open(f"{final}2", os.O_RDONLY | os.O_DIRECT)
    assert os.readv(descriptor, [memory]) == 4 * MIB
    os.close(descriptor)
    assert memory[:] == body
    assert os.statvfs(mount.path).f_bsize == 4096


def test_lmcache_local_disk_overwrites_the_final_name(mount: ServedMount) -> None:
    path, old, new = mount.path / "chunk", os.urandom(4 * MIB), os.urandom(4 * MIB)
    write_new(path, old)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    assert os.write(descriptor, new) == len(new)
    assert mount.content("chunk") == old  # what a crash now would leave
    os.close(descriptor)
    assert path.read_bytes() == mount.content("chunk") == new
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)  # in place, no O_TRUNC
    assert os.write(descriptor, aligned(old)) == len(old)
    os.close(descriptor)
    assert path.read_bytes() == old


def test_sglang_hicache(mount: ServedMount) -> None:
    data = {f"{number:064x}_m_0_51200.bin": os.urandom(51_200) for number in range(40)}
    for name, page in data.items():
        temporary = mount.path / f".{name}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        second = os.dup(descriptor)
        os.lseek(second, 0, os.SEEK_SET)
        assert os.write(second, page) == len(page)
        os.close(second)
        os.close(descriptor)
        os.rename(temporary, mount.path / name)
    assert {entry.name for entry in os.scandir(mount.path)} == set(data)
    for name, page in data.items():
        with open(mount.path / name, "rb", buffering=0) as stream:
            assert stream.read(len(page) + 1) == page


def test_nixl_preallocates_and_writes_at_offsets_from_many_threads(mount: ServedMount) -> None:
    pieces = [os.urandom(MIB) for _ in range(24)]
    descriptor = os.open(mount.path / "large", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    os.ftruncate(descriptor, 24 * MIB)

    def put(number: int) -> None:
        assert os.pwritev(descriptor, [aligned(pieces[number])], number * MIB) == MIB

    def get(number: int) -> None:
        memory = mmap.mmap(-1, MIB)
        assert os.preadv(descriptor, [memory], number * MIB) == MIB
        assert memory[:] == pieces[number]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, range(24)))
        list(threads.map(get, range(24)))
    os.close(descriptor)
    assert mount.content("large") == b"".join(pieces)


def test_llama_cpp_stdio(mount: ServedMount) -> None:
    path = mount.path / "slot0.bin"
    assert os.stat(mount.path).st_blksize == MIB
    expected = bytearray()
    with open(path, "wb", buffering=4096) as stream:
        for number in range(700):
            record = bytes([number % 251]) * 4093
            stream.write(record)
            expected += record
    with open(path, "rb", buffering=4096) as stream:
        assert b"".join(iter(lambda: stream.read(4096), b"")) == expected
    with open(path, "wb") as stream:
        stream.write(b"shorter")
    assert mount.content("slot0.bin") == b"shorter"


def test_evictor_walks_by_times_and_unlinks_open_files(mount: ServedMount) -> None:
    for number in range(4):
        write_new(mount.path / f"b{number}", os.urandom(MIB))
        os.utime(mount.path / f"b{number}", ns=(number * 10**9, number * 10**9 + 1))
    oldest = min(os.scandir(mount.path), key=lambda entry: entry.stat().st_mtime_ns)
    assert oldest.name == "b0"
    with open(oldest.path, "rb") as stream:
        content = stream.read(10)
        os.unlink(oldest.path)
        stream.seek(0)
        assert stream.read(10) == content
        assert mount.state()["kept_open"] == 1
    mount.settled(allocated=0, kept_open=0, nodes=4)


def test_readers_and_writers_of_one_mount_under_several_uids(mount: ServedMount) -> None:
    """An unprivileged process uses what root mounted; owner and mode are the caller's."""
    mount.path.chmod(0o777)
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(12345)
        os.setuid(12346)
        os.umask(0o027)
        try:
            write_new(mount.path / "theirs", b"x" * 10)
            os.mkdir(mount.path / "dir")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    shown = os.stat(mount.path / "theirs")
    assert (shown.st_uid, shown.st_gid, shown.st_mode & 0o7777) == (12346, 12345, 0o640)
    assert os.stat(mount.path / "dir").st_mode & 0o7777 == 0o750
    assert mount.order(attributes="theirs")["uid"] == 12346


def test_same_file_rewritten_while_it_is_read_again_and_again(mount: ServedMount) -> None:
    """A reader that opens after a close sees that content: the kernel keeps no older data."""
    path = mount.path / "f"
    for number in range(30):
        data = bytes([number]) * (MIB + number)
        path.write_bytes(data)
        assert path.read_bytes() == data
        assert path.read_bytes() == data


def test_threads_that_write_one_block_at_unaligned_offsets(mount: ServedMount) -> None:
    data = os.urandom(2 * MIB)
    path: Path = mount.path / "f"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    errors: list[BaseException] = []

    def put(first: int) -> None:
        try:
            for start in range(first * 10_007, len(data), 8 * 10_007):
                os.pwrite(descriptor, data[start : start + 10_007], start)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=put, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    assert not errors
    assert path.read_bytes() == data

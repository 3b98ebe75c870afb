"""What a block costs on its way from a mount's process to the daemon's: three ways of handing it over.

    python -m tests.bench.transport [--blocks N] [--window N]

stream   sendmsg on the unix socket, recv_into a buffer that is used again
memfd    a new memory file per block, written, sealed against writing, its descriptor sent; the receiver checks the
         seals, maps it and reads it in place
ring     one memory file for both, sealed against resizing; the sender copies a block into a slot, the receiver copies
         it out before it looks at it (the sender could change it at any time)

In each the receiver ends with bytes that the sender cannot change any more, and reads all of them once (xxh3_64, the
first thing the daemon does with a block). CPU is user and system time of both processes.
"""

from __future__ import annotations

import argparse
import array
import fcntl
import json
import mmap
import os
import resource
import socket
import struct
import time
from collections.abc import Callable

import xxhash

BLOCK_BYTES = 1 << 20
SEND_BUFFER_BYTES = 2 << 20
HEADER = struct.Struct("<IQ")
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 2, 4, 8
RING_SLOTS = 16


def receive_exactly(connection: socket.socket, view: memoryview) -> bool:
    """Fill `view` -> False at the end of the stream."""
    done = 0
    while done < len(view):
        count = connection.recv_into(view[done:])
        if not count:
            return False
        done += count
    return True


class Stream:
    """Payloads in the stream."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = mmap.mmap(-1, BLOCK_BYTES)

    def send(self, number: int, data: bytes) -> None:
        buffers = [HEADER.pack(len(data), number), data]
        sent = self.connection.sendmsg(buffers)
        if sent < HEADER.size + len(data):
            self.connection.sendall(memoryview(data)[sent - HEADER.size :])

    def receive(self) -> int | None:
        head = bytearray(HEADER.size)
        if not receive_exactly(self.connection, memoryview(head)):
            return None
        length, _ = HEADER.unpack(head)
        view = memoryview(self.buffer)[:length]
        receive_exactly(self.connection, view)
        return xxhash.xxh3_64_intdigest(view)


class SealedFiles:
    """A sealed memory file for each payload."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, number: int, data: bytes) -> None:
        descriptor = os.memfd_create("payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(descriptor, data)
        fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        self.connection.sendmsg([HEADER.pack(len(data), number)], rights)
        os.close(descriptor)

    def receive(self) -> int | None:
        head, rights, _, _ = self.connection.recvmsg(HEADER.size, socket.CMSG_SPACE(4))
        if not head:
            return None
        (descriptor,) = array.array("i", rights[0][2])
        assert fcntl.fcntl(descriptor, F_GET_SEALS) & F_SEAL_WRITE
        length, _ = HEADER.unpack(head)
        with mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ) as mapped:
            os.close(descriptor)
            with memoryview(mapped) as view:
                return xxhash.xxh3_64_intdigest(view)


class Ring:
    """Slots of one memory file that both processes have mapped."""

    def __init__(self, connection: socket.socket, descriptor: int) -> None:
        self.connection = connection
        self.slots = mmap.mmap(descriptor, RING_SLOTS * BLOCK_BYTES)
        self.buffer = mmap.mmap(-1, BLOCK_BYTES)

    @staticmethod
    def make() -> int:
        descriptor = os.memfd_create("ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, RING_SLOTS * BLOCK_BYTES)
        fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
        return descriptor

    def send(self, number: int, data: bytes) -> None:
        start = number % RING_SLOTS * BLOCK_BYTES
        memoryview(self.slots)[start : start + len(data)] = data
        self.connection.sendall(HEADER.pack(len(data), number))

    def receive(self) -> int | None:
        head = bytearray(HEADER.size)
        if not receive_exactly(self.connection, memoryview(head)):
            return None
        length, number = HEADER.unpack(head)
        start = number % RING_SLOTS * BLOCK_BYTES
        view = memoryview(self.buffer)[:length]
        view[:] = memoryview(self.slots)[start : start + length]
        return xxhash.xxh3_64_intdigest(view)


def serve(transport: Stream | SealedFiles | Ring, expected: int) -> None:
    """The daemon's side: take blocks, answer each with a byte."""
    while (digest := transport.receive()) is not None:
        assert digest == expected
        transport.connection.sendall(b"k")


def measure(make: Callable[[socket.socket], Stream | SealedFiles | Ring], blocks: int, window: int) -> dict[str, float]:
    """Hand over `blocks`, `window` of them at a time -> GiB/s, and CPU s/GiB of each side."""
    data = os.urandom(BLOCK_BYTES)
    expected = xxhash.xxh3_64_intdigest(data)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sender, receiver = make(ours), make(theirs)
    child = os.fork()
    if child == 0:
        ours.close()
        serve(receiver, expected)
        os._exit(0)
    theirs.close()
    for number in range(window):  # the first touch of every page is not what is measured
        sender.send(number, data)
    _take(ours, window)
    before, started = _cpu(resource.RUSAGE_SELF), time.perf_counter()
    for number in range(blocks + window):
        if number >= window:
            _take(ours, 1)
        if number < blocks:
            sender.send(number, data)
    wall, spent = time.perf_counter() - started, _cpu(resource.RUSAGE_SELF) - before
    ours.close()
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    size = blocks * BLOCK_BYTES / (1 << 30)
    return {
        "gib_per_s": size / wall,
        "sender_cpu_s_per_gib": spent / size,
        "receiver_cpu_s_per_gib": (usage.ru_utime + usage.ru_stime) / size,
    }


def _take(connection: socket.socket, count: int) -> None:
    done = 0
    while done < count:
        done += len(connection.recv(count - done))


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure all three and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--blocks", type=int, default=4096)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    descriptor = Ring.make()
    ways = {"stream": Stream, "memfd": SealedFiles, "ring": lambda connection: Ring(connection, descriptor)}
    found = {name: measure(make, asked.blocks, min(asked.window, RING_SLOTS)) for name, make in ways.items()}
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'':8}{'GiB/s':>8}{'sender CPU s/GiB':>20}{'receiver CPU s/GiB':>20}")
    for name, row in found.items():
        print(
            f"{name:8}{row['gib_per_s']:8.2f}{row['sender_cpu_s_per_gib']:20.3f}{row['receiver_cpu_s_per_gib']:20.3f}"
        )


if __name__ == "__main__":
    main()

"""Lookups of names that do not exist, as an engine asks for them: a batch of access(F_OK) per prompt."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

SECONDS = 1.0
BATCH = 256


def _client(directory: str, number: int, seconds: float) -> float:
    """Lookups per second of one client; every name is a new one."""
    access, found, asked = os.access, os.F_OK, 0
    started = time.perf_counter()
    end = started + seconds
    while (now := time.perf_counter()) < end:
        prefix = f"{directory}/{number}-{now:.9f}-"
        for name in [prefix + str(index) for index in range(BATCH)]:
            if access(name, found):
                raise AssertionError(f"{name} exists")
        asked += BATCH
    return asked / (time.perf_counter() - started)


def rates_of_clients(clients: int, call: Callable[..., float], *args: object) -> float:
    """Sum of what `clients` processes return for call(*args), started together."""
    with multiprocessing.get_context("fork").Pool(clients, initializer=_end_at_once_on_sigterm) as pool:
        return sum(pool.starmap(call, [(args[0], number, *args[1:]) for number in range(clients)]))


def _end_at_once_on_sigterm() -> None:
    """A client must not inherit the command's own handler: the pool ends its clients by SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def awake_processors() -> Iterator[None]:
    """Keep every processor from going idle, by spinning processes that yield to anybody.

    Waking an idle virtual processor takes as long as a lookup; the difference is the machine's and not ours.
    """
    spin = ["nice", "-n", "19", sys.executable, "-c", "while True: pass"]
    spinners = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def miss_lookups_per_s(directory: str, clients: int, seconds: float = SECONDS) -> float:
    """Miss lookups per second of `clients` client processes together."""
    return _client(directory, 0, seconds) if clients == 1 else rates_of_clients(clients, _client, directory, seconds)

"""A flood of small files on a mount: the metadata log's backlog keeps its bound, and the mount ends in time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvfsd.admin import admin_client
from tests import mountlib
from tests.mount.conftest import MakePool

pytestmark = pytest.mark.mount
Mounted = Callable[[mountlib.Mount], Path]

BOUND = 64
"""In place of METADATA_LOG_BACKLOG_MAX: files come through FUSE at a few thousand a second, and the log keeps up."""
REQUESTS_AT_ONCE = 99
"""Workers of pyfuse3: each may have passed the check before the backlog was full."""
KVFS = f"""
from kvfs import limits
limits.METADATA_LOG_BACKLOG_MAX = {BOUND}
from kvfsd.main import main
main()
"""
FLOOD = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
def work(worker):
    for number in range(int(sys.argv[2])):
        with open(f"{sys.argv[1]}/{worker}-{number}", "wb") as stream:
            stream.write(b"x" * 100)
with ThreadPoolExecutor(16) as threads:
    list(threads.map(work, range(16)))
"""
FILES_EACH = 50


def status(mount: mountlib.Mount) -> dict[str, Any]:
    (shown,) = json.loads(mountlib.run_program("kvfs", "status", str(mount.mountpoint), "--json", limit_s=30))
    return shown


def test_a_flood_keeps_the_bound_and_sigterm_ends_it_in_time(make_pool: MakePool, mounted: Mounted) -> None:
    pool = make_pool()
    mount = pool.mount()
    options = ",".join(mount.options)
    mount.command = (sys.executable, "-c", KVFS, "mount", "-f", mount.source, str(mount.mountpoint), "-o", options)
    mounted(mount)
    seen: list[int] = []
    done = threading.Event()
    socket = status(mount)["admin_socket"]

    def watch() -> None:
        while not done.wait(0.02):
            metrics = admin_client.call(socket, "status", deadline_ms=30_000)["metrics"]
            seen.append(metrics["gauges"]["metadata_log_backlog_entries"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        flood = [sys.executable, "-c", FLOOD, str(mount.mountpoint), str(FILES_EACH)]
        subprocess.run(flood, check=True, timeout=90)
    finally:
        done.set()
        watcher.join()
    assert status(mount)["metrics"]["counters"]["metadata_log_waits"] > 0
    assert 0 < max(seen) <= BOUND + REQUESTS_AT_ONCE
    assert mount.stop() == 0, mount.log_tail()
    again = pool.mount()
    mounted(again)
    names = subprocess.run(["ls", "-U", str(again.mountpoint)], capture_output=True, timeout=60, check=True)
    assert len(names.stdout.split()) == 16 * FILES_EACH
    assert again.stop() == 0

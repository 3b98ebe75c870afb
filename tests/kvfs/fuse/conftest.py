"""Fixture `mount`: a mount over the fake DPU half, served by a child process, taken away whatever happens."""

from __future__ import annotations

import base64
import errno
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mountlib import can_mount

LIMIT_S = 20.0


class ServedMount:
    """A mountpoint, and a line to the process that serves it."""

    def __init__(self, mountpoint: Path, log: Path, settings: dict[str, Any], *flags: str) -> None:
        self.path = mountpoint
        self.log = log
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.kvfs.fuse.served", str(mountpoint), json.dumps(settings), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            cwd=Path(__file__).parents[3],
        )
        assert self._answer() == "mounted"

    def _answer(self) -> Any:
        assert self.child.stdout is not None
        ready, _, _ = select.select([self.child.stdout], [], [], LIMIT_S)
        line = self.child.stdout.readline() if ready else b""
        assert line, f"the serving process says nothing; its log: {self.log.read_text()[-3000:]}"
        return json.loads(line)

    def order(self, **order: Any) -> Any:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(order).encode() + b"\n")
        self.child.stdin.flush()
        return self._answer()

    def fail(self, command: str, error: str, nth: int = 1, times: int = 1) -> None:
        self.order(fail=[command, error, nth, times])

    def content(self, path: str) -> bytes:
        return base64.b64decode(self.order(content=path))

    def state(self) -> dict[str, int]:
        return self.order(state=True)

    def settled(self, **expected: int) -> dict[str, int]:
        """The state, once it has these values: releases come after close(2) returned."""
        deadline = time.monotonic() + 5
        while True:
            state = self.state()
            if all(state[key] == value for key, value in expected.items()) or time.monotonic() > deadline:
                assert {key: state[key] for key in expected} == expected
                return state
            time.sleep(0.01)

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(LIMIT_S)

    def destroy(self) -> None:
        subprocess.run(["fusermount3", "-uz", str(self.path)], check=False, timeout=LIMIT_S, stderr=subprocess.DEVNULL)
        self.child.kill()
        self.child.wait(LIMIT_S)


@pytest.fixture
def make_mount() -> Iterator[Callable[..., ServedMount]]:
    """Makes mounts below a directory that every user may enter (pytest's own may not be)."""
    reason = can_mount()
    if reason is not None:
        pytest.skip(reason)
    made: list[ServedMount] = []
    with tempfile.TemporaryDirectory(prefix="kvfs-fuse-", ignore_cleanup_errors=True) as base:
        os.chmod(base, 0o755)

        def make(*flags: str, **settings: Any) -> ServedMount:
            mountpoint = Path(base, f"mnt{len(made)}")
            mountpoint.mkdir()
            made.append(ServedMount(mountpoint, Path(base, "served.log"), settings, *flags))
            return made[-1]

        try:
            yield make
        finally:
            for mount in made:
                mount.destroy()


@pytest.fixture
def mount(make_mount: Callable[..., ServedMount]) -> ServedMount:
    return make_mount()


def write_new(path: Path | str, data: bytes, flags: int = os.O_WRONLY) -> None:
    """One write of everything to a new file, as the engines do."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        assert os.write(descriptor, data) == len(data)
    finally:
        os.close(descriptor)


def code_of(call: Callable[..., object], *args: object, **kwargs: object) -> str:
    """The errno by name that the call fails with; it must fail."""
    try:
        call(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    raise AssertionError(f"{call.__name__} did not fail")

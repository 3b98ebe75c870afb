"""Run a mount in the background: the command returns when the mount is ready, or with the reason why it is not.

The child speaks through a pipe, one JSON value per line: notes for the user, then `ready` or `error`. A child that
ends without either has crashed; its log says why.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn, Protocol

from kvfs.errors import ConfigError, DeadlineExceededError, KvfsError
from kvfsd.cli.program import EXIT_FAILED, EXIT_OK, describe

START_DEADLINE_MS: Final = 300_000
"""A start after a crash reads back what the catalog does not know yet; past this it is given up."""
TEXT_MAX: Final = 4096
"""Characters of one message; its JSON fits an empty pipe (64 KiB), so the child never waits for a parent."""
RECEIVE_BYTES: Final = 64 * 1024
LOG_KEEP_BYTES: Final = 8 << 20
"""A log longer than this becomes NAME.1, at a start and while it is written: a mount's logs stay under twice this."""


class Readiness(Protocol):
    """What a starting mount reports to whoever started it."""

    def note(self, text: str) -> None:
        """Tell the user something, before `ready`."""
        ...

    def ready(self) -> None:
        """The mount answers."""
        ...


class PipeReadiness:
    """Reports to the waiting parent; silent once ready, and when the parent is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def note(self, text: str) -> None:
        """Send a line for the user."""
        self._send({"note": text[:TEXT_MAX]})

    def ready(self) -> None:
        """Let the parent return successfully."""
        self._send({"ready": True})
        self._close()

    def failed(self, text: str) -> None:
        """Let the parent fail with `text`."""
        self._send({"error": text[:TEXT_MAX]})
        self._close()

    def _send(self, value: dict[str, object]) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, json.dumps(value).encode("ascii") + b"\n")

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def run_in_background(
    serve: Callable[[Readiness], None], log: Path, tell: Callable[[str], None], deadline_ms: int = START_DEADLINE_MS
) -> None:
    """Fork; the child detaches from the terminal and runs `serve`; return once it said `ready`.

    Args:
        serve: the whole life of the mount; its exceptions before `ready` become this call's error.
        log: file that takes the child's stdout and stderr.
        tell: shows a note to the user.
        deadline_ms: how long to wait for `ready`; the child is ended after that.

    Raises:
        ConfigError: the log cannot be written, or the child's own error text.
        DeadlineExceededError: the child was not ready in time.
    """
    log_descriptor = _open_log(log)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_child(serve, PipeReadiness(writing), log_descriptor)
    os.close(writing)
    os.close(log_descriptor)
    try:
        _await_ready(reading, tell, f"look at {log}", time.monotonic() + deadline_ms / 1000)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        raise
    finally:
        os.close(reading)


def _open_log(log: Path) -> int:
    try:
        if log.exists() and log.stat().st_size > LOG_KEEP_BYTES:
            log.replace(f"{log}.1")
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write the log {log}: {error.strerror}") from error


def _run_child(serve: Callable[[Readiness], None], readiness: PipeReadiness, log_descriptor: int) -> NoReturn:
    """The child's whole life; never returns into the parent's code."""
    status = EXIT_FAILED
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log_descriptor, 1)
        os.dup2(log_descriptor, 2)
        faulthandler.enable()
        serve(readiness)
        status = EXIT_OK
    except BaseException as error:
        if not isinstance(error, KvfsError):
            traceback.print_exception(error)
        readiness.failed(describe(error))
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _await_ready(reading: int, tell: Callable[[str], None], hint: str, end: float) -> None:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    pending = b""
    while True:
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise DeadlineExceededError(f"the mount was not ready in time and was given up; {hint}")
        data = os.read(reading, RECEIVE_BYTES)
        if not data:
            raise ConfigError(f"the mount process died before it was ready; {hint}")
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            if _take(json.loads(line), tell):
                return


def _take(message: dict[str, object], tell: Callable[[str], None]) -> bool:
    """Act on one message of the child; True when it is ready."""
    if "error" in message:
        raise KvfsError(str(message["error"]))
    if "note" in message:
        tell(str(message["note"]))
    return "ready" in message

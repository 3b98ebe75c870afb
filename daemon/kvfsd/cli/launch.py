"""Start the serving process of a mount: here, or detached in the background with a log of its own."""

from __future__ import annotations

import logging
import os
import resource
import sys
from logging.handlers import RotatingFileHandler
from typing import Final

from kvfsd import directories
from kvfsd.admin import mounts
from kvfsd.cli import background, output
from kvfsd.cli.notify import notify
from kvfsd.cli.request import MountRequest

_SYSLOG_PRIORITY: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class ForegroundReadiness:
    """Reports on stderr, and to the service manager when there is one."""

    def note(self, text: str) -> None:
        """Print a line."""
        output.warn("kvfs", text)

    def ready(self) -> None:
        """Let systemd know (Type=notify)."""
        notify(f"READY=1\nMAINPID={os.getpid()}")


def in_foreground(asked: MountRequest) -> None:
    """Serve until unmounted or told to end; the log goes to stderr."""
    log_to(logging.StreamHandler(sys.stderr))
    _serve(asked, ForegroundReadiness(), "")


def in_background(asked: MountRequest) -> None:
    """Serve from a detached process; return when the mount is ready."""
    log = directories.ensure_private(directories.logs()) / f"{mounts.mount_id(asked.mountpoint)}.log"

    def serve(readiness: background.Readiness) -> None:
        # stdout and stderr of the child go to the same file; only what is logged can grow without bound
        log_to(RotatingFileHandler(log, maxBytes=background.LOG_KEEP_BYTES, backupCount=1))
        _serve(asked, readiness, str(log))

    background.run_in_background(serve, log, lambda text: output.warn("kvfs", text))


def _serve(asked: MountRequest, readiness: background.Readiness, log: str) -> None:
    # a core file would hold keys and plaintext
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if asked.split:
        from kvfsd.cli import attached  # knows no cipher

        attached.serve(asked, readiness, log)
    else:
        from kvfsd.cli import embedded

        embedded.serve(asked, readiness, log)


class _JournalFormatter(logging.Formatter):
    """Lines that start with their priority, as sd-daemon(3) has it; the journal adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of text for `record`; a traceback's lines get the priority too."""
        prefix = f"<{_SYSLOG_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def log_to(handler: logging.Handler) -> None:
    """Have everything from INFO on go to `handler`, in the journal's form where that is at the other end."""
    if not isinstance(handler, RotatingFileHandler) and _stderr_is_journal():
        handler.setFormatter(_JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _stderr_is_journal() -> bool:
    """$JOURNAL_STREAM names this very stderr (systemd.exec(5)); the variable alone is inherited by terminals, too."""
    status = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"

"""`kvfsd` that kills itself (SIGKILL) when the answer to a command named in $KVFS_DIE_AT is due, after its effect."""

from __future__ import annotations

import os
import signal
import sys

from kvfs.commands import Request
from kvfsd.cli.daemon_app import main
from kvfsd.server.connection import Connection

_answer = Connection._answer


async def answer_or_die(self: Connection, request: Request, done: tuple, slot: int | None = None) -> None:
    if type(request.command).__name__ == os.environ.get("KVFS_DIE_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    await _answer(self, request, done, slot)


Connection._answer = answer_or_die

if __name__ == "__main__":
    sys.exit(main())

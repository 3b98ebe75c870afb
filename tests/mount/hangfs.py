"""A null filesystem in which the name `hang` is never answered: what a mount looks like when its process is stuck."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import trio

from tests.bench import nullfs


class HangingOperations(nullfs.NullOperations):
    async def lookup(self, parent_inode, name, ctx=None):
        if name == b"hang":
            await trio.sleep_forever()
        return await super().lookup(parent_inode, name, ctx)


if __name__ == "__main__":
    nullfs.NullOperations = HangingOperations  # type: ignore[misc]
    nullfs.main()

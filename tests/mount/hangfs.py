"""A null filesystem in which the name `hang` is never answered: what a mount looks like when its process is stuck."""

from __future__ import annotations

import sys

import trio

from kvfs_tools.quickstart import nullfs


class HangingFilesystem(nullfs.NullFilesystem):
    async def lookup(self, parent_inode, name, ctx):
        if name == b"hang":
            await trio.sleep_forever()
        return await super().lookup(parent_inode, name, ctx)


if __name__ == "__main__":
    nullfs.serve(HangingFilesystem(), sys.argv[1])

"""Pools with content for the tests of kvfsctl, and kvfsctl run in this process."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from kvfs import limits
from kvfs.commands import Link, MakeNode, SetXattr
from kvfs_tools import main
from kvfsd.pool.pool import Pool
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.service import Service
from tests.kvfsd.serving import Host

DIRECTORY_MODE = 0o40755
LINK_MODE = 0o120777


@dataclass(frozen=True)
class Kvfsctl:
    """`kvfsctl` in this process, below a directory of its own."""

    base: Path
    capture: pytest.CaptureFixture[str]

    @property
    def pool(self) -> str:
        return str(self.base / "pool")

    def run(self, *argv: str) -> tuple[int, str, str]:
        self.capture.readouterr()
        status = main.main(argv)
        captured = self.capture.readouterr()
        return status, captured.out, captured.err

    def ok(self, *argv: str) -> str:
        status, out, error = self.run(*argv)
        assert status == 0, error
        return out

    def json(self, *argv: str) -> Any:
        return json.loads(self.ok(*argv, "--json"))

    def refused(self, *argv: str, status: int = 1) -> str:
        found, out, error = self.run(*argv)
        assert found == status, (found, out, error)
        assert error.count("\n") == 1, error
        return error

    def create(self, *options: str) -> None:
        size = () if "--medium" in options else ("--size", "64M")
        words = ("--kek", str(self.base / "pool.kek"), "--tenant", "blue")
        self.ok("pool", "create", self.pool, *size, *words, *options)

    def fill(self, content: Callable[[Host], Any], tenant: str = "blue") -> None:
        """Let `content` (an async function of a Host) write into a tenant."""
        self.fill_at(self.pool, content, tenant)

    def fill_at(self, directory: str, content: Callable[[Host], Any], tenant: str = "blue") -> None:
        """The same in the pool in `directory`."""

        async def write() -> None:
            pool = await Pool.open(Path(directory))
            try:
                async with Service.open(pool) as service:
                    pair = InProcessQueuePair(service.attach(tenant))
                    await content(Host(pair))
                    await pair.aclose()
            finally:
                await pool.aclose()

        trio.run(write)

    def sql(self, statement: str, *parameters: object) -> None:
        """Damage the catalog of a closed pool."""
        connection = sqlite3.connect(f"{self.pool}/catalog.db")
        with connection:
            assert connection.execute(statement, parameters).rowcount >= 1
        connection.close()


async def some_files(host: Host) -> None:
    """/d/two (two blocks, a second name /d/again, an attribute), /small, /b\\xff (a name that is no UTF-8), /link."""
    made = await host.submit(MakeNode(1, b"d", DIRECTORY_MODE, 0, 0, b""))
    directory = made.result.attributes.ino
    two = await host.store(b"two", os.urandom(limits.BLOCK_BYTES + 5), directory)
    await host.submit(Link(two.ino, directory, b"again"))
    await host.submit(SetXattr(two.ino, b"user.crc", b"1", 0))
    await host.store(b"small", b"hello")
    await host.store(b"b\xff\x1b[31m", b"odd")
    await host.submit(MakeNode(1, b"link", LINK_MODE, 0, 0, b"d/two"))

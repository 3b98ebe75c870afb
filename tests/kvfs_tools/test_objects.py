import json
import os
import subprocess

import trio

from kvfsd.pool.pool import Pool
from tests import mountlib


def blue(filled) -> str:
    return f"blue@{filled.pool}"


def test_ls_shows_a_directory_and_escapes_names(filled):
    lines = filled.ok("ls", blue(filled)).splitlines()
    names = sorted(line.split()[-1] for line in lines)
    assert names == ["b\\xff\\x1b[31m", "d", "link", "small"]
    assert any(line.startswith("-rw-r----- ") and line.split()[4] == "5" for line in lines)


def test_ls_goes_down_and_speaks_json_by_the_line(filled):
    lines = [json.loads(line) for line in filled.ok("ls", "-R", "--json", blue(filled)).splitlines()]
    assert {os.fsencode(line["path"]) for line in lines} == {
        b"/d",
        b"/d/two",
        b"/d/again",
        b"/small",
        b"/b\xff\x1b[31m",
        b"/link",
    }
    two = next(line for line in lines if line["path"] == "/d/two")
    assert (two["kind"], two["size"], two["stored_bytes"], two["nlink"]) == ("file", (1 << 20) + 5, (1 << 20) + 5, 2)
    assert filled.ok("ls", blue(filled), "/d/two").endswith("two\n")


def test_stat_shows_attributes_and_places(filled):
    found = filled.json("stat", blue(filled), "d/two")
    assert found["xattrs"] == ["user.crc"]
    assert [(block["block"], block["length"], len(block["replicas"])) for block in found["blocks"]] == [
        (0, 1 << 20, 1),
        (1, 5, 1),
    ]
    assert filled.json("stat", blue(filled), "/link")["target"] == "d/two"
    text = filled.ok("stat", blue(filled), "/d/two")
    assert "user.crc" in text
    assert "2 block(s)" in text


def test_what_is_not_there_is_said(filled):
    assert "no such name" in filled.refused("stat", blue(filled), "/d/none")
    assert "no directory" in filled.refused("ls", blue(filled), "/small/x")
    assert "no .." in filled.refused("ls", blue(filled), "/d/../small")
    assert "no tenant default" in filled.refused("ls", filled.pool)


def test_nothing_that_looks_writes(filled):
    def content() -> dict[str, bytes]:
        files = [path for path in filled.base.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files}

    before = content()
    for argv in (
        ("pool", "info", filled.pool),
        ("tenant", "list", filled.pool),
        ("ls", "-R", blue(filled)),
        ("stat", blue(filled), "/small"),
        ("verify", filled.pool),
        ("check", filled.pool),
    ):
        filled.ok(*argv)
    assert content() == before


def test_a_pool_that_is_open_elsewhere_is_looked_at_and_not_changed(filled):
    """The test's process has the pool open for writing; kvfsctl is another one."""

    def other(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [mountlib.program("kvfsctl"), *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    async def beside() -> None:
        pool = await Pool.open(filled.base / "pool")
        try:
            looks = [
                ("ls", blue(filled)),
                ("verify", filled.pool),
                ("check", filled.pool),
                ("pool", "info", filled.pool),
            ]
            for argv in looks:
                done = await trio.to_thread.run_sync(other, *argv)
                assert done.returncode == 0, done.stderr
            done = await trio.to_thread.run_sync(other, "tenant", "create", filled.pool, "red")
            assert done.returncode == 1
            assert f"open in process {os.getpid()}" in done.stderr
        finally:
            await pool.aclose()

    trio.run(beside)

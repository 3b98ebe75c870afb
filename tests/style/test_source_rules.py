"""Each source rule finds a planted violation, and only that."""

import pytest

from tests.style import source_rules as rules

DOC = '"""Module."""\n'


def function(lines: int, name: str = "grow") -> str:
    return f"def {name}() -> None:\n" + '    """Doc."""\n' + "    x = 1\n" * (lines - 2)


@pytest.mark.parametrize(("lines", "found"), [(60, 0), (61, 1)])
def test_function_size(lines: int, found: int) -> None:
    assert len(rules.oversized("kvfs/a.py", DOC + function(lines))) == found


@pytest.mark.parametrize(("lines", "found"), [(40, 0), (41, 1), (60, 1), (61, 0)])
def test_large_function_is_reported_between_the_bars(lines: int, found: int) -> None:
    assert len(rules.large("kvfs/a.py", DOC + function(lines))) == found


@pytest.mark.parametrize(("lines", "found"), [(600, 0), (601, 1)])
def test_module_size(lines: int, found: int) -> None:
    assert len(rules.oversized("kvfs/a.py", "x = 1\n" * lines)) == found


@pytest.mark.parametrize(("lines", "found"), [(200, 0), (201, 1)])
def test_class_size(lines: int, found: int) -> None:
    text = "class Store:\n" + "    x = 1\n" * (lines - 1)
    assert len(rules.oversized("kvfs/a.py", text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def f(a, b, c, d, e): ...", 0),
        ("def f(a, b, c, d, e, g): ...", 1),
        ("def f(a, b, c, d, *, e, g): ...", 1),
        ("class A:\n    async def f(self, a, b, c, d, e): ...", 0),
        ("class A:\n    async def f(self, a, b, c, d, e, g): ...", 1),
        ("@app.command()\ndef f(a, b, c, d, e, g): ...", 0),
        ("class A:\n    async def rename(self, a, b, c, d, e, g): ...", 0),
    ],
)
def test_argument_count(text: str, found: int) -> None:
    assert len(rules.long_signatures("kvfs/a.py", text)) == found


def test_arguments_of_commands_are_options() -> None:
    assert not rules.long_signatures("tools/kvfs_tools/object_commands.py", "def f(a, b, c, d, e, g): ...")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (DOC + 'def f(a: int) -> int:\n    """Doc."""', 0),
        ("x = 1", 1),
        (DOC + "def f(a: int) -> int: ...", 1),
        (DOC + 'def f(a) -> int:\n    """Doc."""', 1),
        (DOC + 'def f(a: int):\n    """Doc."""', 1),
        (DOC + "class A: ...", 1),
        (DOC + 'class A:\n    """Doc."""\n    def f(self) -> None: ...', 1),
        (DOC + "def _f(a): ...", 0),
        (DOC + "class _A:\n    def f(self): ...", 0),
    ],
)
def test_public_names_are_documented_and_typed(text: str, found: int) -> None:
    assert len(rules.undocumented("kvfs/a.py", text)) == found


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("kvfs/a.py", "x = 1", 0),
        ("kvfs/utils.py", "x = 1", 1),
        ("kvfs/a.py", "class BlockManager: ...", 1),
        ("kvfs/a.py", "def open_helper(): ...", 1),
        ("kvfs/a.py", "def f(misc_values): ...", 1),
        ("kvfs/a.py", "chunk = 1", 1),
        ("kvfs/a.py", "self.pages = 1", 1),
        ("kvfs/a.py", "utilisation = management = 1", 0),
        ("kvfs/a.py", "page_cache = 1", 0),
        ("kvfs/a.py", "import mmap\nprint(mmap.PAGESIZE)", 0),
    ],
)
def test_vague_names(path: str, text: str, found: int) -> None:
    assert len(rules.vague_names(path, text)) == found


@pytest.mark.parametrize(
    ("comment", "found"),
    [
        ("# noqa: S101 - a test of the assertion itself", 0),
        ("# type: ignore[misc]  # msgspec's metaclass", 0),
        ("# noqa: S101", 1),
        ("# noqa", 1),
        ("# type: ignore", 1),
        ("# type: ignore[misc]", 1),
        ("# ignore the rest", 0),
    ],
)
def test_ignores_carry_a_reason(comment: str, found: int) -> None:
    assert len(rules.unreasoned_ignores("kvfs/a.py", f"x = 1  {comment}\n")) == found


def test_module_name_follows_the_source_roots() -> None:
    assert rules.module_name("kvfs/fuse/__init__.py") == "kvfs.fuse"
    assert rules.module_name("daemon/kvfsd/media/file.py") == "kvfsd.media.file"
    assert rules.module_name("tools/kvfs_tools/main.py") == "kvfs_tools.main"


@pytest.mark.parametrize(
    ("user", "other", "found"),
    [
        ("import kvfsd.lonely", "", 0),
        ("from kvfsd import lonely", "", 0),
        ("from kvfsd.lonely import thing", "", 0),
        ("from .lonely import thing", "", 0),
        ("command = ['python', '-m', 'kvfsd.lonely']", "", 0),
        ("import os", 'lonely = "kvfsd.lonely:main"', 0),
        ("import os", "", 1),
        ("from kvfsd.lonely_other import thing", "", 1),
    ],
)
def test_dead_module(user: str, other: str, found: int) -> None:
    sources = {"daemon/kvfsd/lonely.py": "import kvfsd.lonely", "daemon/kvfsd/user.py": user}
    findings = rules.dead_modules(sources, other + ' "kvfsd.user"')
    assert [finding.where for finding in findings] == ["daemon/kvfsd/lonely.py"] * found


@pytest.mark.parametrize(("runner", "found"), [("run_engine.py", 0), ("engine.py", 1)])
def test_scripts_beside_a_runner_are_alive(runner: str, found: int) -> None:
    sources = {"tools/x/lonely.py": "", f"tools/x/{runner}": "import lonely"}
    assert len(rules.dead_modules(sources, "x.run_engine x.engine")) == found

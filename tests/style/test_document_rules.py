"""Each document rule finds a planted violation, and only that."""

import pytest

from tests.style import document_rules as rules

SLASH = "/"
DOT = "."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"cd {SLASH}home{SLASH}ada", 1),
        (f'path = "{SLASH}root{SLASH}.cache"', 1),
        (f"{SLASH}work{SLASH}tmp", 1),
        ("/etc/fuse.conf and /dev/fuse and /proc/self", 0),
        ("docs/root/x", 0),
        ("$HOME/work/x", 0),
    ],
)
def test_machine_paths(text: str, found: int) -> None:
    assert len(rules.machine_paths("a.md", text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"--index-url https://pypi{DOT}org/simple", 1),
        (f"deb http://deb{DOT}debian{DOT}org/debian bookworm", 1),
        (f"docker pull ghcr{DOT}io/x", 1),
        ("Debian 12, Ubuntu 24.04, the package index", 0),
    ],
)
def test_registry_hosts(text: str, found: int) -> None:
    assert len(rules.registry_hosts("a.md", text)) == found


FILES = {"docs/A.md": "# Top\n## 3. What `it` does\n", "README.md": "# kvfs\n"}


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("A.md", 0),
        ("A.md#top", 0),
        ("A.md#3-what-it-does", 0),
        ("../README.md", 0),
        ("https://example.com/x", 0),
        ("B.md", 1),
        ("A.md#nothing", 1),
        ("../docs/C.md", 1),
    ],
)
def test_broken_links(target: str, found: int) -> None:
    assert len(rules.broken_links("docs/X.md", f"see [it]({target}).", FILES.get)) == found


def test_link_within_the_document() -> None:
    assert not rules.broken_links("docs/A.md", "[up](#top)", FILES.get)
    assert rules.broken_links("docs/A.md", "[up](#bottom)", FILES.get)


def test_links_in_code_are_not_links() -> None:
    assert not rules.broken_links("docs/A.md", "```\n[x](gone.md)\n```\n`[y](gone.md)`", FILES.get)


def test_missing_paths() -> None:
    text = "`docs/A.md`, `docs/gone.md`, `kvfs`, `tools/`, `docs/*.md`"
    assert [finding.what.split()[1] for finding in rules.missing_paths("X.md", text, FILES.__contains__)] == [
        "docs/gone.md,"
    ]


def test_architecture_files() -> None:
    text = """
## 2. The rooms

    kvfs/errors.py        one class per meaning
    kvfs/fuse/handles.py, pending.py   open handles; see other.py
    kvfsd/media/          base.py file.py: media
    kvfs_tools/main.py    the tool

## 3. Next
    kvfs/not_this.py
"""
    assert rules.architecture_files(text) == [
        "kvfs/errors.py",
        "kvfs/fuse/handles.py",
        "kvfs/fuse/pending.py",
        "daemon/kvfsd/media/base.py",
        "daemon/kvfsd/media/file.py",
        "tools/kvfs_tools/main.py",
    ]
    assert rules.architecture_folders(text) == ["daemon/kvfsd/media"]


def test_architecture_without_the_section_is_an_error() -> None:
    with pytest.raises(ValueError, match="no section 2"):
        rules.architecture_files("# nothing")


def test_quoted_commands() -> None:
    text = "```sh\n$ sudo kvfs mount \\\n   --flag A@B  # comment\nls\n```\nkvfs prose\n```python\nkvfs = 1\n```\n"
    assert rules.quoted_commands(text, ("kvfs",)) == [["kvfs", "mount", "--flag", "A@B"]]


def test_limit_rows() -> None:
    text = "| one file | 64 TiB | `FILE_MAX_BYTES` |\n| links | 65000 | `LINKS_MAX` |\n| what | some | `X` |\n"
    assert rules.limit_rows(text) == [("FILE_MAX_BYTES", "64 TiB", 1 << 46), ("LINKS_MAX", "65000", 65000)]


GOOD = "# Changelog\n\nWhat changed.\n\n## Unreleased\n\n### mount\n- It mounts.\n  More.\n\n## 0.1.0 - 2026-01-02\n"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda text: text, 0),
        (lambda text: text.replace("# Changelog", "# History", 1), 1),
        (lambda text: text.replace("## Unreleased", "## 0.2.0 - 2026-02-02"), 1),
        (lambda text: text.replace("2026-01-02", "January"), 1),
        (lambda text: text + "stray\n", 1),
        (lambda text: text + "- " + "x" * 120 + "\n", 1),
    ],
)
def test_changelog_form(change: object, found: int) -> None:
    assert callable(change)
    assert len(rules.changelog_form("CHANGELOG.md", change(GOOD))) == found

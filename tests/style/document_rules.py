"""Rules for documents and for every text file. Each takes text and returns findings."""

import re
from collections.abc import Callable, Iterator

from tests.style.source_rules import Finding

_PLACES = ("home", "root", "work", "Users", "mnt", "opt", "srv")
MACHINE_PATH = re.compile(r"(?<![\w.<>$}*])/(?:" + "|".join(_PLACES) + r")/[\w.-]+")
_REGISTRIES = ("pypi", "pythonhosted", "npmjs", "crates", "docker", "ghcr", "quay", "conda", "debian", "ubuntu")
REGISTRY_HOST = re.compile(
    r"\b(?:[\w-]+\.)*(?:" + "|".join(_REGISTRIES) + r")\.(?:org|io|com|net|cloud)\b", re.IGNORECASE
)
TOP_LEVEL = ("kvfs/", "daemon/", "tools/", "tests/", "docs/", "systemd/", ".ci/")


def machine_paths(path: str, text: str) -> list[Finding]:
    """Absolute paths of somebody's machine."""
    return [_at(path, text, match, f"machine path {match.group()}") for match in MACHINE_PATH.finditer(text)]


def registry_hosts(path: str, text: str) -> list[Finding]:
    """Host names of package registries and mirrors: which one is used is the machine's own setting."""
    return [_at(path, text, match, f"registry host {match.group()}") for match in REGISTRY_HOST.finditer(text)]


def _at(path: str, text: str, match: re.Match[str], what: str) -> Finding:
    return Finding(f"{path}:{text.count(chr(10), 0, match.start()) + 1}", what)


def _without_code(text: str) -> str:
    fenced = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", fenced.sub("", text))


def anchors(text: str) -> set[str]:
    """Anchors of a Markdown text's headings, as forges make them."""
    headings = re.findall(r"^#{1,6} +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(path: str, text: str, load: Callable[[str], str | None]) -> list[Finding]:
    """Relative links to files or headings that are not there; `load` gives a repository file's text or None."""
    found = []
    folder = path.rpartition("/")[0]
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        whole = _normal(f"{folder}/{file}" if file else path)
        content = load(whole)
        if content is None:
            found.append(Finding(path, f"link to {target}, which does not exist"))
        elif anchor and whole.endswith(".md") and anchor not in anchors(content):
            found.append(Finding(path, f"link to {target}: no such heading"))
    return found


def _normal(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in {"", ".", ".."}:
            parts.append(part)
    return "/".join(parts)


def missing_paths(path: str, text: str, exists: Callable[[str], bool]) -> list[Finding]:
    """Repository paths in back-quotes that do not exist."""
    quoted = re.findall(r"`([\w./-]+)`", text)
    named = [name for name in quoted if name.startswith(TOP_LEVEL) and "/" in name.rstrip("/")]
    return [Finding(path, f"names {name}, which does not exist") for name in named if not exists(name.rstrip("/"))]


def architecture_files(text: str) -> list[str]:
    """Repository paths of the files that section 2 of docs/ARCHITECTURE.md names."""
    section = re.search(r"^## 2\..*?$(.*?)^## 3\.", text, re.MULTILINE | re.DOTALL)
    if section is None:
        raise ValueError("docs/ARCHITECTURE.md has no section 2 followed by a section 3")
    return [path for line in section.group(1).splitlines() for path in _files_of(line.strip())]


def architecture_folders(text: str) -> list[str]:
    """Repository paths of the folders that section 2 names as a whole (`kvfsd/media/`)."""
    section = re.search(r"^## 2\..*?$(.*?)^## 3\.", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"^ +((?:kvfs|kvfsd|kvfs_tools)/\w+/)(?= )", section.group(1) if section else "", re.MULTILINE)
    return [_repository_path(path).rstrip("/") for path in named]


def _files_of(line: str) -> Iterator[str]:
    first, _, rest = line.partition(" ")
    first = first.rstrip(",")
    if not re.match(r"(kvfs|kvfsd|kvfs_tools)/", first):
        return
    folder, _, name = _repository_path(first).rpartition("/")
    if name:
        yield f"{folder}/{name}"
    # more files of the same folder follow as plain names, until the description starts
    for word in rest.split():
        if not re.fullmatch(r"\w+\.py[,:]?", word):
            return
        yield f"{folder}/{word.rstrip(',:')}"


def _repository_path(path: str) -> str:
    roots = {"kvfsd": "daemon/kvfsd", "kvfs_tools": "tools/kvfs_tools"}
    package, _, rest = path.partition("/")
    return f"{roots.get(package, package)}/{rest}"


def quoted_commands(text: str, programs: tuple[str, ...]) -> list[list[str]]:
    """Command lines of `programs` in fenced sh blocks: words of each line, comments and prompts removed."""
    commands = []
    for block in re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].strip().removeprefix("$ ").removeprefix("sudo ").split()
            if words and words[0] in programs:
                commands.append(words)
    return commands


_UNITS = {"": 1, "bytes": 1, "ms": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def limit_rows(text: str) -> list[tuple[str, str, int]]:
    """Rows `| what | 64 KiB | `NAME` |` of a table of limits: constant, the text, and the number it stands for."""
    rows = re.findall(r"^\|[^|]*\| (\d+) ?(\w*) \| `([A-Z_]+)` \|$", text, re.MULTILINE)
    return [(name, f"{number} {unit}".strip(), int(number) * _UNITS[unit]) for number, unit, name in rows]


def changelog_form(path: str, text: str) -> list[Finding]:
    """A changelog is: title, then versions (newest first, Unreleased on top), then rooms, then points."""
    found = []
    lines = text.splitlines()
    if not lines or lines[0] != "# Changelog":
        found.append(Finding(f"{path}:1", "does not start with '# Changelog'"))
    versions = [line for line in lines if line.startswith("## ")]
    if not versions or versions[0] != "## Unreleased":
        found.append(Finding(path, "the first version is not '## Unreleased'"))
    for number, line in enumerate(lines, start=1):
        if line.startswith("## ") and not re.fullmatch(r"## (Unreleased|\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d)", line):
            found.append(Finding(f"{path}:{number}", "a version is '## X.Y.Z - YYYY-MM-DD'"))
        if not re.match(r"$|#{1,3} |- |  \S", line) and not _is_preface(lines, number):
            found.append(Finding(f"{path}:{number}", "not a heading, a point or its continuation"))
        if len(line) > 120:
            found.append(Finding(f"{path}:{number}", "longer than 120 characters"))
    return found


def _is_preface(lines: list[str], number: int) -> bool:
    return not any(line.startswith("## ") for line in lines[:number])

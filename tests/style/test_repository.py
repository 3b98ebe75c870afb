"""The rules applied to this repository; every finding names a file, a line and what to do."""

import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest

from kvfs import limits
from tests.style import document_rules, source_rules
from tests.style.repository import ROOT, python_sources, read, repository_files
from tests.style.source_rules import Finding

SourceRule = Callable[[str, str], list[Finding]]

# What a foreign text says is its own business.
FOREIGN_TEXTS = ("tools/kvfs_tools/quickstart/data/LICENSE",)


def report(findings: list[Finding]) -> str:
    return "\n" + "\n".join(map(str, findings))


def text_files() -> dict[str, str]:
    texts = {}
    for path in repository_files():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content[:8192] and path not in FOREIGN_TEXTS:
            texts[path] = content.decode(errors="replace")
    return texts


@pytest.mark.parametrize(
    "rule",
    [
        source_rules.oversized,
        source_rules.long_signatures,
        source_rules.undocumented,
        source_rules.vague_names,
        source_rules.unreasoned_ignores,
    ],
    ids=lambda rule: rule.__name__,
)
def test_product_sources_keep(rule: SourceRule) -> None:
    findings = [finding for path in python_sources() for finding in rule(path, read(path))]
    assert not findings, report(findings)


def test_test_sources_keep_their_sizes() -> None:
    tests = [path for path in repository_files() if path.startswith("tests/") and path.endswith(".py")]
    findings = [finding for path in tests for finding in source_rules.oversized(path, read(path))]
    assert not findings, report(findings)


def test_large_functions_and_modules_are_reported() -> None:
    findings = [finding for path in python_sources() for finding in source_rules.large(path, read(path))]
    if findings:
        warnings.warn("over the soft size bar:" + report(findings), stacklevel=1)


# Product modules that only tests use so far.
FOR_TESTS = {
    "daemon/kvfsd/media/append_only.py": "a medium that allows only what object stores allow",
    "daemon/kvfsd/media/faulty.py": "fault injection with a medium's interface, for tests and the field",
    "daemon/kvfsd/media/memory.py": "the medium of the simulation",
    "daemon/kvfsd/media/volatile.py": "power loss on the medium of the simulation",
}


def test_no_module_is_dead() -> None:
    scripts = [path for path in repository_files() if path.startswith(("tools/", "tests/", ".ci/", "systemd/"))]
    shell = [path for path in scripts if not path.endswith((".py", ".md", ".jsonl"))]
    documented = [line for path in documents() for line in read(path).splitlines() if "python -m " in line]
    other = "\n".join([*(read(path) for path in ["pyproject.toml", *shell]), *documented])
    findings = source_rules.dead_modules({path: read(path) for path in python_sources()}, other)
    findings = [finding for finding in findings if finding.where not in FOR_TESTS]
    assert not findings, report(findings)


@pytest.mark.parametrize("rule", [document_rules.machine_paths, document_rules.registry_hosts])
def test_no_file_names(rule: SourceRule) -> None:
    findings = [finding for path, text in text_files().items() for finding in rule(path, text)]
    assert not findings, report(findings)


def documents() -> list[str]:
    return [path for path in repository_files() if path.endswith(".md")]


def load(path: str) -> str | None:
    target = ROOT / path
    if target.is_dir():
        return ""
    return target.read_text(errors="replace") if target.is_file() else None


@pytest.mark.parametrize("path", documents())
def test_document_names_only_what_exists(path: str) -> None:
    findings = document_rules.broken_links(path, read(path), load)
    findings += document_rules.missing_paths(path, read(path), lambda name: (ROOT / name).exists())
    assert not findings, report(findings)


def test_architecture_names_files_that_exist() -> None:
    named = document_rules.architecture_files(read("docs/ARCHITECTURE.md"))
    assert len(named) > 30
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing, f"docs/ARCHITECTURE.md section 2 names files that do not exist: {missing}"


def test_architecture_names_every_module() -> None:
    named = set(document_rules.architecture_files(read("docs/ARCHITECTURE.md")))
    folders = document_rules.architecture_folders(read("docs/ARCHITECTURE.md"))
    product = [path for path in python_sources() if path.startswith(("kvfs/", "daemon/"))]
    modules = [path for path in product if not path.endswith(("__init__.py", "__main__.py"))]
    unnamed = [path for path in modules if path not in named and path.rpartition("/")[0] not in folders]
    assert not unnamed, f"docs/ARCHITECTURE.md section 2 does not name: {unnamed}"


def test_changelog_has_its_form() -> None:
    findings = document_rules.changelog_form("CHANGELOG.md", read("CHANGELOG.md"))
    assert not findings, report(findings)


def test_limits_in_the_readme_are_those_of_the_code() -> None:
    rows = document_rules.limit_rows(read("README.md"))
    assert len(rows) > 10
    wrong = [
        f"{name}: README says {text}, code {getattr(limits, name)}"
        for name, text, value in rows
        if getattr(limits, name) != value
    ]
    assert not wrong, wrong


PROGRAMS = {"kvfs": "kvfsd.main", "kvfsctl": "kvfs_tools.main"}
USER_DOCUMENTS = [path for path in ("README.md", "docs/ENGINES.md") if (ROOT / path).exists()]


def quoted(programs: tuple[str, ...]) -> list[tuple[str, ...]]:
    commands = [c for path in USER_DOCUMENTS for c in document_rules.quoted_commands(read(path), programs)]
    return sorted({tuple(command) for command in commands})


def test_scripts_quoted_in_documents_exist() -> None:
    scripts = {command[1] for command in quoted(("bash",))}
    assert {"tools/test", "tools/quickstart"} <= scripts
    missing = [script for script in scripts if not (ROOT / script).is_file()]
    assert not missing, missing


def subcommand(words: tuple[str, ...]) -> tuple[str, ...]:
    """The leading plain words of a command line that are commands, not arguments."""
    plain = []
    for word in words:
        if not word.isalpha() or word.isupper() or len(plain) == 2:
            break
        plain.append(word)
    return tuple(plain)


def help_of(program: str, words: tuple[str, ...]) -> tuple[int, str]:
    command = [sys.executable, "-c", f"import sys; from {PROGRAMS[program]} import main; sys.exit(main())"]
    ran = subprocess.run(
        [*command, *words, "--help"], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize("command", quoted(tuple(PROGRAMS)), ids=" ".join)
def test_command_quoted_in_documents_exists(command: tuple[str, ...]) -> None:
    words = subcommand(command[1:])
    assert words, "a quoted command names its subcommand"
    status, text = help_of(command[0], words)
    assert status == 0, text
    options = [word.partition("=")[0] for word in command if word.startswith("--")]
    missing = [option for option in options if option not in text]
    assert not missing, f"{command[0]} {' '.join(words)} has no {missing}"

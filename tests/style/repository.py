"""What the style checks look at: the repository's own files, as git knows them."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("kvfs", "daemon", "tools")


def repository_files() -> list[str]:
    """Paths relative to the root: tracked files and new ones that git does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
    return sorted(path for path in set(listed) if (ROOT / path).is_file())


def python_sources() -> list[str]:
    """The product's Python files (tests are not the product)."""
    return [path for path in repository_files() if path.endswith(".py") and path.split("/")[0] in SOURCE_ROOTS]


def read(path: str) -> str:
    """Text of a repository file."""
    return (ROOT / path).read_text()

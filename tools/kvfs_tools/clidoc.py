"""Write docs/CLI.md from the commands themselves: `python -m kvfs_tools.clidoc`; `--check` only compares.

What is printed is what the commands declare (usage, text, options, examples), not how one version of typer lays it out,
so the document does not change with the library.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer

from kvfs_tools import main as tools_main
from kvfsd.cli import app as kvfs_app
from kvfsd.cli import daemon_app

DOCUMENT: Final = "docs/CLI.md"
_HEAD: Final = """\
# Commands

Written by `python -m kvfs_tools.clidoc` from the commands themselves; a test compares. Each command prints the same
with `--help`.

Every error is one line on stderr, `COMMAND: what is wrong; what to do`. Exit status: 0 done, 1 failed (or something
bad was found), 2 wrong command line, 130 interrupted; `mount.kvfs` uses those of mount(8). `--debug` anywhere, or
KVFS_DEBUG=1, shows tracebacks. A reader that closes the pipe early is no error.
"""
_MOUNT_HELPER: Final = """\
## mount.kvfs

    mount.kvfs SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]

What mount(8) runs for file systems of type `kvfs`; the options are those of `kvfs mount`. A line of fstab(5):

    blue@/var/lib/kvfs/pool  /var/lib/kvfs/blue  kvfs  kek=/etc/kvfs/pool.kek,allow_other,nofail  0 0
"""


def document() -> str:
    """The whole text of docs/CLI.md."""
    parts = [_HEAD]
    for name, app in (("kvfs", kvfs_app.app), ("kvfsd", daemon_app.app), ("kvfsctl", tools_main.app)):
        parts += _sections(name, typer.main.get_command(app))
        if name == "kvfs":
            parts.append(_MOUNT_HELPER)
    return "\n".join(parts)


def _sections(path: str, command: Any) -> Iterator[str]:
    """One section per command below `command`, depth first, in the order they were declared."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield _section(path, command)
        return
    if " " not in path:
        yield f"# {path}\n\n{_text(command.help)}\n"
    for name, subcommand in subcommands.items():
        yield from _sections(f"{path} {name}", subcommand)


def _section(path: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    words = " ".join([path, *(["[OPTIONS]"] if options else []), *(str(param.metavar) for param in arguments)])
    lines = [f"## {path}", "", f"    {words}", "", _text(command.help), ""]
    if options:
        lines += ["| option | |", "|---|---|", *(_option(param) for param in options), ""]
    if command.epilog:
        lines += ["```text", *_text(command.epilog).replace("\b\n", "").splitlines(), "```", ""]
    return "\n".join(lines)


def _text(text: str | None) -> str:
    return inspect.cleandoc(text or "").strip()


def _option(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    value = "" if param.is_flag else f" {param.metavar or 'VALUE'}"
    default = "" if param.is_flag or param.default in (None, "", [], ()) else f" (default {param.default})"
    return f"| {names}{value} | {(param.help or '').replace('|', chr(92) + '|')}{default} |"


def main() -> int:
    """Write or compare the document below the current directory -> exit status."""
    path = Path(DOCUMENT)
    if "--check" not in sys.argv[1:]:
        path.write_text(document())
        return 0
    if path.exists() and path.read_text() == document():
        return 0
    print(f"{DOCUMENT} differs from the commands; run python -m kvfs_tools.clidoc", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Every command explains itself, with an example, and docs/CLI.md says the same."""

from pathlib import Path
from typing import Any

import pytest
import typer

from kvfs_tools import clidoc, main
from kvfsd.cli import app as kvfs_app

ROOT = Path(__file__).resolve().parents[2]


def leaves(path: tuple[str, ...], command: Any) -> list[tuple[tuple[str, ...], Any]]:
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        return [(path, command)]
    return [leaf for name, one in subcommands.items() for leaf in leaves((*path, name), one)]


COMMANDS = leaves(("kvfs",), typer.main.get_command(kvfs_app.app)) + leaves(
    ("kvfsctl",), typer.main.get_command(main.app)
)


def test_the_document_is_what_the_commands_say():
    assert (ROOT / clidoc.DOCUMENT).read_text() == clidoc.document(), "run python -m kvfs_tools.clidoc"


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_command_has_help_examples_and_documented_options(path, command, capsys):
    run = kvfs_app.main if path[0] == "kvfs" else main.main
    assert run([*path[1:], "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: {' '.join(path)} " in shown
    assert command.help
    assert "Examples:" in command.epilog
    assert f"{' '.join(path)} " in command.epilog
    for param in command.params:
        assert param.param_type_name == "argument" or param.help, f"{path}: {param.name} is not explained"
    assert f"## {' '.join(path)}\n" in clidoc.document()

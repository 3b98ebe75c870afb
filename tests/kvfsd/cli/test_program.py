import os
import subprocess
import sys

import pytest
import typer

from kvfs.errors import ConfigError, NotFoundError
from kvfsd.cli import program
from kvfsd.cli.output import print_table, printable


def fail_with(error: BaseException) -> typer.Typer:
    app = program.new_app("Test.")

    @app.callback()
    def main() -> None:
        """Test."""

    @app.command(cls=program.Command)
    def go(count: int = 1) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (NotFoundError("no tenant x"), 1, "t: no tenant x"),
        (FileNotFoundError(2, "No such file or directory", "/p"), 1, "t: /p: No such file or directory"),
        (ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [ConfigError("b")])]), 1, "t: b"),
        (ValueError("two\nlines"), 1, "t: internal error: ValueError: two lines; --debug shows where"),
        (KeyboardInterrupt(), 130, "t: interrupted"),
        (program.usage_error("bad option"), 2, "t: bad option; see t go --help"),
    ],
)
def test_every_error_is_one_line_and_a_status(error, status, line, capsys):
    assert program.run(fail_with(error), "t", ["go"]) == status
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


@pytest.mark.parametrize("argv", [["go", "--nope"], ["nope"], ["go", "--count", "x"], ["go", "extra"]])
def test_a_wrong_command_line_has_status_2_and_one_line(argv, capsys):
    assert program.run(fail_with(ValueError()), "t", argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--help" in error


@pytest.mark.parametrize("argv", [["--debug", "go"], ["go", "--debug"]])
def test_a_traceback_comes_only_when_asked_for(argv, capsys):
    assert program.run(fail_with(ConfigError("b")), "t", argv) == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_arguments_print_the_help(capsys):
    assert program.run(fail_with(ValueError()), "t", []) == 0
    assert "Usage: t" in capsys.readouterr().out


def test_a_closed_pipe_is_success():
    text = (
        "import sys, typer; from kvfsd.cli import program; app = program.new_app('T.')\n"
        "@app.command(cls=program.Command)\n"
        "def go():\n"
        "    for _ in range(100000): print('x' * 100)\n"
        "sys.exit(program.run(app, 't', ['--']))"
    )
    child = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.read(10) == b"x" * 10
    child.stdout.close()
    assert child.wait(20) == 0
    assert child.stderr.read() == b""
    child.stderr.close()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain é", "plain é"),
        (b"\xff", "\\xff"),
        ("a\x1b[31m\n", "a\\x1b[31m\\x0a"),
        ("back\\slash", "back\\\\slash"),
        ("\u202e", "\\u202e"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_names_cannot_drive_a_terminal(name, shown):
    assert printable(name) == shown


def test_a_table_does_not_cut_and_does_not_interpret(capsys):
    print_table(("PATH", "N#"), [("/" + "x" * 150, 5), ("[red]a[/red]", 12345)])
    lines = capsys.readouterr().out.splitlines()
    assert any("x" * 150 in line for line in lines)
    assert any("[red]a[/red]" in line and line.endswith("12345") for line in lines)


def test_help_is_quick_and_loads_nothing_heavy():
    text = (
        "import sys; from kvfsd.cli import app; app.main(['mount', '--help']);"
        "heavy = {'trio', 'pyfuse3', 'cryptography', 'rich', 'sqlite3'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=30, env=os.environ)
    assert done.returncode == 0, done.stderr

"""How every kvfs command ends: one line on stderr and an exit status, a traceback only when asked for."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final

import typer
from typer.core import TyperCommand

from kvfs.errors import KvfsError

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells report it."""

HELP_WIDTH: Final = 100

_USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__bases__[0]
"""click's UsageError: typer shows only this subclass of it under a name of its own."""


class Command(TyperCommand):
    """A command whose usage line shows its arguments as declared: `kvfs mount [OPTIONS] [SOURCE] MOUNTPOINT`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words after the command's name."""
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *(str(getattr(param, "metavar", None) or param.name) for param in arguments)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; keep typer from ending the process its own way on a closed pipe or Ctrl-C."""
        try:
            returned = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise _PipeClosed from None
        except KeyboardInterrupt:
            raise _Interrupted from None
        return returned


class _PipeClosed(Exception):  # noqa: N818 - no error: whoever read our output has seen enough
    pass


class _Interrupted(Exception):  # noqa: N818 - what the user asked for
    pass


def new_app(summary: str) -> typer.Typer:
    """A command group with our conventions: plain help text, no tracebacks of its own, no completion installers."""
    return typer.Typer(
        help=summary,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
    )


def argument(metavar: str) -> Any:
    """A positional argument that the command's text explains; `metavar` is its name in the usage line."""
    return typer.Argument(metavar=metavar, hidden=True, show_default=False)


def version_option(name: str) -> Any:
    """The option --version of the program called `name`."""

    def show(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version

            print(f"{name} {version('kvfs')}")
            raise typer.Exit

    return typer.Option("--version", callback=show, help="Print the version and exit.", is_eager=True)


def examples(*lines: str) -> str:
    """An epilog that keeps its lines: command lines a reader can copy."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def usage_error(text: str) -> Exception:
    """An exception that ends a command with `text` and the exit status of a wrong command line."""
    return _USAGE_ERROR(text)


def run(app: typer.Typer, name: str, argv: Sequence[str]) -> int:
    """Run `app` on `argv` -> exit status. `--debug` may stand anywhere before `--`."""
    arguments, debug = _take_debug(argv)
    _tolerate_any_text()
    try:
        returned: Any = app(args=arguments or ["--help"], prog_name=name, standalone_mode=False)
    except _PipeClosed:
        # the interpreter's own flush at exit must not complain either
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except _USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else name
        return _fail(name, f"{_text(error)}; see {command} --help", EXIT_USAGE)
    except (_Interrupted, KeyboardInterrupt, typer.Abort):
        return _fail(name, "interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _fail(name, describe(error), EXIT_FAILED)
    return returned if isinstance(returned, int) else EXIT_OK


def _take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    options = list(argv)
    end = options.index("--") if "--" in options else len(options)
    kept = [word for word in options[:end] if word != "--debug"]
    return kept + options[end:], len(kept) < end or bool(os.environ.get("KVFS_DEBUG"))


def _tolerate_any_text() -> None:
    """Paths and names may hold what the terminal's encoding cannot show: show it escaped."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # absent where tests replace it


def _text(error: BaseException) -> str:
    formatted = getattr(error, "format_message", None)
    return " ".join(str(formatted() if formatted else error).split()).rstrip(".")


def _fail(name: str, text: str, status: int) -> int:
    with contextlib.suppress(OSError):
        print(f"{name}: {text}", file=sys.stderr, flush=True)
    return status


def describe(error: BaseException) -> str:
    """One line that says what went wrong, for any exception.

    Errors raised on purpose say it themselves; a group (trio) speaks through its first member of that kind.
    """
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, KvfsError):
            return _text(leaf)
    first = leaves[0]
    if isinstance(first, OSError) and first.strerror:
        where = "" if first.filename is None else f"{os.fsdecode(first.filename)}: "
        return f"{where}{first.strerror}"
    return f"internal error: {type(first).__name__}: {_text(first)}; --debug shows where"


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in _leaves(member)]
    return [error]

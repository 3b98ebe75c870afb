"""What commands print: tables for people, JSON for scripts; names never reach a terminal as control sequences."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Final

PIPE_WIDTH: Final = 240
"""Width of a table that does not go to a terminal: wide enough not to cut paths."""


def printable(name: str | bytes) -> str:
    """`name` with everything but printable characters escaped as \\xNN or \\uNNNN, and the backslash doubled."""
    text = os.fsdecode(name)
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as os.fsdecode keeps it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def print_json(value: object) -> None:
    """`value` as indented JSON on stdout; ASCII, so that it survives any terminal and any path."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Rows under headings; numbers right-aligned. A column whose heading ends with `#` is one of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column.rstrip("#"), justify="right" if column.endswith("#") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(table)
    # trailing blanks go; and plain print() raises BrokenPipeError as it is
    print("\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines()))


def warn(program: str, text: str) -> None:
    """A line on stderr that is no error."""
    print(f"{program}: {text}", file=sys.stderr, flush=True)

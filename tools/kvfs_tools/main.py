"""Entry point of `kvfsctl`: administration and inspection of pools."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from kvfs_tools import maintenance_commands, object_commands, pool_commands, quarantine_commands, tenant_commands
from kvfsd.cli import program

app = program.new_app("Make, administer and inspect kvfs pools. What only looks never writes.")


@app.callback()
def kvfsctl(
    *, debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (may stand anywhere).")] = False
) -> None:
    """Make, administer and inspect kvfs pools. What only looks never writes."""


app.add_typer(pool_commands.app, name="pool")
app.add_typer(tenant_commands.app, name="tenant")
object_commands.register(app)
maintenance_commands.register(app)
app.add_typer(quarantine_commands.app, name="quarantine")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kvfsctl` -> exit status."""
    return program.run(app, "kvfsctl", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    raise SystemExit(main())

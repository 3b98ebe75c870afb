"""The command `kvfsd`: the DPU half of a node as a process of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kvfsd.cli import program
from kvfsd.cli.options import KekOptions
from kvfsd.cli.program import argument, examples

app = program.new_app("Serve a pool to many mounts: keys, catalog and media in one process.")


@app.callback()
def kvfsd(
    *,
    version: Annotated[bool, program.version_option("kvfsd")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (may stand anywhere).")] = False,
) -> None:
    """Serve a pool to many mounts: keys, catalog and media in one process."""


@app.command(
    cls=program.Command,
    epilog=examples(
        "kvfsd serve /var/lib/kvfs/pool                 on the socket kvfsd.sock in the runtime directory",
        "kvfsd serve pool --kek pool.kek --socket /run/kvfs/kvfsd.sock --socket-mode 0666",
        "kvfs mount blue@/run/kvfs/kvfsd.sock /kv       a mount of tenant blue, in another process",
    ),
)
def serve(
    pool: Annotated[str, argument("POOL")],
    *,
    socket: Annotated[str, typer.Option("--socket", metavar="PATH", help="Where mounts attach.")] = "",
    socket_mode: Annotated[
        str,
        typer.Option("--socket-mode", metavar="MODE", help="Who may connect; who may attach is decided then."),
    ] = "0600",
    grace_s: Annotated[
        float, typer.Option("--grace", metavar="SECONDS", min=1.0, max=86_400.0, help="How long a lost mount is kept.")
    ] = 60.0,
    kek: Annotated[str, typer.Option("--kek", metavar="FILE", help="The pool's key file.")] = "",
    passphrase_file: Annotated[
        str, typer.Option("--passphrase-file", metavar="FILE", help="File whose first line is the pool's passphrase.")
    ] = "",
    credential: Annotated[
        str, typer.Option("--credential", metavar="NAME", help="systemd credential that holds the key.")
    ] = "",
) -> None:
    """Serve POOL until SIGTERM or SIGINT; the log goes to stderr.

    Mounts attach with kvfs mount TENANT@SOCKET MOUNTPOINT. A socket that systemd passes is used instead of --socket.
    Who may attach to a tenant is in the pool: see kvfsctl tenant set --uid, and kvfsctl tenant credential.
    """
    if not re.fullmatch(r"0?[0-7]{3}", socket_mode):
        raise program.usage_error(f"--socket-mode {socket_mode!r}: want three octal digits, for example 0660")
    from kvfsd.cli import serving

    serving.serve(
        serving.ServeRequest(
            pool=Path(os.path.realpath(pool)),
            socket=Path(os.path.abspath(socket)) if socket else None,
            socket_mode=int(socket_mode, 8),
            grace_ms=round(grace_s * 1000),
            kek=KekOptions(kek, passphrase_file, credential),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kvfsd` -> exit status."""
    return program.run(app, "kvfsd", sys.argv[1:] if argv is None else argv)

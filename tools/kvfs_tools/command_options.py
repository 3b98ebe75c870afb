"""Options and arguments that several commands of `kvfsctl` share."""

from __future__ import annotations

from typing import Annotated

import typer

from kvfsd.cli.program import argument

PoolDirectory = Annotated[str, argument("POOL")]
SourceText = Annotated[str, argument("[TENANT@]POOL")]
TenantName = Annotated[str, argument("NAME")]
Kek = Annotated[str, typer.Option("--kek", metavar="FILE", help="The pool's key file (default: as the pool was made).")]
PassphraseFile = Annotated[
    str, typer.Option("--passphrase-file", metavar="FILE", help="File whose first line is the pool's passphrase.")
]
CredentialName = Annotated[
    str, typer.Option("--credential", metavar="NAME", help="systemd credential that holds the key.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

"""Options and arguments that several commands of `kvfsctl` share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import typer

from kvfsd.cli.options import KekOptions
from kvfsd.cli.program import argument

R = TypeVar("R")

PoolDirectory = Annotated[str, argument("POOL")]
SourceText = Annotated[str, argument("[TENANT@]POOL")]
TenantName = Annotated[str, argument("NAME")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_KEY_OPTIONS: Final[dict[str, Any]] = {
    "kek": Annotated[
        str, typer.Option("--kek", metavar="FILE", help="The pool's key file (default: as the pool was made).")
    ],
    "passphrase_file": Annotated[
        str, typer.Option("--passphrase-file", metavar="FILE", help="File whose first line is the pool's passphrase.")
    ],
    "credential": Annotated[
        str, typer.Option("--credential", metavar="NAME", help="systemd credential that holds the key.")
    ],
}
"""The fields of KekOptions as options of a command."""


def with_key(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options that say where the pool's key is, in place of its parameter `key: KekOptions`."""
    signature = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=option)
        for name, option in _KEY_OPTIONS.items()
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += options if parameter.name == "key" else [parameter]

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> R:
        key = KekOptions(**{name: kwargs.pop(name) for name in _KEY_OPTIONS})
        return command(*args, key=key, **kwargs)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads it
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options

"""The key source that options name."""

from __future__ import annotations

from pathlib import Path

from kvfsd.cli.options import KekOptions, check_one_key
from kvfsd.crypto.kek import Credential, KekSource, Passphrase, RawKeyFile


def kek_source(options: KekOptions) -> KekSource | None:
    """Where the KEK is to be read from; None = as it was given when the pool was made.

    Raises:
        ConfigError: more than one is given, or a credential's name is none.
    """
    check_one_key(options)
    if options.kek:
        return RawKeyFile(Path(options.kek).absolute())
    if options.passphrase_file:
        return Passphrase.from_file(Path(options.passphrase_file).absolute())
    if options.credential:
        return Credential(options.credential)
    return None

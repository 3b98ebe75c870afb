"""`pool.json`: what a pool's state directory says about the pool before anything is opened (docs/FORMAT.md, pool file).

It names the media, the key file's directory and the kind of KEK; nothing in it is secret. Two copies with a checksum,
replaced one after the other; the higher sequence wins. JSON, because people read it and no TOML writer is among our
libraries.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from kvfs import limits
from kvfs.errors import ConfigError, FormatError, InvalidArgumentError, NotFoundError
from kvfsd.crypto.kek import sync_directory

VERSION: Final = 1
NAMES: Final = ("pool.json", "pool.json.bak")
FILE_MAX_BYTES: Final = limits.MIB
"""256 media with paths of PATH_MAX bytes, escaped, fit; a longer file is refused."""


class MediumEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One medium: its index in locations, its UUID in hex, and where it is found."""

    index: int
    uuid: str
    path: str


class KekEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the KEK was given when the pool was made, so that a mount needs no option for it.

    `kind`: "file", "passphrase-file", "passphrase" or "credential"; `name`: its path, or the credential's name.
    """

    kind: str
    name: str = ""


class PoolFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that `pool.json` says."""

    uuid: str
    replicas: int
    key_directory: str
    kek: KekEntry
    media: tuple[MediumEntry, ...]
    version: int = VERSION
    sequence: int = 1

    @property
    def pool(self) -> bytes:
        """The pool's UUID, 16 bytes."""
        return uuid.UUID(hex=self.uuid).bytes


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pool: msgspec.Raw
    xxh3_64: str


class _Version(msgspec.Struct, frozen=True):
    version: int


def absolute(directory: Path) -> Path:
    """`directory` from the root, links not followed: the name people will see in errors."""
    return Path(os.path.abspath(directory))


def stored_path(path: Path, directory: Path) -> str:
    """A medium's path as the pool file of `directory` (absolute) keeps it.

    Inside it, it is relative, so that they move together. InvalidArgumentError if it is not UTF-8.
    """
    full = path.absolute()
    return utf8_text(full.relative_to(directory) if full.is_relative_to(directory) else full)


def utf8_text(path: Path) -> str:
    """`path` as text; InvalidArgumentError if it is not UTF-8."""
    try:
        return str(path).encode().decode()
    except UnicodeError:
        raise InvalidArgumentError(f"path {str(path)!r} is not UTF-8") from None


def encode(pool_file: PoolFile) -> bytes:
    """The file's bytes: the pool as one JSON object on a line of its own, and its checksum."""
    body = msgspec.json.encode(pool_file)
    return b'{"pool":\n' + body + b',\n"xxh3_64":"' + xxhash.xxh3_64_hexdigest(body).encode() + b'"}\n'


def decode(content: bytes, where: str) -> PoolFile:
    """The reverse of `encode`; FormatError naming `where` if a byte of it was changed or the version is not known."""
    if len(content) > FILE_MAX_BYTES:
        raise FormatError(f"{where}: longer than {FILE_MAX_BYTES} bytes")
    try:
        envelope = msgspec.json.decode(content, type=_Envelope)
        body = bytes(envelope.pool)
        if xxhash.xxh3_64_hexdigest(body) != envelope.xxh3_64:
            raise FormatError(f"{where}: checksum differs: damaged, or edited by hand")
        version = msgspec.json.decode(body, type=_Version).version
        if version != VERSION:
            raise FormatError(f"{where}: pool format {version} is not known to this kvfs (want {VERSION})")
        found = msgspec.json.decode(body, type=PoolFile)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError(f"{where}: {error}") from error
    _check(found, where)
    return found


def write(directory: Path, pool_file: PoolFile) -> None:
    """Durably replace both copies; ConfigError if that fails (a copy is then the old or the new one, whole)."""
    content = encode(pool_file)
    for name in NAMES:
        try:
            _replace(directory / name, content)
        except OSError as error:
            raise ConfigError(f"cannot write {directory / name}: {error.strerror}") from error


def read(directory: Path) -> tuple[PoolFile, list[str]]:
    """The newest whole copy, and what is wrong with the other.

    Raises:
        NotFoundError: there is no pool in `directory`.
        FormatError: neither copy is whole.
    """
    found: list[PoolFile] = []
    faults: list[str] = []
    missing = 0
    for path in (directory / name for name in NAMES):
        try:
            with path.open("rb") as file:
                found.append(decode(file.read(FILE_MAX_BYTES + 1), str(path)))
        except (FileNotFoundError, NotADirectoryError):
            missing += 1
            faults.append(f"{path}: missing")
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
        except FormatError as error:
            faults.append(str(error))
    if missing == len(NAMES):
        raise NotFoundError(f"{directory} holds no pool: there is no {NAMES[0]} in it")
    if not found:
        raise FormatError(f"neither copy of the pool file is whole: {'; '.join(faults)}")
    best = max(found, key=lambda pool_file: pool_file.sequence)
    faults += [f"{directory}: the copies of {NAMES[0]} differ"] if any(one != best for one in found) else []
    return best, faults


def _check(found: PoolFile, where: str) -> None:
    try:
        identities = {uuid.UUID(hex=text) for text in (found.uuid, *(medium.uuid for medium in found.media))}
    except ValueError as error:
        raise FormatError(f"{where}: UUID: {error}") from error
    count = len(found.media)
    if not 1 <= count <= limits.MEDIA_PER_POOL_MAX or not 1 <= found.replicas <= limits.REPLICAS_MAX:
        raise FormatError(f"{where}: {count} media, {found.replicas} replicas: out of range")
    indices = {medium.index for medium in found.media}
    if len(indices) != count or len(identities) != count + 1 or not indices <= set(range(limits.MEDIA_PER_POOL_MAX)):
        raise FormatError(f"{where}: two media with one index or UUID, or an index out of range")
    if any("\0" in path for path in (found.key_directory, *(medium.path for medium in found.media))):
        raise FormatError(f"{where}: a path holds a zero byte")


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    os.rename(fresh, path)
    sync_directory(path.parent)

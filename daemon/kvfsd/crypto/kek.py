"""Where a pool's KEK comes from: a key file, a passphrase, a systemd credential. Never a command line argument.

A KEK is 32 bytes. It is read when a pool is created or opened and stays in memory for as long as the pool is open,
because replacing the slot key needs it. docs/OPERATIONS.md says how to make one; docs/THREATS.md what hangs on it.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from kvfs.errors import ConfigError, ExistsError, WrongKeyError
from kvfsd.crypto.kdf import KEY_BYTES, Stretch
from kvfsd.ports import Randomness

SECRET_FILE_MAX_BYTES: Final = 4096
"""A key file or passphrase is read up to here; longer is refused."""
PASSPHRASE_MIN_BYTES: Final = 8

FROM_FILE: Final = "file"
FROM_CREDENTIAL: Final = "credential"
FROM_PASSPHRASE_FILE: Final = "passphrase-file"
FROM_PROMPT: Final = "passphrase"


class KekKind(enum.IntEnum):
    """How a KEK comes about; part of the key file's format."""

    RAW = 1
    """32 random bytes, from a file or a credential."""
    PASSPHRASE = 2
    """scrypt of a passphrase."""


class KekSource(Protocol):
    """One way to a KEK. `path` is the file that holds the secret, if there is one.

    `origin` is (kind, name) as the pool file keeps it, so that :func:`source_of` finds the source again.
    """

    kind: KekKind
    description: str
    path: Path | None
    origin: tuple[str, str]

    def key(self, stretch: Stretch | None) -> bytes:
        """The KEK, 32 bytes; `stretch` is given for a passphrase only.

        Raises:
            WrongKeyError: it is missing, malformed, or open to other users.
        """
        ...


class RawKeyFile:
    """A file with 64 hexadecimal digits on one line; mode 0600 or stricter, owned by us or by root."""

    kind = KekKind.RAW

    def __init__(self, path: Path) -> None:
        self.path: Path | None = path
        self._file = path
        self.description = f"key file {path}"
        self.origin = (FROM_FILE, str(path.absolute()))

    @classmethod
    def create(cls, path: Path, randomness: Randomness) -> RawKeyFile:
        """Write a fresh key to `path`, mode 0600, on stable storage; ExistsError if something is there."""
        line = randomness.token(KEY_BYTES).hex() + "\n"
        write_new_private(path, line.encode("ascii"))
        return cls(path)

    def key(self, stretch: Stretch | None) -> bytes:
        """The key in the file; WrongKeyError if the file is missing, malformed or open to others."""
        return _raw_key(read_secret(self._file, 0o077), self.description)


class Credential:
    """A systemd credential (`LoadCredential=`, `LoadCredentialEncrypted=`) with the content of a key file."""

    kind = KekKind.RAW

    def __init__(self, name: str, environment: Mapping[str, str] = os.environ) -> None:
        if not name or "/" in name or name.startswith("."):
            raise ConfigError(f"systemd credential {name!r}: want a plain name")
        directory = environment.get("CREDENTIALS_DIRECTORY", "")
        self._file = Path(directory) / name if directory.startswith("/") else None
        self.path: Path | None = None
        """Credentials lie in memory that is not swapped, not beside anything."""
        self.description = f"systemd credential {name}"
        self.origin = (FROM_CREDENTIAL, name)

    def key(self, stretch: Stretch | None) -> bytes:
        """The key in the credential; WrongKeyError if there is none or it is malformed."""
        if self._file is None:
            raise WrongKeyError(
                f"{self.description}: $CREDENTIALS_DIRECTORY is not set; start kvfs from its systemd unit"
            )
        # systemd grants the service's user by an access list, which shows as group bits of the mode.
        return _raw_key(read_secret(self._file, 0o007), self.description)


class Passphrase:
    """A passphrase from a callable (prompt), a file or a descriptor; only the first line counts, read once."""

    kind = KekKind.PASSPHRASE

    def __init__(self, read: Callable[[], bytes], description: str = "passphrase", path: Path | None = None) -> None:
        self.path = path
        self.description = description
        self.origin = (FROM_PROMPT, "") if path is None else (FROM_PASSPHRASE_FILE, str(path.absolute()))
        self._read = read
        self._line: bytes | None = None

    @classmethod
    def from_file(cls, path: Path) -> Passphrase:
        """The first line of `path`, which only its owner may read."""
        return cls(lambda: read_secret(path, 0o077), f"passphrase file {path}", path)

    @classmethod
    def from_descriptor(cls, descriptor: int) -> Passphrase:
        """The first line of an open descriptor, read to its end or to the line's end; it stays open."""
        return cls(lambda: _read_line(descriptor), f"passphrase on descriptor {descriptor}")

    def key(self, stretch: Stretch | None) -> bytes:
        """Scrypt of the passphrase by `stretch`; WrongKeyError if the passphrase is under 8 bytes."""
        if stretch is None:
            raise WrongKeyError(f"{self.description}: this pool's key file was made with a key file, not a passphrase")
        if self._line is None:
            self._line = self._read().split(b"\n", 1)[0].removesuffix(b"\r")
        if len(self._line) < PASSPHRASE_MIN_BYTES:
            raise WrongKeyError(
                f"{self.description}: want at least {PASSPHRASE_MIN_BYTES} bytes, have {len(self._line)}"
            )
        return stretch.key(self._line)


def source_of(kind: str, name: str) -> KekSource:
    """The source that a pool was made with, from its pool file; WrongKeyError if it has to be given anew."""
    if kind == FROM_FILE:
        return RawKeyFile(Path(name))
    if kind == FROM_CREDENTIAL:
        return Credential(name)
    if kind == FROM_PASSPHRASE_FILE:
        return Passphrase.from_file(Path(name))
    raise WrongKeyError(f"this pool's KEK comes from a {kind}: give it, the pool file cannot")


def read_secret(path: Path, forbidden_mode: int) -> bytes:
    """Content of a small secret file.

    Raises:
        WrongKeyError: missing, unreadable, not a regular file, too long, owned by a third user, or any bit of
            `forbidden_mode` is set in its mode.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise WrongKeyError(f"{path}: cannot read the key: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        _refuse_open_secret(path, status, forbidden_mode)
        content = os.read(descriptor, SECRET_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise WrongKeyError(f"{path}: cannot read the key: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(content) > SECRET_FILE_MAX_BYTES:
        raise WrongKeyError(f"{path}: longer than {SECRET_FILE_MAX_BYTES} bytes; this is no key file")
    return content


def write_new_private(path: Path, content: bytes) -> None:
    """Create `path` with `content`, mode 0600, on stable storage with its name.

    Raises:
        ExistsError: something is there already.
        ConfigError: it cannot be written; the text says why.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ExistsError(f"{path} exists already; it is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"cannot create {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def sync_directory(directory: Path) -> None:
    """Names made or replaced in `directory` survive a power loss once this returns; OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def location_warnings(secrets: Sequence[Path], state_directory: Path, media: Sequence[Path]) -> list[str]:
    """A line for each of `secrets` (KEK, key file) that a thief of the state directory or of a medium would get too."""
    state = state_directory.resolve()
    beside = {path.resolve().parent for path in media if not path.is_block_device()}
    warnings = []
    for secret in secrets:
        place = secret.resolve()
        if place.is_relative_to(state):
            warnings.append(
                f"{secret} lies inside the pool's state directory: who takes one has both; keep it elsewhere"
            )
        elif any(place.is_relative_to(directory) for directory in beside):
            warnings.append(f"{secret} lies beside a medium of the pool: who takes one has both; keep it elsewhere")
    return warnings


def _refuse_open_secret(path: Path, status: os.stat_result, forbidden_mode: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise WrongKeyError(f"{path}: not a regular file")
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden_mode:
        raise WrongKeyError(f"{path}: mode {mode:04o} lets other users at the key; run: chmod 600 {path}")
    if status.st_uid not in (os.geteuid(), 0):
        raise WrongKeyError(f"{path}: belongs to uid {status.st_uid}, neither to uid {os.geteuid()} nor to root")


def _raw_key(content: bytes, description: str) -> bytes:
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    try:
        key = bytes.fromhex(line.decode("ascii")) if len(line) == 2 * KEY_BYTES else b""
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise WrongKeyError(f"{description}: want one line of {2 * KEY_BYTES} hexadecimal digits")
    return key


def _read_line(descriptor: int) -> bytes:
    line = b""
    try:
        while b"\n" not in line and len(line) <= SECRET_FILE_MAX_BYTES:
            more = os.read(descriptor, 1024)
            if not more:
                break
            line += more
    except OSError as error:
        raise WrongKeyError(f"passphrase on descriptor {descriptor}: {error.strerror}") from error
    if len(line) > SECRET_FILE_MAX_BYTES:
        raise WrongKeyError(f"passphrase on descriptor {descriptor}: longer than {SECRET_FILE_MAX_BYTES} bytes")
    return line

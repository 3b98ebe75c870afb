"""The slot-key file: a pool's slot key, wrapped by its KEK, in two copies beside the KEK (docs/FORMAT.md, key file).

It is kept apart from state directory and media, so that replacing it makes every older copy of those useless (shred).
Copies are replaced one after the other, each by write, fsync, rename, fsync of the directory; the higher sequence wins.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kvfs.errors import ConfigError, ExistsError, FormatError, InvalidArgumentError, WrongKeyError
from kvfsd.crypto import kdf
from kvfsd.crypto.kdf import KEY_BYTES, SALT_BYTES, Stretch
from kvfsd.crypto.kek import KekKind, KekSource, sync_directory, write_new_private
from kvfsd.ondisk.layout import Layout, check
from kvfsd.ports import Randomness

MAGIC: Final = b"KVFSLOTS"
VERSION: Final = 1
NO_KEY: Final = bytes(KEY_BYTES)
"""In place of a pending slot key: there is none."""
_WRAPPED_BYTES: Final = 2 * KEY_BYTES + 16
_ZERO_NONCE: Final = bytes(12)
"""The wrapping key is derived with a fresh salt for each file written, and used once."""
_RESERVED: Final = bytes(16)
_KIND: Final = {KekKind.RAW: "raw key", KekKind.PASSPHRASE: "passphrase"}

LAYOUT: Final = Layout(
    "key file",
    (
        ("magic", "8s"),
        ("version", "H"),
        ("kek_kind", "B"),
        ("scrypt_log2_n", "B"),
        ("scrypt_r", "H"),
        ("scrypt_p", "H"),
        ("pool", "16s"),
        ("sequence", "Q"),
        ("scrypt_salt", "16s"),
        ("kek_check", "16s"),
        ("wrap_salt", "16s"),
        ("wrapped", f"{_WRAPPED_BYTES}s"),
        ("reserved", "16s"),
        ("checksum", "Q"),
    ),
)
_WRAPPED_AT: Final = next(offset for offset, _, name in LAYOUT.rows() if name == "wrapped")


class Copy(NamedTuple):
    """One copy as it lies on disk, parsed but still wrapped."""

    raw: bytes
    kind: KekKind
    stretch: Stretch | None
    pool: bytes
    sequence: int
    kek_check: bytes
    wrap_salt: bytes
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class SlotKeys:
    """What a key file keeps: the slot key in use and, while it is being replaced, the one to come."""

    current: bytes
    pending: bytes | None = None

    @property
    def candidates(self) -> tuple[bytes, ...]:
        """The keys that may fit the pool's slots, the current one first."""
        return (self.current,) if self.pending is None else (self.current, self.pending)


@dataclass(frozen=True, slots=True)
class _Unlocked:
    """The KEK of an open key file, and how it came about."""

    kek: bytes
    kind: KekKind
    stretch: Stretch | None


class SlotKeyFile:
    """`POOL.slots` and `POOL.slots.bak` in `directory`; `warnings` collects what people should hear about."""

    def __init__(self, directory: Path, pool: bytes, randomness: Randomness) -> None:
        name = str(uuid.UUID(bytes=pool))
        self.directory = directory
        self.paths = (directory / f"{name}.slots", directory / f"{name}.slots.bak")
        self.pool = pool
        self.warnings: list[str] = []
        self._randomness = randomness
        self._unlocked: _Unlocked | None = None
        self._keys: SlotKeys | None = None
        self._sequence = 0

    def create(self, source: KekSource) -> bytes:
        """Make the file with a fresh slot key, which is returned.

        Raises:
            ExistsError: one of the copies is there already.
            ConfigError: it cannot be written.
            WrongKeyError: the KEK cannot be had from `source`.
        """
        for path in self.paths:
            if path.exists():
                raise ExistsError(f"{path} exists already; it is not overwritten")
        stretch = Stretch(self._randomness.token(SALT_BYTES)) if source.kind == KekKind.PASSPHRASE else None
        self._unlocked = _Unlocked(source.key(stretch), source.kind, stretch)
        slot_key = self._randomness.token(KEY_BYTES)
        self._keys, self._sequence = SlotKeys(slot_key), 1
        content = self._pack()
        for path in self.paths:
            write_new_private(path, content)
        return slot_key

    def load(self, source: KekSource, *, repair: bool = True) -> SlotKeys:
        """The slot keys. With `repair`, a copy that is missing, damaged or older is written again from the good one.

        Raises:
            WrongKeyError: both copies are missing, `source` has not this file's KEK, or the file is another pool's.
            FormatError: no copy is whole.
        """
        found, faults = self._read_copies()
        best = max(found, key=lambda path: found[path].sequence, default=None)
        if best is None:
            self._refuse_all(faults)
        copy = found[best]
        self._unlocked = self._unlock(copy, source, best)
        self._keys, self._sequence = self._unwrap(copy, self._unlocked.kek, best), copy.sequence
        for path in self.paths:
            if found.get(path, copy).raw != copy.raw:
                faults[path] = f"{path}: older than {best}"
        for path, fault in faults.items():
            self._restore(path, copy.raw, fault, repair=repair)
        return self._keys

    def propose(self, pending: bytes) -> None:
        """Durably store `pending` beside the slot key in use (first step of replacing it)."""
        if len(pending) != KEY_BYTES or pending == NO_KEY:
            raise InvalidArgumentError("slot key: want 32 bytes, not all zero")
        self._replace(SlotKeys(self._open_keys().current, pending))

    def settle(self, slot_key: bytes) -> None:
        """Durably make `slot_key`, the current or the pending one, the only one; the other is erased."""
        keys = self._open_keys()
        if slot_key not in keys.candidates:
            raise InvalidArgumentError("settle: this slot key was not proposed")
        if keys != SlotKeys(slot_key):
            self._replace(SlotKeys(slot_key))

    def remove(self) -> None:
        """Erase and remove both copies: without them nothing of the pool opens. Missing ones are no error."""
        for path in self.paths:
            old = _open_old(path)
            path.unlink(missing_ok=True)
            _erase(old)

    def _open_keys(self) -> SlotKeys:
        if self._keys is None:
            raise InvalidArgumentError("the key file is not open")
        return self._keys

    def _replace(self, keys: SlotKeys) -> None:
        before = self._keys, self._sequence
        self._keys, self._sequence = keys, self._sequence + 1
        try:
            content = self._pack()
            for path in self.paths:
                _replace_file(path, content)
        except OSError as error:
            self._keys, self._sequence = before
            raise ConfigError(f"cannot replace {error.filename or self.paths[0]}: {error.strerror}") from error

    def _pack(self) -> bytes:
        """The file's bytes for the keys in hand. Everything in front of the wrapped keys is bound to them."""
        assert self._unlocked is not None
        kek, kind, stretch = self._unlocked.kek, self._unlocked.kind, self._unlocked.stretch
        keys = self._open_keys()
        salt = self._randomness.token(SALT_BYTES)
        scrypt = stretch or Stretch(bytes(SALT_BYTES), 0, 0, 0)
        front = (
            MAGIC,
            VERSION,
            kind,
            scrypt.log2_n,
            scrypt.r,
            scrypt.p,
            self.pool,
            self._sequence,
            scrypt.salt,
            kdf.kek_check(kek, self.pool),
            salt,
        )
        identity = LAYOUT.pack(*front, bytes(_WRAPPED_BYTES), _RESERVED)[:_WRAPPED_AT]
        cipher = AESGCM(kdf.kek_wrap_key(kek, self.pool, salt))
        wrapped = cipher.encrypt(_ZERO_NONCE, keys.current + (keys.pending or NO_KEY), identity)
        return LAYOUT.pack(*front, wrapped, _RESERVED)

    def _read_copies(self) -> tuple[dict[Path, Copy], dict[Path, str]]:
        """The copies that parse, and what is wrong with the others."""
        found: dict[Path, Copy] = {}
        faults: dict[Path, str] = {}
        for path in self.paths:
            try:
                found[path] = parse(_read(path), str(path))
            except FileNotFoundError:
                faults[path] = f"{path}: missing"
            except OSError as error:
                faults[path] = f"{path}: {error.strerror}"
            except FormatError as error:
                faults[path] = str(error)
        return found, faults

    def _refuse_all(self, faults: dict[Path, str]) -> NoReturn:
        text = "; ".join(faults.values())
        if all(fault.endswith(": missing") for fault in faults.values()):
            raise WrongKeyError(f"{text}: the pool cannot be opened without its key file")
        raise FormatError(f"no copy of the key file is whole: {text}")

    def _unlock(self, copy: Copy, source: KekSource, path: Path) -> _Unlocked:
        if copy.pool != self.pool:
            raise WrongKeyError(f"{path} belongs to pool {uuid.UUID(bytes=copy.pool)}, not to this one")
        if copy.kind != source.kind:
            raise WrongKeyError(
                f"{path} was made with a {_KIND[copy.kind]}, not with a {_KIND[source.kind]} as {source.description} is"
            )
        kek = source.key(copy.stretch)
        if kdf.kek_check(kek, self.pool) != copy.kek_check:
            raise WrongKeyError(f"{source.description} is not the KEK that {path} was made with")
        return _Unlocked(kek, copy.kind, copy.stretch)

    def _unwrap(self, copy: Copy, kek: bytes, path: Path) -> SlotKeys:
        cipher = AESGCM(kdf.kek_wrap_key(kek, self.pool, copy.wrap_salt))
        try:
            keys = cipher.decrypt(_ZERO_NONCE, copy.wrapped, copy.raw[:_WRAPPED_AT])
        except InvalidTag:
            raise FormatError(
                f"{path}: right KEK and checksum, but the wrapped key does not open: tampered with"
            ) from None
        pending = keys[KEY_BYTES:]
        return SlotKeys(keys[:KEY_BYTES], None if pending == NO_KEY else pending)

    def _restore(self, path: Path, content: bytes, fault: str, *, repair: bool) -> None:
        if not repair:
            self.warnings.append(f"{fault}; the other copy is good, this one is left as it is")
            return
        try:
            _replace_file(path, content)
        except OSError as error:
            self.warnings.append(f"{fault}; the other copy is good, writing this one again failed: {error.strerror}")
        else:
            self.warnings.append(f"{fault}; written again from the other copy")


def parse(raw: bytes, where: str) -> Copy:
    """One copy's bytes; FormatError naming `where` and the field that is wrong."""
    LAYOUT.magic(raw, MAGIC, where)
    check(where, "key file length", LAYOUT.size_bytes, len(raw))
    values = LAYOUT.unpack(raw, where)
    _, version, kind, log2_n, r, p, pool, sequence, scrypt_salt, kek_check, wrap_salt, wrapped, reserved = values
    check(where, "key file version", VERSION, version)
    check(where, "key file reserved bytes", _RESERVED, reserved)
    if kind not in list(KekKind):
        raise FormatError(f"{where}: KEK kind {kind} is unknown")
    stretch = Stretch(scrypt_salt, log2_n, r, p) if kind == KekKind.PASSPHRASE else None
    if stretch is not None:
        stretch.check(where)
    return Copy(raw, KekKind(kind), stretch, pool, sequence, kek_check, wrap_salt, wrapped)


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return os.read(descriptor, LAYOUT.size_bytes + 1)
    finally:
        os.close(descriptor)


def _replace_file(path: Path, content: bytes) -> None:
    """Atomically and durably put `content` under `path`, then overwrite what was there before. OSError."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    old = _open_old(path)
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        os.rename(fresh, path)
        sync_directory(path.parent)
    except OSError:
        if old is not None:
            os.close(old)
        raise
    _erase(old)


def _open_old(path: Path) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None


def _erase(descriptor: int | None) -> None:
    """Overwrite a file that has lost its last name, and close it: against undelete; no promise (docs/THREATS.md)."""
    if descriptor is None:
        return
    try:
        if os.fstat(descriptor).st_nlink == 0:  # another hard link may be somebody's backup
            os.pwrite(descriptor, bytes(LAYOUT.size_bytes), 0)
            os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)

"""Every key of kvfs that is derived from another, and every purpose label, in one place (pure).

One function derives: HKDF-Expand of RFC 5869 with SHA-256. Its input keys are uniformly random already (or come out
of scrypt), so HKDF-Extract is left out, as section 3.3 of that RFC allows. The `info` of each derivation is a purpose
label followed by fields of fixed size, so two derivations agree only if every field agrees. docs/FORMAT.md, key file
and keys, is normative; docs/THREATS.md says what hangs on it.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final

from kvfs.errors import FormatError, InvalidArgumentError

# --- purpose labels: append, never change; no label is the beginning of another -------------------------------

PURPOSE_RECORD: Final = b"kvfs/v1/record"
"""DEK -> key of one sealed record."""
PURPOSE_NAMES: Final = b"kvfs/v1/names-siv"
"""A tenant's names key (epoch 0) -> its AES-SIV key pair."""
PURPOSE_ROWS: Final = b"kvfs/v1/catalog-rows"
"""A tenant's names key (epoch 0) -> key of the checks of its rows in the catalog."""
PURPOSE_SLOT_WRAP: Final = b"kvfs/v1/slot-wrap"
"""Slot key -> key that wraps one DEK or names key."""
PURPOSE_SYSTEM: Final = b"kvfs/v1/system"
"""Slot key -> key in place of a DEK for the system records, which carry all other keys and so cannot lie under them."""
PURPOSE_KEK_WRAP: Final = b"kvfs/v1/kek-wrap"
"""KEK -> key that wraps the slot keys of one key file."""
PURPOSE_KEK_CHECK: Final = b"kvfs/v1/kek-check"
"""KEK -> public value that tells a wrong KEK from a damaged key file."""

PURPOSES: Final = (
    PURPOSE_RECORD,
    PURPOSE_NAMES,
    PURPOSE_ROWS,
    PURPOSE_SLOT_WRAP,
    PURPOSE_SYSTEM,
    PURPOSE_KEK_WRAP,
    PURPOSE_KEK_CHECK,
)

# ---------------------------------------------------------------------------------------------------------------

KEY_BYTES: Final = 32
"""Every key but the AES-SIV pair: AES-256."""
SIV_KEY_BYTES: Final = 64
"""AES-256-SIV takes two 256-bit keys (RFC 5297, 2.2)."""
SALT_BYTES: Final = 16
UUID_BYTES: Final = 16
KEK_CHECK_BYTES: Final = 16
HASH_BYTES: Final = 32
EXPAND_MAX_BYTES: Final = 255 * HASH_BYTES
"""RFC 5869, 2.3."""

SCRYPT_LOG2_N_MIN: Final = 10
SCRYPT_LOG2_N_MAX: Final = 20
SCRYPT_R_MAX: Final = 32
SCRYPT_P_MAX: Final = 16
SCRYPT_MEMORY_MAX_BYTES: Final = 1 << 30
"""A damaged or hostile key file cannot ask for more than 1 GiB."""

_RECORD_FIELDS: Final = struct.Struct("<IQQ")


def expand(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand-SHA256(key, info, length); InvalidArgumentError if the length is not 1 .. 8160."""
    if not 0 < length <= EXPAND_MAX_BYTES:
        raise InvalidArgumentError(f"HKDF-Expand: want 1 to {EXPAND_MAX_BYTES} bytes, asked for {length}")
    output = block = b""
    for counter in range(1, (length + HASH_BYTES - 1) // HASH_BYTES + 1):
        block = hmac.digest(key, block + info + bytes((counter,)), "sha256")
        output += block
    return output[:length]


def record_prefix(pool: bytes) -> bytes:
    """The part of a record key's info that is the same for a whole pool."""
    _need(pool, UUID_BYTES, "pool uuid")
    return PURPOSE_RECORD + pool


def record_key(dek: bytes, prefix: bytes, owner: tuple[int, int, int], salt: bytes) -> bytes:
    """Key of one sealed record: `owner` is (tenant, object, generation), `prefix` from :func:`record_prefix`.

    One HMAC, because the key is as long as its hash. The salt is fresh for each sealing, so is the key.
    """
    _need(salt, SALT_BYTES, "record salt")
    info = prefix + _RECORD_FIELDS.pack(*owner) + salt
    return hmac.digest(dek, info + b"\x01", "sha256")


def names_key(root: bytes, pool: bytes, tenant: int) -> bytes:
    """The 64-byte AES-256-SIV key of `tenant`'s names, from its names key `root`."""
    return expand(root, PURPOSE_NAMES + _need(pool, UUID_BYTES, "pool uuid") + _u32(tenant), SIV_KEY_BYTES)


def rows_key(root: bytes, pool: bytes, tenant: int) -> bytes:
    """The 32-byte key that checks `tenant`'s rows in the catalog, from its names key `root` (docs/adr/0004-rows.md)."""
    return expand(root, PURPOSE_ROWS + _need(pool, UUID_BYTES, "pool uuid") + _u32(tenant), KEY_BYTES)


def slot_wrap_key(slot_key: bytes, pool: bytes, slot: tuple[int, int], salt: bytes) -> bytes:
    """The key that wraps the key of `slot` = (tenant, epoch); `salt` is fresh for each wrapping."""
    info = PURPOSE_SLOT_WRAP + _need(pool, UUID_BYTES, "pool uuid") + _u32(slot[0]) + _u32(slot[1])
    return expand(slot_key, info + _need(salt, SALT_BYTES, "slot salt"), KEY_BYTES)


def system_key(slot_key: bytes, pool: bytes) -> bytes:
    """The key that the record keys of `pool`'s system records are derived from, as from a DEK."""
    return expand(slot_key, PURPOSE_SYSTEM + _need(pool, UUID_BYTES, "pool uuid"), KEY_BYTES)


def kek_wrap_key(kek: bytes, pool: bytes, salt: bytes) -> bytes:
    """The key that wraps the slot keys in `pool`'s key file; `salt` is fresh each time the file is written."""
    info = PURPOSE_KEK_WRAP + _need(pool, UUID_BYTES, "pool uuid") + _need(salt, SALT_BYTES, "key file salt")
    return expand(kek, info, KEY_BYTES)


def kek_check(kek: bytes, pool: bytes) -> bytes:
    """Key check value: says whether a KEK is the one that a key file was written with, and nothing else about it."""
    return expand(kek, PURPOSE_KEK_CHECK + _need(pool, UUID_BYTES, "pool uuid"), KEK_CHECK_BYTES)


@dataclass(frozen=True, slots=True)
class Stretch:
    """scrypt parameters of a passphrase (RFC 7914); `salt` is 16 random bytes, fresh with each new passphrase.

    The default is N = 2^17, r = 8, p = 1 (OWASP's Password Storage Cheat Sheet): 128 MiB of memory, under a second.
    """

    salt: bytes
    log2_n: int = 17
    r: int = 8
    p: int = 1

    def check(self, where: str) -> None:
        """FormatError naming `where` if a parameter is out of range; nothing is allocated for them before."""
        memory = 128 * self.r << self.log2_n if 0 <= self.log2_n <= SCRYPT_LOG2_N_MAX else -1
        good = (
            len(self.salt) == SALT_BYTES
            and SCRYPT_LOG2_N_MIN <= self.log2_n <= SCRYPT_LOG2_N_MAX
            and 1 <= self.r <= SCRYPT_R_MAX
            and 1 <= self.p <= SCRYPT_P_MAX
            and memory <= SCRYPT_MEMORY_MAX_BYTES
        )
        if not good:
            raise FormatError(f"{where}: scrypt parameters out of range: 2^{self.log2_n}, {self.r}, {self.p}")

    def key(self, passphrase: bytes) -> bytes:
        """The KEK of `passphrase`: 32 bytes. Takes the time and memory that the parameters say."""
        self.check("passphrase")
        memory = 128 * self.r * ((1 << self.log2_n) + self.p + 2) + (1 << 20)
        return hashlib.scrypt(
            passphrase, salt=self.salt, n=1 << self.log2_n, r=self.r, p=self.p, maxmem=memory, dklen=KEY_BYTES
        )


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _need(value: bytes, length: int, what: str) -> bytes:
    """`value`, which must have exactly `length` bytes: fields of a derivation never run into each other."""
    if len(value) != length:
        raise InvalidArgumentError(f"{what}: want {length} bytes, have {len(value)}")
    return value

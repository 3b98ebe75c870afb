"""The keys of an open pool: slot key -> one key per (tenant, epoch) -> record keys and name sealers.

    slot key  (key file beside the KEK)  wraps  KeySlot(tenant, epoch)   rows in the catalog and in the metadata log
    DEK       (epoch >= 1)               derives  the key of each record
    names key (epoch 0)                  derives  the AES-SIV key of names, xattrs, link targets
    slot key                             derives  the keys of the system records, which carry all slots

Tenant 0 is the system: its names key seals the tenants' names, its DEK seals nothing yet.
Nothing here is written anywhere: the caller puts the slots it is given into the catalog, in one transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from kvfs.errors import FormatError, InvalidArgumentError, WrongKeyError
from kvfsd.catalog.rows import KeySlotRow
from kvfsd.crypto import kdf
from kvfsd.ports import Randomness

SYSTEM_TENANT: Final = 0
NAMES_EPOCH: Final = 0
FIRST_EPOCH: Final = 1
SYSTEM_RECORD_EPOCH: Final = 0
"""Epoch of a system record: it is under no DEK."""
SYSTEM_RECORD_OBJECT: Final = 0

SLOT_VERSION: Final = 1
WRAPPED_BYTES: Final = 1 + kdf.SALT_BYTES + kdf.KEY_BYTES + 16
"""version | salt | GCM(key) | tag."""
SIV_BYTES: Final = 16
"""A sealed name is this much longer: the synthetic IV, in front (RFC 5297). A sealed value is one byte longer still."""

_ZERO_NONCE: Final = bytes(12)
"""Each wrapping key is derived with a fresh salt and used for one message, so one nonce will do."""
_PAD: Final = b"\x00"
"""Behind every value: not all versions of the cipher's library take an empty text, and values may be empty."""


KeySlot: TypeAlias = KeySlotRow
"""One wrapped key, as the catalog keeps it: tenant, epoch (0 the names key, from 1 on DEKs), wrapped."""


class NameSealer:
    """AES-256-SIV under one tenant's names key: deterministic, so the sealed form is also the lookup key.

    Equal names in one directory seal alike, in two directories they do not; lengths show (docs/THREATS.md).
    """

    __slots__ = ("_siv",)

    def __init__(self, key: bytes) -> None:
        self._siv = AESSIV(key)

    def seal_name(self, parent: int, name: bytes) -> bytes:
        """The sealed form of `name` in directory `parent`, SIV_BYTES longer."""
        return self._siv.encrypt(name, [b"name", parent.to_bytes(8, "little")])

    def open_name(self, parent: int, sealed: bytes) -> bytes:
        """The name; FormatError if `sealed` was not made by this tenant for this directory."""
        return self._open(sealed, b"name", parent)

    def seal_value(self, ino: int, purpose: bytes, value: bytes) -> bytes:
        """The sealed form of a `value` of object `ino`; `purpose` keeps kinds of values apart."""
        return self._siv.encrypt(value + _PAD, [b"value:" + purpose, ino.to_bytes(8, "little")])

    def open_value(self, ino: int, purpose: bytes, sealed: bytes) -> bytes:
        """The value; FormatError if `sealed` was not made by this tenant for this object and purpose."""
        return self._open(sealed, b"value:" + purpose, ino)[:-1]

    def _open(self, sealed: bytes, purpose: bytes, number: int) -> bytes:
        try:
            return self._siv.decrypt(sealed, [purpose, number.to_bytes(8, "little")])
        except (InvalidTag, ValueError):
            raise FormatError(f"sealed {purpose.decode('latin-1')} of object {number} does not open") from None


@dataclass(frozen=True, slots=True)
class Rewrap:
    """What a shred publishes: `slots` replaces every slot row of the pool; the rows of `tenant` are gone."""

    tenant: int
    slot_key: bytes
    slots: tuple[KeySlot, ...]


class SlotKeyStore(Protocol):
    """Where the slot key is kept (`keyfile.SlotKeyFile`)."""

    def propose(self, pending: bytes) -> None:
        """Durably store `pending` beside the current slot key."""
        ...

    def settle(self, slot_key: bytes) -> None:
        """Durably make `slot_key`, which is current or pending, the only one."""
        ...


class KeyRing:
    """The unlocked keys of a pool. They live in this process's memory and nowhere else."""

    def __init__(self, pool: bytes, slot_key: bytes, randomness: Randomness) -> None:
        if len(slot_key) != kdf.KEY_BYTES:
            raise InvalidArgumentError(f"slot key: want {kdf.KEY_BYTES} bytes, have {len(slot_key)}")
        self.pool = pool
        self.slot_key = slot_key
        self._randomness = randomness
        self._record_prefix = kdf.record_prefix(pool)
        self._keys: dict[tuple[int, int], bytes] = {}
        self._current: dict[int, int] = {}
        self._sealers: dict[int, NameSealer] = {}

    def create_tenant(self, tenant: int) -> list[KeySlot]:
        """Fresh names key (epoch 0) and first DEK (epoch 1) of `tenant`, unlocked here; the caller stores the slots.

        InvalidArgumentError if the tenant has keys already.
        """
        if tenant in self._current:
            raise InvalidArgumentError(f"tenant {tenant} has keys already")
        return [self._fresh(tenant, NAMES_EPOCH), self._fresh(tenant, FIRST_EPOCH)]

    def rotate(self, tenant: int) -> KeySlot:
        """A fresh DEK as the next epoch of `tenant`, for new writes; older epochs stay readable."""
        return self._fresh(tenant, self.current_epoch(tenant) + 1)

    def unlock(self, slots: Iterable[KeySlot]) -> None:
        """Unwrap `slots`; WrongKeyError naming tenant and epoch of the first that does not open."""
        for slot in slots:
            self._keep(slot.tenant, slot.epoch, unwrap(self.slot_key, self.pool, slot))

    def opens(self, slot: KeySlot) -> bool:
        """True if `slot` is wrapped with this ring's slot key."""
        try:
            unwrap(self.slot_key, self.pool, slot)
        except WrongKeyError:
            return False
        return True

    def record_key(self, tenant: int, epoch: int, object: int, generation: int, salt: bytes) -> bytes:  # noqa: A002 - the contract's word
        """The 32-byte key of one sealed record; WrongKeyError if the ring has no such tenant and epoch."""
        return kdf.record_key(self._key(tenant, epoch), self._record_prefix, (tenant, object, generation), salt)

    def names(self, tenant: int) -> NameSealer:
        """The tenant's sealer of names and values; WrongKeyError if its names key is not here."""
        sealer = self._sealers.get(tenant)
        if sealer is None:
            sealer = NameSealer(kdf.names_key(self._key(tenant, NAMES_EPOCH), self.pool, tenant))
            self._sealers[tenant] = sealer
        return sealer

    def rows_key(self, tenant: int) -> bytes:
        """The 32-byte key that checks the tenant's catalog rows; WrongKeyError if its names key is not here."""
        return kdf.rows_key(self._key(tenant, NAMES_EPOCH), self.pool, tenant)

    def current_epoch(self, tenant: int) -> int:
        """The epoch that new records of `tenant` are sealed under; WrongKeyError if it has none."""
        epoch = self._current.get(tenant, NAMES_EPOCH)
        if epoch == NAMES_EPOCH:
            raise WrongKeyError(f"tenant {tenant} has no data key in this pool")
        return epoch

    def forget_tenant(self, tenant: int) -> None:
        """Drop the tenant's keys from memory; no error if there are none."""
        for slot in [slot for slot in self._keys if slot[0] == tenant]:
            del self._keys[slot]
        self._current.pop(tenant, None)
        self._sealers.pop(tenant, None)

    def slots(self) -> list[KeySlot]:
        """Every key of the ring, wrapped anew with the slot key in use, by tenant and epoch."""
        return self._wrap_all(self.slot_key, exclude=None)

    def plan_shred(self, tenant: int) -> Rewrap:
        """A fresh slot key, and every key but those of `tenant` wrapped with it. Changes nothing yet."""
        if tenant == SYSTEM_TENANT:
            raise InvalidArgumentError("the system tenant cannot be shredded")
        slot_key = self._randomness.token(kdf.KEY_BYTES)
        return Rewrap(tenant, slot_key, tuple(self._wrap_all(slot_key, exclude=tenant)))

    def adopt(self, rewrap: Rewrap) -> None:
        """Use the new slot key from here on, and forget the shredded tenant: at once when `rewrap` is committed.

        What would be wrapped with the old key after that does not fit the other rows any more.
        """
        self.slot_key = rewrap.slot_key
        self.forget_tenant(rewrap.tenant)

    def _wrap_all(self, slot_key: bytes, exclude: int | None) -> list[KeySlot]:
        return [
            self._wrap(slot_key, tenant, epoch, key)
            for (tenant, epoch), key in sorted(self._keys.items())
            if tenant != exclude
        ]

    def _fresh(self, tenant: int, epoch: int) -> KeySlot:
        key = self._randomness.token(kdf.KEY_BYTES)
        self._keep(tenant, epoch, key)
        return self._wrap(self.slot_key, tenant, epoch, key)

    def _wrap(self, slot_key: bytes, tenant: int, epoch: int, key: bytes) -> KeySlot:
        return wrap(slot_key, self.pool, (tenant, epoch), key, self._randomness.token(kdf.SALT_BYTES))

    def _keep(self, tenant: int, epoch: int, key: bytes) -> None:
        self._keys[tenant, epoch] = key
        self._current[tenant] = max(epoch, self._current.get(tenant, NAMES_EPOCH))

    def _key(self, tenant: int, epoch: int) -> bytes:
        key = self._keys.get((tenant, epoch))
        if key is None:
            raise WrongKeyError(f"no key for tenant {tenant}, epoch {epoch} in this pool")
        return key


def wrap(slot_key: bytes, pool: bytes, owner: tuple[int, int], key: bytes, salt: bytes) -> KeySlot:
    """Wrap `key` as the slot of `owner` = (tenant, epoch); `salt` is 16 bytes never used before."""
    cipher = AESGCM(kdf.slot_wrap_key(slot_key, pool, owner, salt))
    sealed = cipher.encrypt(_ZERO_NONCE, key, _slot_identity(pool, owner))
    return KeySlot(owner[0], owner[1], bytes((SLOT_VERSION,)) + salt + sealed)


def unwrap(slot_key: bytes, pool: bytes, slot: KeySlot) -> bytes:
    """The key in `slot`; WrongKeyError naming tenant and epoch if it does not open as theirs in this pool."""
    where = f"key slot of tenant {slot.tenant}, epoch {slot.epoch}"
    if not (0 <= slot.tenant < 1 << 32 and 0 <= slot.epoch < 1 << 32 and isinstance(slot.wrapped, bytes)):
        raise WrongKeyError(f"{where}: damaged, no tenant and epoch have such a slot")
    if len(slot.wrapped) != WRAPPED_BYTES:
        raise WrongKeyError(f"{where}: want {WRAPPED_BYTES} bytes, have {len(slot.wrapped)}")
    if slot.wrapped[0] != SLOT_VERSION:
        raise WrongKeyError(f"{where}: version {slot.wrapped[0]} is unknown; want {SLOT_VERSION}")
    owner = (slot.tenant, slot.epoch)
    salt, sealed = slot.wrapped[1 : 1 + kdf.SALT_BYTES], slot.wrapped[1 + kdf.SALT_BYTES :]
    try:
        cipher = AESGCM(kdf.slot_wrap_key(slot_key, pool, owner, salt))
        return cipher.decrypt(_ZERO_NONCE, sealed, _slot_identity(pool, owner))
    except InvalidTag:
        raise WrongKeyError(
            f"{where} does not open: damaged, or wrapped with another pool's or an older slot key"
        ) from None


def system_record_key(slot_key: bytes, pool: bytes, generation: int, salt: bytes) -> bytes:
    """The 32-byte key of one system record of `pool`: to be had with the slot key alone, without any slot."""
    owner = (SYSTEM_TENANT, SYSTEM_RECORD_OBJECT, generation)
    return kdf.record_key(kdf.system_key(slot_key, pool), kdf.record_prefix(pool), owner, salt)


def _slot_identity(pool: bytes, owner: tuple[int, int]) -> bytes:
    return b"kvfs/v1/slot" + pool + owner[0].to_bytes(4, "little") + owner[1].to_bytes(4, "little")


async def shred(ring: KeyRing, store: SlotKeyStore, tenant: int, publish: Callable[[Rewrap], Awaitable[None]]) -> None:
    """Make everything of `tenant` unreadable for ever, whatever its size (docs/adr/0002-sealing.md, shred).

    `publish` puts a system snapshot of the new slots, sealed under the new slot key, on the media; only then replaces
    all slot rows in one transaction, and calls `ring.adopt` with no wait after it; and returns when both survive a
    power loss. A crash at any point leaves a pool that :func:`settle` brings to before or after, and media from which a
    rebuild does the same: as long as the key file has both slot keys, either snapshot opens.
    `kvfsd.crypto.shredding` has the one that is used.
    """
    rewrap = ring.plan_shred(tenant)
    store.propose(rewrap.slot_key)
    await publish(rewrap)
    store.settle(rewrap.slot_key)


def settle(pool: bytes, candidates: tuple[bytes, ...], slots: Iterable[KeySlot], randomness: Randomness) -> KeyRing:
    """The ring of the first of `candidates` (current slot key, pending one) that opens all `slots`, unlocked.

    More than one candidate is what a shred that was cut off leaves. The rows change in one transaction, so all are
    wrapped with one of the two. WrongKeyError from the last candidate if none fits.
    """
    rows = list(slots)
    for slot_key in candidates[:-1]:
        ring = KeyRing(pool, slot_key, randomness)
        if all(ring.opens(slot) for slot in rows):
            break
    else:
        ring = KeyRing(pool, candidates[-1], randomness)
    ring.unlock(rows)
    return ring

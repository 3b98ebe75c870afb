"""The key ring: wrapping bound to pool, tenant and epoch; rotation; names; shred, crashes included."""

from __future__ import annotations

import dataclasses
import random

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from kvfs.errors import FormatError, InvalidArgumentError, KvfsError, WrongKeyError
from kvfsd.crypto import keys
from kvfsd.crypto.keys import KeyRing, KeySlot

POOL = bytes(range(16))
SLOT_KEY = bytes(range(32))
SALT = bytes(16)


class SeededRandomness:
    """Deterministic; never in product code."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    def token(self, length_bytes: int) -> bytes:
        return self._random.randbytes(length_bytes)


def ring(slot_key: bytes = SLOT_KEY, pool: bytes = POOL, seed: int = 1) -> KeyRing:
    return KeyRing(pool, slot_key, SeededRandomness(seed))


def reopened(slots: list[KeySlot], slot_key: bytes = SLOT_KEY, pool: bytes = POOL) -> KeyRing:
    other = ring(slot_key, pool, seed=2)
    other.unlock(slots)
    return other


def test_keys_survive_wrapping():
    one = ring()
    slots = one.create_tenant(0) + one.create_tenant(5)
    other = reopened(slots)
    assert [(slot.tenant, slot.epoch) for slot in slots] == [(0, 0), (0, 1), (5, 0), (5, 1)]
    assert one.record_key(5, 1, 2, 3, SALT) == other.record_key(5, 1, 2, 3, SALT)
    assert one.names(5).seal_name(9, b"x") == other.names(5).seal_name(9, b"x")
    assert other.current_epoch(5) == 1


def test_tenants_epochs_and_salts_have_their_own_keys():
    one = ring()
    one.create_tenant(5)
    one.create_tenant(6)
    one.rotate(5)
    derived = {
        one.record_key(tenant, epoch, ino, generation, salt)
        for tenant, epoch in ((5, 1), (5, 2), (6, 1))
        for ino in (2, 3)
        for generation in (2, 3)
        for salt in (SALT, bytes(range(16)))
    }
    assert len(derived) == 24
    assert len({one.names(tenant).seal_name(1, b"n") for tenant in (5, 6)}) == 2


def test_rotation_keeps_the_old_epoch():
    one = ring()
    slots = one.create_tenant(5)
    old = one.record_key(5, 1, 2, 3, SALT)
    slots.append(one.rotate(5))
    assert one.current_epoch(5) == 2
    other = reopened(list(reversed(slots)))
    assert other.current_epoch(5) == 2
    assert other.record_key(5, 1, 2, 3, SALT) == old


@pytest.mark.parametrize("change", [{"tenant": 6}, {"epoch": 2}, {"epoch": 0}, {"epoch": 1 << 40}, {"tenant": -1}])
def test_a_slot_opens_only_as_itself(change):
    slot = ring().create_tenant(5)[1]
    with pytest.raises(WrongKeyError, match=f"tenant {change.get('tenant', 5)}, epoch {change.get('epoch', 1)}"):
        reopened([slot._replace(**change)])


def test_a_slot_opens_only_in_its_pool_and_with_its_slot_key():
    slots = ring().create_tenant(5)
    with pytest.raises(WrongKeyError, match="tenant 5, epoch 0"):
        reopened(slots, pool=bytes(16))
    with pytest.raises(WrongKeyError, match="tenant 5, epoch 0"):
        reopened(slots, slot_key=bytes(32))


@given(st.integers(0, keys.WRAPPED_BYTES * 8 - 1))
def test_a_flipped_bit_in_a_slot_is_refused(bit):
    slot = ring().create_tenant(5)[1]
    wrapped = bytearray(slot.wrapped)
    wrapped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WrongKeyError, match="tenant 5, epoch 1"):
        reopened([slot._replace(wrapped=bytes(wrapped))])


@given(st.binary(max_size=100))
def test_any_bytes_as_a_slot_are_refused(wrapped):
    with pytest.raises(WrongKeyError):
        reopened([KeySlot(5, 1, wrapped)])


def test_a_slot_is_laid_out_as_documented():
    """docs/FORMAT.md, 5.1 and 5.3, with no code of ours but HKDF."""
    key = bytes(range(32, 64))
    slot = keys.wrap(SLOT_KEY, POOL, (7, 3), key, SALT)
    numbers = (7).to_bytes(4, "little") + (3).to_bytes(4, "little")
    wrapping = HKDFExpand(hashes.SHA256(), 32, b"kvfs/v1/slot-wrap" + POOL + numbers + SALT).derive(SLOT_KEY)
    sealed = AESGCM(wrapping).encrypt(bytes(12), key, b"kvfs/v1/slot" + POOL + numbers)
    assert slot == KeySlot(7, 3, b"\x01" + SALT + sealed)


def test_a_system_record_opens_with_the_slot_key_alone():
    """docs/FORMAT.md, 5.1 and 4.3."""
    system = HKDFExpand(hashes.SHA256(), 32, b"kvfs/v1/system" + POOL).derive(SLOT_KEY)
    info = b"kvfs/v1/record" + POOL + bytes(4) + bytes(8) + (9).to_bytes(8, "little") + SALT
    assert keys.system_record_key(SLOT_KEY, POOL, 9, SALT) == HKDFExpand(hashes.SHA256(), 32, info).derive(system)


def test_names_are_sealed_as_documented():
    """docs/FORMAT.md, 5.1 and 5.4."""
    root = keys.unwrap(SLOT_KEY, POOL, ring().create_tenant(5)[0])
    pair = HKDFExpand(hashes.SHA256(), 64, b"kvfs/v1/names-siv" + POOL + (5).to_bytes(4, "little")).derive(root)
    number = (9).to_bytes(8, "little")
    assert sealer().seal_name(9, b"abc") == AESSIV(pair).encrypt(b"abc", [b"name", number])
    assert sealer().seal_value(9, b"target", b"abc") == AESSIV(pair).encrypt(b"abc\0", [b"value:target", number])


def test_missing_keys_are_named():
    one = ring()
    with pytest.raises(WrongKeyError, match="tenant 5, epoch 1"):
        one.record_key(5, 1, 2, 3, SALT)
    with pytest.raises(WrongKeyError, match="tenant 5"):
        one.names(5)
    with pytest.raises(WrongKeyError, match="tenant 5"):
        one.current_epoch(5)


def test_a_tenant_is_created_once_and_can_be_forgotten():
    one = ring()
    slots = one.create_tenant(5)
    with pytest.raises(InvalidArgumentError, match="tenant 5"):
        one.create_tenant(5)
    one.names(5)
    one.forget_tenant(5)
    for use in (lambda: one.names(5), lambda: one.current_epoch(5), lambda: one.record_key(5, 1, 1, 1, SALT)):
        with pytest.raises(WrongKeyError):
            use()
    one.unlock(slots)
    assert one.current_epoch(5) == 1


@given(st.integers(0, 2**64 - 1), st.binary(min_size=1, max_size=255))
def test_names_round_trip_and_are_deterministic(parent, name):
    names = sealer()
    sealed = names.seal_name(parent, name)
    assert len(sealed) == len(name) + keys.SIV_BYTES
    assert sealed == names.seal_name(parent, name)
    assert names.open_name(parent, sealed) == name
    assert names.seal_name(parent ^ 1, name) != sealed


def sealer(tenant: int = 5) -> keys.NameSealer:
    one = ring()
    one.create_tenant(tenant)
    return one.names(tenant)


@given(st.binary(max_size=300), st.binary(max_size=8))
def test_values_round_trip_empty_ones_too(value, purpose):
    names = sealer()
    sealed = names.seal_value(7, purpose, value)
    assert names.open_value(7, purpose, sealed) == value
    for ino, other in ((8, purpose), (7, purpose + b"x")):
        with pytest.raises(FormatError):
            names.open_value(ino, other, sealed)


def test_names_and_values_do_not_pass_for_each_other():
    names = sealer()
    with pytest.raises(FormatError):
        names.open_value(7, b"", names.seal_name(7, b"abc"))
    with pytest.raises(FormatError):
        names.open_name(7, names.seal_value(7, b"name", b"abc"))


@given(st.binary(max_size=60))
def test_any_bytes_as_a_sealed_name_are_refused(sealed):
    with pytest.raises(FormatError, match="object 7"):
        sealer().open_name(7, sealed)


class FakeStore:
    """Keeps candidates as a key file does; `events` says what happened, and raises at the chosen step."""

    def __init__(self, slot_key: bytes) -> None:
        self.candidates: tuple[bytes, ...] = (slot_key,)

    def propose(self, pending: bytes) -> None:
        self.candidates = (self.candidates[0], pending)

    def settle(self, slot_key: bytes) -> None:
        assert slot_key in self.candidates
        self.candidates = (slot_key,)


class PowerLossError(KvfsError):
    """Raised by the test at one step."""


def tenants_pool() -> tuple[KeyRing, list[KeySlot]]:
    one = ring()
    slots = one.create_tenant(0) + one.create_tenant(5) + one.create_tenant(6)
    return one, [*slots, one.rotate(6)]


async def shred_pool(one: KeyRing, store: FakeStore, rows: list[KeySlot]) -> None:
    async def publish(rewrap: keys.Rewrap) -> None:
        rows[:] = rewrap.slots
        one.adopt(rewrap)

    await keys.shred(one, store, 5, publish)


async def test_shred_leaves_nothing_of_the_tenant_and_all_of_the_others():
    one, rows = tenants_pool()
    before = list(rows)
    kept = one.record_key(6, 1, 2, 3, SALT), one.record_key(6, 2, 2, 3, SALT), one.names(6).seal_name(1, b"n")
    store = FakeStore(SLOT_KEY)
    await shred_pool(one, store, rows)
    assert {slot.tenant for slot in rows} == {0, 6}
    (slot_key,) = store.candidates
    assert slot_key != SLOT_KEY
    for other in (one, reopened(rows, slot_key)):
        assert kept == (
            other.record_key(6, 1, 2, 3, SALT),
            other.record_key(6, 2, 2, 3, SALT),
            other.names(6).seal_name(1, b"n"),
        )
        with pytest.raises(WrongKeyError):
            other.record_key(5, 1, 2, 3, SALT)
    for slot in before:
        with pytest.raises(WrongKeyError):
            reopened([slot], slot_key)


@pytest.mark.parametrize("step", ["propose", "publish", "settle"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_shred_that_is_cut_off_is_before_or_after(step, when):
    one, rows = tenants_pool()
    store = FakeStore(SLOT_KEY)

    def cut(real):
        def call(argument):
            if when == "after":
                real(argument)
            raise PowerLossError(step)

        return call

    async def publish(rewrap: keys.Rewrap) -> None:
        if step == "publish" and when == "before":
            raise PowerLossError(step)
        rows[:] = rewrap.slots
        one.adopt(rewrap)
        if step == "publish":
            raise PowerLossError(step)

    if step != "publish":
        setattr(store, step, cut(getattr(store, step)))
    with pytest.raises(PowerLossError):
        await keys.shred(one, store, 5, publish)
    # a process that goes on wraps what fits the rows as they are
    assert (
        keys.settle(POOL, store.candidates, [*rows, *one.create_tenant(8)], SeededRandomness(4)).current_epoch(8) == 1
    )
    recovered = keys.settle(POOL, store.candidates, rows, SeededRandomness(3))
    assert recovered.current_epoch(6) == 2
    shredded = step == "settle" or (step, when) == ("publish", "after")
    assert (5 not in {slot.tenant for slot in rows}) == shredded
    if not shredded:
        assert recovered.current_epoch(5) == 1
    # what the ring wraps from here on opens with the key that is left
    fresh = recovered.create_tenant(9)
    assert reopened(fresh, recovered.slot_key).current_epoch(9) == 1


def test_settle_says_which_slot_fits_no_candidate():
    _, rows = tenants_pool()
    with pytest.raises(WrongKeyError, match="tenant 0, epoch 0"):
        keys.settle(POOL, (bytes(32), b"x" * 32), rows, SeededRandomness())


def test_the_system_is_not_shredded():
    one, _ = tenants_pool()
    with pytest.raises(InvalidArgumentError, match="system"):
        one.plan_shred(0)


def test_slots_wraps_all_keys_anew():
    one, rows = tenants_pool()
    again = one.slots()
    assert [(slot.tenant, slot.epoch) for slot in again] == sorted((slot.tenant, slot.epoch) for slot in rows)
    assert not {slot.wrapped for slot in again} & {slot.wrapped for slot in rows}
    assert reopened(again).current_epoch(6) == 2
    assert dataclasses.asdict(one.plan_shred(5))["tenant"] == 5

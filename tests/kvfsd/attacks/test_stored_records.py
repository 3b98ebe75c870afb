"""What a thief or saboteur of a medium can do to stored records, and that no attack makes a reader take wrong bytes.

Every attack is tried as it is and again by a *forger*, who knows the format and makes headers and both checksums that
need no key fit. The reader asks as the pipeline does: identity and tag from the catalog, salt from the record. What the
reader gets is a BadRecordError, or the very bytes that were stored; the second only where the attack changed nothing
that is covered (padding). docs/THREATS.md.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import xxhash
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvfs.errors import BadRecordError
from kvfsd.crypto import sealing
from kvfsd.crypto.keys import KeyRing, KeySlot
from kvfsd.ondisk.record import HEADER_BYTES, RecordHeader, RecordIdentity, RecordType, record_bytes

POOL, OTHER_POOL = bytes(range(16)), bytes(range(1, 17))
TENANT, OTHER_TENANT = 1, 2
LENGTH = 3000
"""A record of one 4 KiB unit with padding; `LONG` has two."""
LONG = 5000
BODY_END = HEADER_BYTES + LENGTH + 24


class SeededRandomness:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self, length_bytes: int) -> bytes:
        return self._random.randbytes(length_bytes)


@dataclass(frozen=True)
class Stored:
    """A record on the medium and what the catalog has of it."""

    identity: RecordIdentity
    tag: bytes
    record: bytes
    payload: bytes


class Vault:
    """Seals and reads as the pipeline does, with the keys of two tenants, one of them rotated once."""

    def __init__(self, pool: bytes, seed: int) -> None:
        self.pool = pool
        self.randomness = SeededRandomness(seed)
        self.ring = KeyRing(pool, self.randomness.token(32), self.randomness)
        self.slots: list[KeySlot] = []
        for tenant in (TENANT, OTHER_TENANT):
            self.slots += self.ring.create_tenant(tenant)
        self.slots.append(self.ring.rotate(TENANT))

    def key(self, identity: RecordIdentity, salt: bytes) -> bytes:
        return self.ring.record_key(identity.tenant, identity.epoch, identity.object, identity.generation, salt)

    def store(self, identity: RecordIdentity, payload: bytes) -> Stored:
        salt = self.randomness.token(16)
        out = memoryview(bytearray(record_bytes(len(payload))))
        sealed = sealing.seal(self.key(identity, salt), identity, salt, payload, out)
        return Stored(identity, sealed.tag, bytes(out), payload)

    def read(self, identity: RecordIdentity, tag: bytes, record: bytes) -> bytes:
        """What the reader is given; BadRecordError."""
        view = memoryview(record)
        out = memoryview(bytearray(b"\xaa" * identity.length))
        key = self.key(identity, sealing.record_salt(view))
        try:
            length = sealing.open_record(key, identity, tag, view, out)
        except BadRecordError:
            assert bytes(out) in (b"\xaa" * identity.length, bytes(identity.length)), "decrypted bytes were left behind"
            raise
        return bytes(out[:length])


VAULT, OTHER_VAULT = Vault(POOL, 1), Vault(OTHER_POOL, 2)


def identity_of(length: int = LENGTH, **changes) -> RecordIdentity:
    fields = {
        "pool": POOL,
        "record_type": RecordType.DATA,
        "tenant": TENANT,
        "epoch": 1,
        "object": 42,
        "block": 3,
        "generation": 1001,
        "length": length,
    }
    return RecordIdentity(**(fields | changes))


def stored(length: int = LENGTH, vault: Vault = VAULT, **changes) -> Stored:
    identity = identity_of(length, pool=vault.pool, **changes)
    content = f"{identity.tenant}/{identity.object}/{identity.block}/{identity.generation} ".encode()
    return vault.store(identity, (content * length)[:length])


VICTIM = stored()


def forged(record: bytes, claims: RecordIdentity, salt: bytes | None = None) -> bytes:
    """`record` with a header that claims to be `claims`, and checksums that fit."""
    size = record_bytes(claims.length)
    whole = bytearray(record[:size].ljust(size, b"\0"))
    body = whole[HEADER_BYTES : HEADER_BYTES + claims.length + 24]
    salt = salt or bytes(sealing.record_salt(memoryview(whole)))
    whole[:HEADER_BYTES] = RecordHeader(claims, salt, xxhash.xxh3_64_intdigest(bytes(body))).pack()
    return bytes(whole)


def refused(record: bytes, victim: Stored = VICTIM) -> str:
    """The reader of `victim` is served `record`: a BadRecordError that names the object, as it is and forged."""
    said = []
    for served in (record, forged(record, victim.identity)):
        with pytest.raises(BadRecordError, match=f"object {victim.identity.object}, block") as caught:
            VAULT.read(victim.identity, victim.tag, served)
        said.append(str(caught.value))
    return said[1]


def test_the_reader_reads_what_was_stored():
    """The control: without an attack, all of this opens, and a forger who changes nothing changes nothing."""
    for victim in (VICTIM, stored(LONG), stored(0), stored(epoch=2), stored(tenant=OTHER_TENANT)):
        assert VAULT.read(victim.identity, victim.tag, victim.record) == victim.payload
        assert VAULT.read(victim.identity, victim.tag, forged(victim.record, victim.identity)) == victim.payload


def test_every_single_bit_flip():
    """All 32,768 bits of a record: 0 wrong bytes; harmless only in the padding, which nothing covers or reads."""
    for bit in range(len(VICTIM.record) * 8):
        changed = bytearray(VICTIM.record)
        changed[bit // 8] ^= 1 << bit % 8
        if bit // 8 >= BODY_END:
            assert VAULT.read(VICTIM.identity, VICTIM.tag, bytes(changed)) == VICTIM.payload
            continue
        with pytest.raises(BadRecordError):
            VAULT.read(VICTIM.identity, VICTIM.tag, bytes(changed))


@pytest.mark.parametrize("at", [*range(HEADER_BYTES, HEADER_BYTES + 40), *range(BODY_END - 40, BODY_END)])
def test_bit_flips_by_a_forger(at):
    changed = bytearray(VICTIM.record)
    changed[at] ^= 0x10
    assert refused(bytes(changed)).startswith("seal: ")


@given(st.binary(min_size=16, max_size=16))
def test_another_salt_by_a_forger(salt):
    assume(salt != sealing.record_salt(memoryview(VICTIM.record)))
    with pytest.raises(BadRecordError, match=r"^seal: "):
        VAULT.read(VICTIM.identity, VICTIM.tag, forged(VICTIM.record, VICTIM.identity, salt))


@settings(max_examples=200)
@given(st.integers(0, len(VICTIM.record)), st.sampled_from(["cut", "zeros", "ones"]))
def test_truncation_and_torn_writes(at, rest):
    """What is behind `at` never reached the medium: gone, or what lay there before."""
    tail = {"cut": b"", "zeros": bytes(4096 - at), "ones": b"\xff" * (4096 - at)}[rest]
    torn = VICTIM.record[:at] + tail
    if at >= BODY_END:
        assert VAULT.read(VICTIM.identity, VICTIM.tag, torn) == VICTIM.payload
        return
    with pytest.raises(BadRecordError):
        VAULT.read(VICTIM.identity, VICTIM.tag, torn)


@pytest.mark.parametrize("length", [0, 1, LENGTH - 1, LENGTH - 16])
def test_a_forger_shortens_a_record(length):
    """Header and checksums say `length`: a reader refuses who asks for the real length, and one who does not."""
    short = forged(VICTIM.record, replace(VICTIM.identity, length=length))
    with pytest.raises(BadRecordError, match=f"length: want {LENGTH}, have {length}"):
        VAULT.read(VICTIM.identity, VICTIM.tag, short)
    with pytest.raises(BadRecordError, match=r"^seal: "):
        VAULT.read(replace(VICTIM.identity, length=length), VICTIM.tag, short)


@settings(max_examples=200)
@given(st.integers(1, BODY_END - 1), st.booleans())
def test_splices_of_two_records(at, same_object):
    other = stored(block=4) if same_object else stored(tenant=OTHER_TENANT)
    spliced = VICTIM.record[:at] + other.record[at:]
    for victim in (VICTIM, other):
        if spliced[:BODY_END] == victim.record[:BODY_END]:  # a cut where both have the same bytes
            assert VAULT.read(victim.identity, victim.tag, spliced) == victim.payload
        elif spliced[HEADER_BYTES:BODY_END] == victim.record[HEADER_BYTES:BODY_END]:
            # A cut within the header, which a forger would only make whole again; unless he has the other's salt.
            with pytest.raises(BadRecordError):
                VAULT.read(victim.identity, victim.tag, spliced)
        else:
            refused(spliced, victim)


OTHERS = {
    "swap with another block of the object": lambda: stored(block=4),
    "swap with another object of the tenant": lambda: stored(object=43),
    "swap with a longer record": lambda: stored(LONG, object=43),
    "another tenant's record": lambda: stored(tenant=OTHER_TENANT),
    "replay of an older generation": lambda: stored(generation=1000),
    "a newer generation under an old catalog": lambda: stored(generation=1002),
    "another key epoch": lambda: stored(epoch=2),
    "another record type": lambda: stored(record_type=RecordType.METADATA_LOG),
    "another pool's record": lambda: stored(vault=OTHER_VAULT),
    "nothing": lambda: replace(VICTIM, record=bytes(4096)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_record_in_its_place(name):
    other = OTHERS[name]()
    with pytest.raises(BadRecordError) as caught:
        VAULT.read(VICTIM.identity, VICTIM.tag, other.record)
    assert str(caught.value).startswith("header: " if name == "nothing" else "identity: ")
    assert refused(other.record).startswith("seal: ")


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "nothing"])
def test_a_catalog_row_that_was_made_to_point_at_another_record(name):
    """The saboteur writes to the catalog too, and gives the victim's row tag, length and all that the other record has.

    The tenant and the object are what is being read, so they stay; the key is derived from them.
    """
    other = OTHERS[name]()
    asked = replace(other.identity, pool=POOL, tenant=TENANT, object=42, record_type=RecordType.DATA, block=3)
    if asked == other.identity:
        # Only generation and epoch differ: it *is* a version of this very block, and sealed by us. Rolling back catalog
        # and medium together is not detected (docs/THREATS.md, what is not promised).
        assert VAULT.read(asked, other.tag, other.record) == other.payload
        return
    for served in (other.record, forged(other.record, asked)):
        with pytest.raises(BadRecordError):
            VAULT.read(asked, other.tag, served)


def test_an_old_record_of_the_same_generation_fails_the_catalogs_tag():
    """Two sealings under one identity (two clones of a pool that run side by side): only the row's own opens."""
    again = VAULT.store(VICTIM.identity, b"other bytes" * 272 + b"12345678")
    assert len(again.payload) == LENGTH
    assert refused(again.record).startswith("catalog tag: ")
    assert VAULT.read(again.identity, again.tag, again.record) == again.payload


def test_clones_of_a_pool_never_share_a_record_key():
    """Pool and state directory copied, both run on and hand out the same numbers: the salts keep the keys apart."""
    one, two = Vault(POOL, 7), Vault(POOL, 7)
    two.randomness = SeededRandomness(8)  # the kernel's generator does not repeat itself; the counters do
    identity = identity_of()
    first, second = one.store(identity, b"a" * LENGTH), two.store(identity, b"b" * LENGTH)
    salts = [sealing.record_salt(memoryview(each.record)) for each in (first, second)]
    assert salts[0] != salts[1]
    assert one.key(identity, salts[0]) != one.key(identity, salts[1])
    ciphertexts = [each.record[HEADER_BYTES : HEADER_BYTES + LENGTH] for each in (first, second)]
    assert bytes(a ^ b for a, b in zip(*ciphertexts, strict=True)) != bytes([ord("a") ^ ord("b")]) * LENGTH


def test_equal_payloads_do_not_look_alike():
    one, two = (VAULT.store(identity_of(object=number), bytes(LENGTH)) for number in (50, 51))
    assert one.record[HEADER_BYTES:BODY_END] != two.record[HEADER_BYTES:BODY_END]
    again = VAULT.store(one.identity, bytes(LENGTH))
    assert again.record[HEADER_BYTES:BODY_END] != one.record[HEADER_BYTES:BODY_END]


numbers = st.fixed_dictionaries(
    {},
    optional={
        "tenant": st.sampled_from([TENANT, OTHER_TENANT]),
        "epoch": st.integers(1, 2),
        "object": st.integers(2, 2**64 - 1),
        "block": st.integers(0, 2**26),
        "generation": st.integers(1, 2**63),
        "record_type": st.sampled_from(list(RecordType)),
        "length": st.integers(0, 4000),
    },
)


@settings(max_examples=300)
@given(numbers, numbers, st.booleans())
def test_a_record_opens_as_itself_and_as_nothing_else(one, other, forger):
    def legal(fields):
        return fields | ({"epoch": 1} if fields.get("tenant") == OTHER_TENANT else {})

    mine, asked = replace(identity_of(), **legal(one)), replace(identity_of(), **legal(other))
    record = VAULT.store(mine, b"p" * mine.length)
    assert VAULT.read(mine, record.tag, record.record) == record.payload
    assume(mine != asked)
    with pytest.raises(BadRecordError):
        VAULT.read(asked, record.tag, forged(record.record, asked) if forger else record.record)


@settings(max_examples=300)
@given(st.binary(max_size=5000), st.booleans())
def test_any_bytes_are_refused(content, forger):
    with pytest.raises(BadRecordError):
        VAULT.read(VICTIM.identity, VICTIM.tag, forged(content, VICTIM.identity, bytes(16)) if forger else content)


@settings(max_examples=300)
@given(st.data())
def test_mixes_of_attacks(data):
    """Several records cut at any places and put together in any order, some bytes changed, a forged header or not."""
    sources = [VICTIM.record, stored(generation=1000).record, stored(tenant=OTHER_TENANT).record, bytes(4096)]
    cuts = sorted(data.draw(st.lists(st.integers(0, 4096), max_size=4)))
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, 4096], strict=True):
        pieces.append(data.draw(st.sampled_from(sources))[start:end])
    mixed = bytearray(b"".join(pieces))
    for at, value in data.draw(st.dictionaries(st.integers(0, 4095), st.integers(0, 255), max_size=3)).items():
        mixed[at] = value
    record = forged(bytes(mixed), VICTIM.identity) if data.draw(st.booleans()) else bytes(mixed)
    try:
        assert VAULT.read(VICTIM.identity, VICTIM.tag, record) == VICTIM.payload
    except BadRecordError:
        assert record[:BODY_END] != VICTIM.record[:BODY_END]

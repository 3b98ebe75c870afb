"""Key derivation: RFC vectors, our own fixed vectors, and that every field of a derivation counts."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from kvfs.errors import FormatError, InvalidArgumentError
from kvfsd.crypto import kdf

POOL = bytes(range(16))
DEK = bytes(range(32))
SALT = bytes(range(100, 116))


@pytest.mark.parametrize(
    ("prk", "info", "length", "okm"),
    [
        (  # RFC 5869, A.1
            "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
            "f0f1f2f3f4f5f6f7f8f9",
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (  # RFC 5869, A.2
            "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
            "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf"
            "e0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            82,
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8"
            "367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (  # RFC 5869, A.3
            "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
            "",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_expand_is_rfc_5869(prk: str, info: str, length: int, okm: str) -> None:
    assert kdf.expand(bytes.fromhex(prk), bytes.fromhex(info), length).hex() == okm


def test_scrypt_is_rfc_7914():
    # RFC 7914, 12, shows that hashlib is scrypt (the RFC's salt has 14 bytes, ours have 16); ours is hashlib.
    key = hashlib.scrypt(b"pleaseletmein", salt=b"SodiumChloride", n=1 << 14, r=8, p=1, maxmem=1 << 26, dklen=32)
    assert key.hex() == "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
    ours = kdf.Stretch(SALT, log2_n=10).key(b"pleaseletmein")
    assert ours == hashlib.scrypt(b"pleaseletmein", salt=SALT, n=1 << 10, r=8, p=1, dklen=32)


@pytest.mark.parametrize("length", [-1, 0, 8161])
def test_expand_refuses_lengths_outside_the_rfc(length: int) -> None:
    with pytest.raises(InvalidArgumentError, match="HKDF-Expand"):
        kdf.expand(DEK, b"", length)


VECTORS = [
    "ad43b36a8c00f3fefd365a30647c2abde03c34b11e8070f76a0bdb20c364c712",
    "10112175e3a223f3c62a274360734a2ecafbad61396a672f34c4b63d66bbd34b"
    "49bd1c2815dd9cc3e4f09d3339c5616b36093793b189df5e2be77a29b607c945",
    "714300e6ba98aa03cec950265d41557a8f07ef041a4ed3b1a569dd8f743ad5ce",
    "932d2ca2e334d13186fc5f742ae741df5cb956f5000494f24d96fc9d66e32b72",
    "0532d78c668af04e492d7ba53aac16df8840fa568f09d6b3a7bf27011ac7e251",
    "cb0d89bfae528163722dc296f58e31d2",
]


ROWS_KEY = "1012ebfcb741898a782b2688794f91d3deab2ed6af3c3d3717cea35ca3beb8f9"


def test_fixed_vectors():
    """These are in docs/FORMAT.md; a change here is a change of the format."""
    vectors = [
        kdf.record_key(DEK, kdf.record_prefix(POOL), (7, 42, 1001), SALT).hex(),
        kdf.names_key(DEK, POOL, 7).hex(),
        kdf.slot_wrap_key(DEK, POOL, (7, 1), SALT).hex(),
        kdf.system_key(DEK, POOL).hex(),
        kdf.kek_wrap_key(DEK, POOL, SALT).hex(),
        kdf.kek_check(DEK, POOL).hex(),
    ]
    assert kdf.rows_key(DEK, POOL, 7).hex() == ROWS_KEY
    assert vectors == VECTORS


def test_record_key_is_hkdf_expand():
    info = (
        kdf.PURPOSE_RECORD + POOL + (7).to_bytes(4, "little") + (42).to_bytes(8, "little") + (9).to_bytes(8, "little")
    )
    assert kdf.record_key(DEK, kdf.record_prefix(POOL), (7, 42, 9), SALT) == kdf.expand(DEK, info + SALT, 32)


@given(st.binary(max_size=100), st.integers(1, 300))
def test_expand_agrees_with_another_implementation(info, length):
    other = HKDFExpand(algorithm=hashes.SHA256(), length=length, info=info).derive(DEK)
    assert kdf.expand(DEK, info, length) == other


def test_labels_are_prefix_free():
    for one in kdf.PURPOSES:
        for other in kdf.PURPOSES:
            assert one is other or not other.startswith(one)
    assert len(set(kdf.PURPOSES)) == len(kdf.PURPOSES)


u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
sixteen = st.binary(min_size=16, max_size=16)
derivation = st.tuples(sixteen, u32, u64, u64, sixteen)


@given(derivation, derivation)
def test_any_other_field_is_another_record_key(one, other):
    def key(pool, tenant, ino, generation, salt):
        return kdf.record_key(DEK, kdf.record_prefix(pool), (tenant, ino, generation), salt)

    assert (key(*one) == key(*other)) == (one == other)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kdf.record_prefix(b"short"),
        lambda: kdf.record_key(DEK, kdf.record_prefix(POOL), (1, 2, 3), b"short"),
        lambda: kdf.names_key(DEK, POOL + b"x", 1),
        lambda: kdf.slot_wrap_key(DEK, POOL, (1, 1), SALT + b"x"),
        lambda: kdf.system_key(DEK, b""),
        lambda: kdf.kek_wrap_key(DEK, POOL, b""),
        lambda: kdf.kek_check(DEK, b""),
    ],
)
def test_fields_of_another_length_are_refused(call):
    with pytest.raises(InvalidArgumentError, match="want 16 bytes"):
        call()


@pytest.mark.parametrize(
    "bad",
    [
        {"log2_n": 9},
        {"log2_n": 21},
        {"log2_n": 255},
        {"log2_n": -1},
        {"r": 0},
        {"r": 33},
        {"p": 0},
        {"p": 17},
        {"log2_n": 20, "r": 32},
        {"salt": b"short"},
    ],
)
def test_scrypt_parameters_are_bounded(bad):
    with pytest.raises(FormatError, match="scrypt"):
        kdf.Stretch(**({"salt": SALT} | bad)).check("key file")

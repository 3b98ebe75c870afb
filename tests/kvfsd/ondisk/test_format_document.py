"""docs/FORMAT.md is normative: its tables are compared with the code, its vectors computed again."""

import re
import struct
from pathlib import Path

import pytest
import xxhash

from kvfs import limits
from kvfsd.crypto import kdf, keyfile
from kvfsd.ondisk import metalog, record, segment, superblock
from tests.golden import images

TEXT = (Path(__file__).parents[3] / "docs" / "FORMAT.md").read_text()
POOL, ROOT, SALT = bytes(range(16)), bytes(range(32)), bytes(range(100, 116))


def section(heading: str) -> str:
    """Text under a heading, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/FORMAT.md has no heading {heading!r}"
    return found.group(1)


def table(heading: str) -> list[list[str]]:
    """Cells of the rows of the first table under a heading, without its head."""
    rows = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def byte_table(heading: str) -> list[tuple[int, int, str]]:
    return [(int(row[0]), int(row[1]), row[2]) for row in table(heading)]


@pytest.mark.parametrize(
    ("heading", "codec"),
    [
        ("2.1 Superblock slot", superblock),
        ("3.1 Segment header", segment),
        ("4.1 Record header", record),
        ("5.2 Key file", keyfile),
    ],
)
def test_tables_of_structures(heading, codec):
    assert byte_table(heading) == list(codec.LAYOUT.rows())
    assert table(heading)[0][3] == f"`{codec.MAGIC.decode()}`"


def cut(data: bytes, heading: str) -> dict[str, bytes]:
    """`data` cut by a table, which must cover it without gaps."""
    pieces, end = {}, 0
    for offset, size, name in byte_table(heading):
        assert offset == end
        pieces[name] = data[offset : offset + size]
        end = offset + size
    assert end == len(data)
    return pieces


def test_associated_data():
    identity = record.RecordIdentity(POOL, record.RecordType.METADATA_LOG, 7, 5, 42, 3, 1001, 77)
    assert cut(identity.associated_data(), "4.4 Associated data") == {
        "purpose": b"kvfs/v1/record\0\0",
        "pool": POOL,
        "record_type": struct.pack("<I", 2),
        "tenant": struct.pack("<I", 7),
        "epoch": struct.pack("<I", 5),
        "object": struct.pack("<Q", 42),
        "block": struct.pack("<Q", 3),
        "generation": struct.pack("<Q", 1001),
        "length": struct.pack("<Q", 77),
    }


def test_info_of_a_record_key():
    values = {"tenant": 7, "object": 42, "generation": 1001}
    info = b""
    for _, size, name in byte_table("4.3 Info of a record key"):
        fixed = {"purpose": b"kvfs/v1/record", "pool": POOL, "salt": SALT}.get(name)
        info += fixed if fixed is not None else values[name].to_bytes(size, "little")
    assert kdf.expand(ROOT, info, 32) == kdf.record_key(ROOT, kdf.record_prefix(POOL), (7, 42, 1001), SALT)


def test_payload_header_of_the_metadata_log():
    batch = cut(metalog.encode_batch(99, [b"\x92\xc3\x90"])[:24], "6.1 Payload header")
    assert (batch["magic"], batch["version"], batch["count"]) == (b"KVML", b"\1\0", b"\1\0\0\0")
    assert batch["generation"] == struct.pack("<Q", 99)
    system = cut(metalog.encode_system(98, [])[0][:24], "6.1 Payload header")
    assert (system["magic"], system["count"], system["part"]) == (b"KVSY", b"\1\0\0\0", bytes(4))


def test_purpose_labels():
    labels = [row[1].strip('"').encode() for row in table("5.1 Key slots and other derivations")]
    assert labels == list(kdf.PURPOSES)


def test_vectors():
    record_of_vector, tag = images.sealed(0)
    found = [(row[0], row[1].strip("`")) for row in table("9. Vectors and the golden image")]
    assert found == [
        ("record_key", kdf.record_key(ROOT, kdf.record_prefix(POOL), (7, 42, 1001), SALT).hex()),
        ("names_key", kdf.names_key(ROOT, POOL, 7).hex()),
        ("slot_wrap_key", kdf.slot_wrap_key(ROOT, POOL, (7, 1), SALT).hex()),
        ("system_key", kdf.system_key(ROOT, POOL).hex()),
        ("kek_wrap_key", kdf.kek_wrap_key(ROOT, POOL, SALT).hex()),
        ("kek_check", kdf.kek_check(ROOT, POOL).hex()),
        ("tag of the record of `kvfs test vector`", tag.hex()),
        ("xxh3 of that whole record", xxhash.xxh3_64_hexdigest(record_of_vector)),
        ("xxh3 of the whole system record", xxhash.xxh3_64_hexdigest(images.sealed_system())),
    ]


def test_numbers_in_the_text_are_those_of_the_code():
    assert superblock.SLOT_OFFSETS == (0, 64 * 1024)
    assert superblock.DATA_OFFSET_BYTES == limits.MIB
    assert f"plus {record.OVERHEAD_BYTES} bytes" in section("4. Record")
    assert limits.BLOCK_BYTES == record.PAYLOAD_MAX_BYTES == limits.MIB
    assert (limits.SEGMENT_MIN_BYTES, limits.SEGMENT_MAX_BYTES) == (4 * limits.MIB, 64 * limits.MIB)
    assert (limits.MEDIUM_MIN_BYTES, limits.MEDIA_PER_POOL_MAX) == (32 * limits.MIB, 256)
    assert superblock.FAILURE_DOMAIN_MAX_BYTES == 64

"""Golden images: what this version writes, from fixed keys, salts and identifiers (docs/FORMAT.md, section 9).

python -m tests.golden.images          writes them again; a difference is a change of the format
"""

from __future__ import annotations

from pathlib import Path

import trio

from kvfs import limits
from kvfsd.crypto import kdf, keys, sealing
from kvfsd.media.memory import MemoryMedium
from kvfsd.media.superblocks import format_medium
from kvfsd.ondisk.metalog import SystemTenant, encode_system
from kvfsd.ondisk.record import RecordIdentity, RecordType, record_bytes
from kvfsd.ondisk.segment import HEADER_BYTES, SegmentHeader, SegmentKind
from kvfsd.ondisk.superblock import Superblock

FOLDER = Path(__file__).parent
POOL = bytes(range(16))
MEDIUM = bytes(range(16, 32))
DEK = SLOT_KEY = bytes(range(32))
SALT = bytes(range(100, 116))
LINE_BYTES = 32

SUPERBLOCK = Superblock(
    pool=POOL,
    medium=MEDIUM,
    medium_index=1,
    size_bytes=limits.MEDIUM_MIN_BYTES,
    segment_bytes=limits.SEGMENT_MIN_BYTES,
    weight=3,
    failure_domain="rack-1",
    replicas=2,
)
PAYLOADS = (b"kvfs test vector", bytes(range(250)) * 20)
"""Blocks 3 and 4 of object 42 of tenant 7, generations 1001 and 1002."""
SYSTEM_GENERATION = 1003


def identity_of(number: int) -> RecordIdentity:
    """Identity of the record of `PAYLOADS[number]`."""
    return RecordIdentity(
        pool=POOL,
        record_type=RecordType.DATA,
        tenant=7,
        epoch=1,
        object=42,
        block=3 + number,
        generation=1001 + number,
        length=len(PAYLOADS[number]),
    )


def key_of(identity: RecordIdentity) -> bytes:
    """Key of a record of the image."""
    owner = (identity.tenant, identity.object, identity.generation)
    return kdf.record_key(DEK, kdf.record_prefix(identity.pool), owner, SALT)


def sealed(number: int) -> tuple[bytes, bytes]:
    """The record of `PAYLOADS[number]` and its tag."""
    identity = identity_of(number)
    out = bytearray(record_bytes(identity.length))
    record = sealing.seal(key_of(identity), identity, SALT, PAYLOADS[number], memoryview(out))
    return bytes(out), record.tag


def slot(tenant: int, epoch: int) -> tuple[int, bytes]:
    """A key slot of the system snapshot: the DEK, or a names key of the same octets, wrapped with the slot key."""
    return epoch, keys.wrap(SLOT_KEY, POOL, (tenant, epoch), DEK, SALT).wrapped


def system_snapshot() -> tuple[RecordIdentity, bytes]:
    """Identity and payload of the system record: tenants 0 and 7; tenant 7 is named `blue`."""
    sealer = keys.NameSealer(kdf.names_key(DEK, POOL, 0))
    blue = SystemTenant(7, sealer.seal_name(0, b"blue"), 1 << 40, 1000, 2, 1, 10**18, [slot(7, 0), slot(7, 1)])
    system = SystemTenant(0, b"", 0, 0, 0, 0, 0, [slot(0, 0), slot(0, 1)])
    (payload,) = encode_system(SYSTEM_GENERATION, [system, blue])
    identity = RecordIdentity(POOL, RecordType.SYSTEM, 0, 0, 0, 0, SYSTEM_GENERATION, len(payload))
    return identity, payload


def sealed_system() -> bytes:
    """The system record."""
    identity, payload = system_snapshot()
    out = bytearray(record_bytes(identity.length))
    key = keys.system_record_key(SLOT_KEY, POOL, identity.generation, SALT)
    sealing.seal(key, identity, SALT, payload, memoryview(out))
    return bytes(out)


def segment_header(segment: int, kind: SegmentKind, tenant: int, epoch: int) -> SegmentHeader:
    """Header of a segment of the image."""
    return SegmentHeader(
        kind=kind,
        pool=POOL,
        medium=MEDIUM,
        medium_index=SUPERBLOCK.medium_index,
        segment=segment,
        tenant=tenant,
        epoch=epoch,
    )


def segments() -> list[list[bytes]]:
    """What is written to segments 0 and 1, in order."""
    data = segment_header(0, SegmentKind.DATA, 7, 1).pack()
    system = segment_header(1, SegmentKind.SYSTEM, 0, 0).pack()
    return [[data, sealed(0)[0], sealed(1)[0]], [system, sealed_system()]]


def medium_image() -> bytes:
    """The 32 MiB of `medium-v1.txt`."""

    async def make() -> bytes:
        medium = MemoryMedium("golden", SUPERBLOCK.size_bytes)
        await format_medium(medium, SUPERBLOCK)
        for segment, pieces in enumerate(segments()):
            offset = SUPERBLOCK.segment_offset(segment)
            for piece in pieces:
                await medium.write(offset, memoryview(piece))
                offset += len(piece)
        image = bytearray(SUPERBLOCK.size_bytes)
        await medium.read_into(0, memoryview(image))
        return bytes(image)

    assert HEADER_BYTES == limits.RECORD_ALIGN_BYTES
    return trio.run(make)


def to_text(image: bytes) -> str:
    """`offset: hex` of each 32 bytes that are not all zero, after a line with the size."""
    lines = [f"size: {len(image)}"]
    zeros = bytes(LINE_BYTES)
    unit_zeros = bytes(limits.RECORD_ALIGN_BYTES)
    for unit in range(0, len(image), limits.RECORD_ALIGN_BYTES):
        if image[unit : unit + limits.RECORD_ALIGN_BYTES] == unit_zeros:
            continue
        for offset in range(unit, unit + limits.RECORD_ALIGN_BYTES, LINE_BYTES):
            piece = image[offset : offset + LINE_BYTES]
            if piece != zeros:
                lines.append(f"{offset:08x}: {piece.hex()}")
    return "\n".join(lines) + "\n"


def from_text(text: str) -> bytes:
    """The image of `to_text`."""
    first, *lines = text.splitlines()
    image = bytearray(int(first.removeprefix("size: ")))
    for line in lines:
        offset, _, digits = line.partition(": ")
        piece = bytes.fromhex(digits)
        image[int(offset, 16) : int(offset, 16) + len(piece)] = piece
    return bytes(image)


IMAGES = {"medium-v1.txt": medium_image}
"""File name -> what makes it."""


if __name__ == "__main__":
    for name, make in IMAGES.items():
        (FOLDER / name).write_text(to_text(make()))

import pytest

from kvfsd.crypto import keys, sealing
from kvfsd.media.memory import MemoryMedium
from kvfsd.media.superblocks import read_superblock
from kvfsd.ondisk.metalog import decode_system
from kvfsd.ondisk.segment import SegmentKind
from kvfsd.ports import SystemRandomness
from kvfsd.segments.scan import ScannedRecord, SegmentScan, read_segment_header
from tests.golden import images


@pytest.mark.parametrize("name", images.IMAGES)
def test_this_version_writes_the_same_bytes(name):
    kept = images.from_text((images.FOLDER / name).read_text())
    assert images.IMAGES[name]() == kept, "the format changed: that needs a new version, not a new image"


async def medium_of(name: str) -> MemoryMedium:
    image = images.from_text((images.FOLDER / name).read_text())
    medium = MemoryMedium(name, len(image))
    await medium.write(0, memoryview(image))
    return medium


async def test_released_image_is_read():
    medium = await medium_of("medium-v1.txt")
    found = await read_superblock(medium)
    assert (found.slot, found.damage, found.superblock.sequence) == (1, "", 2)
    assert (found.superblock.failure_domain, found.superblock.replicas) == ("rack-1", 2)
    header = await read_segment_header(medium, found.superblock, 0)
    assert (header.tenant, header.epoch) == (7, 1)
    assert await read_segment_header(medium, found.superblock, 2) is None
    payloads = []
    async for item in SegmentScan(medium, found.superblock, 0):
        assert isinstance(item, ScannedRecord)
        assert item.damage == ""
        identity = images.identity_of(len(payloads))
        assert item.header.identity == identity
        out = memoryview(bytearray(identity.length))
        tag = images.sealed(len(payloads))[1]
        length = sealing.open_record(images.key_of(identity), identity, tag, item.record, out)
        payloads.append(bytes(out[:length]))
    assert tuple(payloads) == images.PAYLOADS


async def test_system_record_of_a_released_image_opens_with_the_slot_key():
    medium = await medium_of("medium-v1.txt")
    superblock = (await read_superblock(medium)).superblock
    header = await read_segment_header(medium, superblock, 1)
    assert (header.kind, header.tenant, header.epoch) == (SegmentKind.SYSTEM, 0, 0)
    identity, payload = images.system_snapshot()
    opened = []
    async for item in SegmentScan(medium, superblock, 1):
        assert item.header.identity == identity
        key = keys.system_record_key(images.SLOT_KEY, images.POOL, identity.generation, item.header.salt)
        out = memoryview(bytearray(identity.length))
        sealing.open_record(key, identity, b"", item.record, out)
        opened.append(bytes(out))
    assert opened == [payload]
    system, blue = decode_system(payload, "golden").tenants
    ring = keys.KeyRing(images.POOL, images.SLOT_KEY, SystemRandomness())
    ring.unlock(keys.KeySlot(one.tenant, *slot) for one in (system, blue) for slot in one.slots)
    assert ring.names(0).open_name(0, blue.sealed_name) == b"blue"


def test_text_form_keeps_every_byte():
    image = bytes(8192) + b"\x01" + bytes(4095) + bytes(range(256)) * 16
    assert images.from_text(images.to_text(image)) == image

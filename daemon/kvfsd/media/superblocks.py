"""Reading, writing and first making the two superblock slots of a medium."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from kvfs import limits
from kvfs.errors import ExistsError, FormatError, InvalidArgumentError
from kvfsd.media.base import Medium
from kvfsd.ondisk.superblock import SLOT_BYTES, SLOT_OFFSETS, Superblock, UnknownFeatureError, newest

_PROBE_BYTES: Final = limits.MIB
"""What is looked at before a medium is formatted: where partition tables and filesystems have their first bytes."""


@dataclass(frozen=True, slots=True)
class FoundSuperblock:
    """The newest superblock of a medium, the slot it was in, and what is wrong with the other slot, if anything."""

    superblock: Superblock
    slot: int
    damage: str = ""


async def read_superblock(medium: Medium) -> FoundSuperblock:
    """The medium's superblock: of the valid slots, the one with the higher sequence.

    FormatError if no slot is valid or the medium is smaller than it should be; UnknownFeatureError if either slot was
    written by a version that knows more, because the other one is then out of date. A damaged slot is tolerated: the
    result names it, and the next `write_superblock` repairs it.
    """
    slots: list[Superblock | None] = []
    damages: list[str] = []
    buffer = bytearray(SLOT_BYTES)
    for slot, offset in enumerate(SLOT_OFFSETS):
        where = f"medium {medium.name}: superblock slot {slot}"
        await medium.read_into(offset, memoryview(buffer))
        try:
            slots.append(Superblock.parse(buffer, slot, where))
        except UnknownFeatureError:
            raise
        except FormatError as error:
            slots.append(None)
            damages.append(str(error))
    if len(damages) == len(SLOT_OFFSETS):
        raise FormatError(f"medium {medium.name} has no valid superblock: {'; '.join(damages)}")
    slot = newest((slots[0], slots[1]))
    superblock = slots[slot]
    assert superblock is not None
    if superblock.size_bytes > medium.size_bytes:
        raise FormatError(f"medium {medium.name}: size: want {superblock.size_bytes} bytes, have {medium.size_bytes}")
    return FoundSuperblock(superblock, slot, "".join(damages))


async def write_superblock(medium: Medium, found: FoundSuperblock, changed: Superblock) -> FoundSuperblock:
    """Store `changed` with the next sequence in the slot that does not hold `found`, and flush.

    InvalidArgumentError if an unknown feature forbids writing.
    """
    if found.superblock.read_only:
        flags = found.superblock.ro_compat
        raise InvalidArgumentError(f"medium {medium.name}: features {flags:#x} of a newer kvfs forbid writing")
    slot = 1 - found.slot
    following = dataclasses.replace(changed, sequence=found.superblock.sequence + 1)
    await medium.write(SLOT_OFFSETS[slot], memoryview(following.pack(slot)))
    await medium.flush()
    return FoundSuperblock(following, slot)


async def format_medium(medium: Medium, superblock: Superblock, *, overwrite: bool = False) -> FoundSuperblock:
    """Make an empty medium of a pool: both slots, flushed. `superblock.size_bytes` must be within the medium's size.

    ExistsError if its first MiB holds anything, unless `overwrite` (which makes its content unreachable).
    """
    if superblock.size_bytes > medium.size_bytes:
        raise InvalidArgumentError(
            f"medium {medium.name}: size: want at most {medium.size_bytes} bytes, have {superblock.size_bytes}"
        )
    if not overwrite:
        await _check_empty(medium)
    for slot, offset in enumerate(SLOT_OFFSETS):
        packed = dataclasses.replace(superblock, sequence=slot + 1).pack(slot)
        await medium.write(offset, memoryview(packed))
    await medium.flush()
    return FoundSuperblock(dataclasses.replace(superblock, sequence=len(SLOT_OFFSETS)), len(SLOT_OFFSETS) - 1)


async def _check_empty(medium: Medium) -> None:
    """ExistsError unless the medium starts with zeros."""
    probe = bytearray(min(_PROBE_BYTES, medium.size_bytes))
    await medium.read_into(0, memoryview(probe))
    first = next((offset for offset, byte in enumerate(probe) if byte), None)
    if first is not None:
        raise ExistsError(f"medium {medium.name} is not empty: byte {first} is {probe[first]:#04x}; wipe it first")

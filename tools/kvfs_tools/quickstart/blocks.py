"""Block contents that anyone can recompute from a seed, and that a search recognises by any 32 bytes.

A block is a sequence of 4 KiB sections, chosen by the block's id from a table of 1,024; a section is a sequence of
16-byte units, chosen from a table of 4,096 random ones. So blocks differ in every section, making one is a few hundred
copies, and every run of 31 bytes or more of any block contains a whole unit (16 + 15 = 31): whoever looks for the 4,096
units looks for every 32-byte run of every block. kvfs does not compress, so the small alphabet changes no measurement.
"""

from __future__ import annotations

import hashlib
import random

UNIT_BYTES = 16
UNITS = 4096
SECTION_BYTES = 4096
SECTIONS = 1024


class BlockSource:
    """All blocks of one run: `block_bytes` each (a multiple of 4 KiB), determined by `seed`."""

    def __init__(self, seed: bytes, block_bytes: int) -> None:
        if block_bytes <= 0 or block_bytes % SECTION_BYTES:
            raise ValueError(f"block size {block_bytes} is not a positive multiple of {SECTION_BYTES}")
        self.block_bytes = block_bytes
        self._seed = seed
        generator = random.Random(seed + b"units")
        self.units = [generator.randbytes(UNIT_BYTES) for _ in range(UNITS)]
        per_section = SECTION_BYTES // UNIT_BYTES
        self._sections = [b"".join(generator.choices(self.units, k=per_section)) for _ in range(SECTIONS)]

    def digest(self, block: int) -> bytes:
        """The 32 bytes that name block number `block`."""
        return hashlib.sha256(self._seed + block.to_bytes(8, "little")).digest()

    def content(self, block: int) -> bytes:
        """The bytes of block number `block`."""
        chosen = random.Random(self.digest(block)).choices(self._sections, k=self.block_bytes // SECTION_BYTES)
        return b"".join(chosen)

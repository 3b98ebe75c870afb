"""Planted plaintext: without it, a search that finds nothing would prove nothing."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from pathlib import Path

from kvfs_tools.quickstart.plaintext import SearchReport

LEAK_BYTES = 32
NOISE_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Control:
    """A file of noise with one 32-byte run of a block and one encoded name in it, at offsets of no alignment."""

    path: Path
    run_offset: int
    name_offset: int


def plant(directory: Path, block: bytes, name: bytes) -> Control:
    """Write a control file into `directory`: 32 bytes of `block` from a random place, and `name` in base64."""
    noise = bytearray(secrets.token_bytes(NOISE_BYTES))
    start = secrets.randbelow(len(block) - LEAK_BYTES)
    run_offset = 1000 + secrets.randbelow(NOISE_BYTES // 4)
    noise[run_offset : run_offset + LEAK_BYTES] = block[start : start + LEAK_BYTES]
    encoded = base64.b64encode(b"x" + name)
    name_offset = NOISE_BYTES // 2 + secrets.randbelow(NOISE_BYTES // 4)
    noise[name_offset : name_offset + len(encoded)] = encoded
    path = directory / f"control-{secrets.token_hex(4)}"
    path.write_bytes(noise)
    return Control(path, run_offset, name_offset)


def all_found(report: SearchReport, control: Control) -> bool:
    """Whether the search that made `report` found both pieces of plaintext of `control`."""
    found = [finding.offset for finding in report.findings if finding.path == control.path]
    run = any(control.run_offset <= offset < control.run_offset + LEAK_BYTES for offset in found)
    name = any(offset >= control.name_offset for offset in found)
    return run and name


def remove_from(report: SearchReport, control: Control) -> SearchReport:
    """`report` without what was planted; the control file is deleted."""
    control.path.unlink()
    others = [finding for finding in report.findings if finding.path != control.path]
    return SearchReport(report.files, report.searched_bytes, others)

"""Looks for plaintext where only sealed bytes should be: any piece of given runs, at any alignment, in any file.

How it finds them: every 8-byte word that a run contains, at every byte offset, is in a set; a file is read as 8-byte
words at multiples of 8. Any 15 consecutive bytes of a file contain one such whole word (7 bytes to reach alignment, 8
of the word), so any 15 bytes of an indexed run, wherever they stand, hit the set. A hit is confirmed by comparing
around it and counts if at least 15 consecutive bytes agree. Chance is no explanation: 15 equal bytes have probability
2^-120.

Words with fewer than 4 different bytes (zeros, padding) are not indexed: a run of them says nothing about its origin.
"""

from __future__ import annotations

import base64
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

WORD_BYTES = 8
MATCH_BYTES = 15
"""Shortest piece of a run that is always found, and the shortest that counts."""
DISTINCT_BYTES_MIN = 4
READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """Plaintext found: `length` bytes of the run called `label` at `offset` of `path` (or in the path itself, -1)."""

    path: Path
    offset: int
    label: str
    length: int

    def __str__(self) -> str:
        place = f"offset {self.offset}" if self.offset >= 0 else "its name"
        return f"{self.path}, {place}: {self.length} bytes of {self.label}"


@dataclass(slots=True)
class SearchReport:
    """What was searched and what was found."""

    files: int = 0
    searched_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def found_bytes(self) -> int:
        """Plaintext bytes found, all findings together."""
        return sum(finding.length for finding in self.findings)


class PlaintextIndex:
    """Runs to look for; see the module's text for what is guaranteed."""

    def __init__(self) -> None:
        self._words: set[int] = set()
        self._runs: list[tuple[str, bytes]] = []
        self._runs_with: dict[int, list[int]] = defaultdict(list)

    def add(self, label: str, run: bytes) -> None:
        """Look for `run` (at least 15 bytes, or ValueError); `label` is what findings call it."""
        if len(run) < MATCH_BYTES:
            raise ValueError(f"{label}: {len(run)} bytes are too few to be recognised, at least {MATCH_BYTES}")
        number = len(self._runs)
        self._runs.append((label, run))
        for offset in range(len(run) - WORD_BYTES + 1):
            piece = run[offset : offset + WORD_BYTES]
            if len(set(piece)) >= DISTINCT_BYTES_MIN:
                word = int.from_bytes(piece, "little")
                self._words.add(word)
                self._runs_with[word].append(number)

    def add_name(self, name: bytes) -> None:
        """Look for `name` as it is, in hexadecimal, and in base64 at each of its three phases."""
        text = name.decode(errors="replace")
        for encoding, run in encodings(name):
            self.add(f"name {text!r} ({encoding})", run)

    def matches(self, data: bytes | memoryview, offset: int = 0) -> Iterator[int]:
        """Offsets in `data` (whose first byte is at `offset`, a multiple of 8) of words that belong to a run."""
        whole = len(data) - len(data) % WORD_BYTES
        words = memoryview(data)[:whole].cast("Q")
        present = self._words.intersection(words)
        if present:
            yield from (offset + i * WORD_BYTES for i, word in enumerate(words) if word in present)

    def longest_match(self, around: bytes, at: int) -> tuple[str, int]:
        """The run that agrees longest with `around` about the word at index `at`: its label and the agreeing length."""
        piece = around[at : at + WORD_BYTES]
        best = ("", 0)
        for number in self._runs_with.get(int.from_bytes(piece, "little"), []):
            label, run = self._runs[number]
            start = run.find(piece)
            while start >= 0:
                length = _agreement(around, at, run, start)
                best = max(best, (label, length), key=lambda match: match[1])
                start = run.find(piece, start + 1)
        return best


def _agreement(a: bytes, i: int, b: bytes, j: int) -> int:
    """Length of the equal stretch of `a` and `b` that contains the equal words at a[i] and b[j]."""
    before = after = 0
    while before < min(i, j) and a[i - before - 1] == b[j - before - 1]:
        before += 1
    while after < min(len(a) - i, len(b) - j) and a[i + after] == b[j + after]:
        after += 1
    return before + after


def encodings(name: bytes) -> Iterator[tuple[str, bytes]]:
    """`name` in the forms in which it could leak: raw, hex, and the base64 of any text that contains it."""
    yield "raw", name
    yield "hex", name.hex().encode()
    yield "hex, upper case", name.hex().upper().encode()
    for phase in range(3):
        # first and last characters depend on what surrounds the name
        encoded = base64.b64encode(bytes(phase) + name)
        inner = encoded[4 if phase else 0 : len(encoded) - 4]
        yield f"base64, phase {phase}", inner
        if (safe := inner.translate(bytes.maketrans(b"+/", b"-_"))) != inner:
            yield f"URL-safe base64, phase {phase}", safe


def files_below(roots: Iterable[Path]) -> Iterator[Path]:
    """Every file and directory below `roots`, and the roots; symbolic links are not followed."""
    for root in roots:
        yield root
        if root.is_dir() and not root.is_symlink():
            yield from files_below(sorted(root.iterdir()))


def _search_data(index: PlaintextIndex, path: Path, report: SearchReport) -> None:
    with open(path, "rb", buffering=0) as file:
        descriptor = file.fileno()
        offset = 0
        while data := os.pread(descriptor, READ_BYTES, offset):
            # a sparse medium is mostly zeros; comparing is far cheaper than looking words up
            if data.count(0) != len(data):
                for match in index.matches(data, offset):
                    _confirm(index, descriptor, path, match, report)
            # a read cut short in the middle of a word continues at that word, so that alignment holds
            offset += len(data) if len(data) < WORD_BYTES else len(data) - len(data) % WORD_BYTES
            report.searched_bytes += len(data)


def _confirm(index: PlaintextIndex, descriptor: int, path: Path, offset: int, report: SearchReport) -> None:
    start = max(0, offset - 256)
    label, length = index.longest_match(os.pread(descriptor, 512 + WORD_BYTES, start), offset - start)
    if length >= MATCH_BYTES:
        report.findings.append(Finding(path, offset, label, length))


def search(index: PlaintextIndex, roots: Iterable[Path]) -> SearchReport:
    """Search contents and names of everything below `roots`; OSError if something there vanishes meanwhile."""
    report = SearchReport()
    for path in files_below(roots):
        name = os.fsencode(path.name)
        for shift in index.matches(name):
            label, length = index.longest_match(name, shift)
            if length >= MATCH_BYTES:
                report.findings.append(Finding(path, -1, label, length))
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            report.files += 1
            _search_data(index, path, report)
    return report

"""Damage to a pool at rest: flipped bits, zeros, swaps, older versions; old catalogs with newer media and the reverse.

What must hold: no read ever gives bytes that were not last stored under that name, a damaged record costs its own file
only (none with replicas), and key and pool files survive in their second copy. Damage of the catalog's database is in
`catalog_damage`: what is seen is as it was, and what is gone is found.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Final

from kvfs import limits
from kvfs.errors import KvfsError
from kvfsd.media.memory import MemoryMedium
from kvfsd.ondisk.record import record_bytes
from kvfsd.pool.pool import Pool
from kvfsd.service.service import Service
from tests.sim import catalog_damage
from tests.sim.catalog_damage import flipped
from tests.sim.checker import Allowed, BrokenPromiseError, Verdict, check_client, put
from tests.sim.crashes import CrashState, MediaHistory, points
from tests.sim.model import Path, State
from tests.sim.observer import Observed, observe
from tests.sim.scenarios import Recorded
from tests.sim.trace import MediaWrite
from tests.sim.world import OPTIONS, Ground

_UNIT: Final = limits.RECORD_ALIGN_BYTES

Extent = tuple[str, int, int]
"""Medium, offset, length."""


@dataclass(slots=True)
class Settled:
    """The recorded run's end, everything flushed: its state, and where each file's records lie."""

    state: CrashState
    owners: dict[tuple[int, Path], list[list[Extent]]] = field(default_factory=dict)
    """Of each client's files: for each block, its replicas."""


@dataclass(slots=True)
class Injury:
    """What was damaged."""

    text: str
    extents: list[Extent] = field(default_factory=list)
    catalog: bool = False
    outcome: str = ""


class Damager:
    """Damage to the end of one recorded run. Case `number` is of kind `KINDS[number % len]`, the rest is the seed."""

    def __init__(self, recorded: Recorded, seed: int, kinds: tuple[str, ...] = ()) -> None:
        self.seed = seed
        self._kind = ""
        self._recorded = recorded
        self._media = MediaHistory(recorded.trace, recorded.start)
        self._settled: Settled | None = None
        self.kinds: list[tuple[str, Callable[[CrashState, random.Random], Awaitable[Injury]]]] = [
            ("media_flip", self._media_flip),
            ("media_zero", self._media_zero),
            ("media_swap", self._media_swap),
            ("record_swap", self._record_swap),
            ("record_over", self._record_over),
            ("record_cut", self._record_cut),
            ("replay", self._replay),
            ("old_media", self._old_media),
            ("old_catalog", self._old_catalog),
            ("catalog_flip", self._catalog),
            ("catalog_cut", self._catalog),
            ("catalog_row", self._catalog),
            ("key_file", self._key_file),
            ("pool_file", self._pool_file),
        ]
        if kinds:
            self.kinds = [kind for kind in self.kinds if kind[0] in kinds]

    async def damage(self, number: int) -> Verdict:
        """One damage, one look."""
        settled = self._settled = self._settled or await self._settle()
        place = self._recorded.place
        name, inflict = self.kinds[number % len(self.kinds)]
        self._kind = name
        choice = random.Random(self.seed * 104_729 + number)
        state = CrashState(
            settled.state.database, settled.state.log, {n: m.clone() for n, m in settled.state.media.items()}
        )
        with _files_put_back(place):
            injury = await inflict(state, choice)
            put(place, state)
            try:
                verdict = await self._look(settled, injury, name)
            except BrokenPromiseError as error:
                raise BrokenPromiseError(f"{name}: {injury.text}: {error}") from error
        return verdict

    # --- looking ---------------------------------------------------------------------------------------

    async def _settle(self) -> Settled:
        trace, place = self._recorded.trace, self._recorded.place
        last = points(trace)[-1]
        epoch = trace.epochs[last.epoch]
        put(place, CrashState(epoch.database, epoch.log[: last.wal_bytes], await self._media.at(last.events)))
        pool = await place.open()
        service = Service(pool, OPTIONS)
        await service.metadata_log.drain()
        seen = await observe(service, self._recorded.tenants)
        settled = Settled(CrashState(b"", b"", {}), _owners(pool, self._recorded.tenants, seen))
        await pool.aclose()
        settled.state = CrashState(place.catalog_path.read_bytes(), b"", place.driver.contents)
        return settled

    async def _look(self, settled: Settled, injury: Injury, name: str) -> Verdict:
        place, tenants = self._recorded.place, self._recorded.tenants
        verdict = Verdict()
        try:
            async with place.opened() as pool:
                service = Service(pool, OPTIONS)
                seen = await observe(service, tenants)
                if name in catalog_damage.KINDS:
                    verdict.absent, outcome = catalog_damage.check_all(service, seen, self._recorded.trace.histories)
                    verdict.outcome = f"{name} {outcome}"
        except KvfsError as error:
            if not (injury.catalog or name.startswith("old_")):
                raise BrokenPromiseError(f"the pool does not open: {error!r}") from error
            verdict.outcome = f"{name} refused"
            return verdict
        verdict.seen = seen
        if name in catalog_damage.KINDS:
            return verdict
        for number, observed in enumerate(seen):
            self._check(number, observed, settled, injury, name, verdict)
        verdict.outcome = f"{name} {'cost a file' if verdict.absent else 'harmless'}"
        return verdict

    def _check(
        self, number: int, observed: Observed, settled: Settled, injury: Injury, name: str, verdict: Verdict
    ) -> None:
        history = self._recorded.trace.histories[number]
        if injury.catalog or name.startswith("old_"):
            wrong = _wrong_bytes(number, observed, history)
            if wrong:
                raise BrokenPromiseError(wrong)
            verdict.absent += sum(seen.content is None for seen in observed.tree.values())
            return
        struck = {
            path
            for (owner, path), blocks in settled.owners.items()
            if owner == number and any(all(_overlaps(at, injury.extents) for at in block) for block in blocks)
        }
        nodes = history[-1].nodes
        safe = {(node.ident, node.version) for path, node in nodes.items() if path not in struck}
        verdict.absent += check_client(number, observed, Allowed([history[-1]], history, safe))

    # --- media -----------------------------------------------------------------------------------------

    async def _media_flip(self, state: CrashState, choice: random.Random) -> Injury:
        name, offset = _used_unit(state, choice)
        at = choice.randrange(_UNIT)
        await _change(state.media[name], offset, lambda unit: flipped(unit, at, choice.randrange(8)))
        return Injury(f"{name}: a bit at {offset + at}", [(name, offset, _UNIT)])

    async def _media_zero(self, state: CrashState, choice: random.Random) -> Injury:
        name, offset = _used_unit(state, choice)
        await _change(state.media[name], offset, lambda unit: bytes(len(unit)))
        return Injury(f"{name}: zeros at {offset}", [(name, offset, _UNIT)])

    async def _media_swap(self, state: CrashState, choice: random.Random) -> Injury:
        (one, at), (other, there) = _used_unit(state, choice), _used_unit(state, choice)
        if at < limits.MIB or there < limits.MIB:  # one superblock only is a case of its own
            return Injury("nothing")
        await _swap(state, (one, at, _UNIT), (other, there, _UNIT))
        return Injury(f"{one}:{at} and {other}:{there} swapped", [(one, at, _UNIT), (other, there, _UNIT)])

    async def _record_swap(self, state: CrashState, choice: random.Random) -> Injury:
        """Two whole records of two files, of any tenants, change places."""
        records = self._records()
        if len(records) < 2:
            return Injury("nothing")
        one, other = choice.sample(records, 2)
        same = [extent for extent in records if extent[2] == one[2] and extent != one]
        other = choice.choice(same) if same and choice.random() < 0.7 else other
        length = min(one[2], other[2])
        await _swap(state, (*one[:2], length), (*other[:2], length))
        return Injury(f"records {one} and {other} swapped", [one, other])

    async def _record_over(self, state: CrashState, choice: random.Random) -> Injury:
        """A record lies where another one should be, too."""
        records = self._records()
        if len(records) < 2:
            return Injury("nothing")
        one, other = choice.sample(records, 2)
        length = min(one[2], other[2])
        await state.media[other[0]].write(other[1], memoryview(await _read(state, (*one[:2], length))))
        return Injury(f"record {one} also at {other}", [other])

    async def _record_cut(self, state: CrashState, choice: random.Random) -> Injury:
        """The end of a record is gone."""
        records = self._records()
        if not records:
            return Injury("nothing")
        name, offset, length = choice.choice(records)
        cut = choice.randrange(length // _UNIT) * _UNIT
        await state.media[name].write(offset + cut, memoryview(bytes(length - cut)))
        return Injury(f"record at {name}:{offset} ends at {cut}", [(name, offset, length)])

    async def _replay(self, state: CrashState, choice: random.Random) -> Injury:
        """An older record where a newer one is: of the same object, another object, another tenant."""
        writes = [event.happening for event in self._recorded.trace.events if isinstance(event.happening, MediaWrite)]
        records = self._records()
        old = [write for write in writes if write.data[:4] == b"KVFR"]
        if not old or not records:
            return Injury("nothing")
        name, offset, length = choice.choice(records)
        data = choice.choice(old).data[:length]
        await state.media[name].write(offset, memoryview(data))
        return Injury(f"an older record at {name}:{offset}", [(name, offset, length)])

    async def _old_media(self, state: CrashState, choice: random.Random) -> Injury:
        """The media of an earlier day with today's catalog."""
        state.media = await self._media.at(choice.randrange(len(self._recorded.trace.events)))
        return Injury("older media")

    # --- catalog ---------------------------------------------------------------------------------------

    async def _old_catalog(self, state: CrashState, choice: random.Random) -> Injury:
        """The catalog of an earlier day with today's media."""
        point = choice.choice(points(self._recorded.trace))
        epoch = self._recorded.trace.epochs[point.epoch]
        state.database, state.log = epoch.database, epoch.log[: point.wal_bytes]
        return Injury(f"catalog of {point}", catalog=True)

    async def _catalog(self, state: CrashState, choice: random.Random) -> Injury:
        state.database, text = catalog_damage.STRIKES[self._kind](state.database, choice)
        return Injury(text, catalog=True)

    # --- small files -----------------------------------------------------------------------------------

    async def _key_file(self, _: CrashState, choice: random.Random) -> Injury:
        return _spoil(choice.choice(sorted((self._recorded.place.root / "keys").iterdir())), choice)

    async def _pool_file(self, _: CrashState, choice: random.Random) -> Injury:
        return _spoil(self._recorded.place.pool_directory / choice.choice(("pool.json", "pool.json.bak")), choice)

    def _records(self) -> list[Extent]:
        assert self._settled is not None
        return sorted({at for blocks in self._settled.owners.values() for block in blocks for at in block})


def _wrong_bytes(number: int, observed: Observed, history: list[State]) -> str:
    """A file that is not what was once stored under its name, whole; empty if there is none."""
    for path, seen in observed.tree.items():
        known = [state.nodes[path].content for state in history if path in state.nodes]
        if seen.content is not None and seen.content not in known:
            return f"client {number}: {path}: {len(seen.content)} bytes that were never stored there"
    return ""


def _owners(pool: Pool, tenants: tuple[str, ...], seen: list[Observed]) -> dict[tuple[int, Path], list[list[Extent]]]:
    found: dict[tuple[int, Path], list[list[Extent]]] = {}
    for number, observed in enumerate(seen):
        tenant = pool.tenants.show(tenants[number]).number
        for path, ino in observed.inos.items():
            rows = pool.catalog.blocks.locate_range(tenant, ino, 0, 1 << 20)
            found[number, path] = [
                [
                    (
                        pool.media[at.medium].medium.name,
                        pool.media[at.medium].superblock.segment_offset(at.segment) + at.offset * _UNIT,
                        record_bytes(row.length),
                    )
                    for at in row.locations
                ]
                for row in rows
            ]
    return found


def _overlaps(extent: Extent, others: list[Extent]) -> bool:
    name, offset, length = extent
    return any(other == name and at < offset + length and offset < at + size for other, at, size in others)


def _used_unit(state: CrashState, choice: random.Random) -> tuple[str, int]:
    name = choice.choice(sorted(state.media))
    return name, choice.choice(state.media[name].stored_extents)


async def _change(medium: MemoryMedium, offset: int, change: Callable[[bytes], bytes]) -> None:
    unit = bytearray(_UNIT)
    await medium.read_into(offset, memoryview(unit))
    await medium.write(offset, memoryview(change(bytes(unit))))


async def _read(state: CrashState, extent: Extent) -> bytes:
    data = bytearray(extent[2])
    await state.media[extent[0]].read_into(extent[1], memoryview(data))
    return bytes(data)


async def _swap(state: CrashState, one: Extent, other: Extent) -> None:
    first, second = await _read(state, one), await _read(state, other)
    await state.media[one[0]].write(one[1], memoryview(second))
    await state.media[other[0]].write(other[1], memoryview(first))


@contextlib.contextmanager
def _files_put_back(place: Ground) -> Iterator[None]:
    """Key and pool files are afterwards what they were before."""
    kept = [*(place.root / "keys").iterdir(), *place.pool_directory.glob("pool.json*")]
    contents = [(path, path.read_bytes()) for path in kept]
    try:
        yield
    finally:
        for path, data in contents:
            path.write_bytes(data)


def _spoil(path: FilePath, choice: random.Random) -> Injury:
    """Flip a bit of a file, cut it, empty it, or remove it."""
    data, how = path.read_bytes(), choice.choice(("flip", "cut", "empty", "remove"))
    if how == "remove":
        path.unlink()
    elif how == "flip":
        path.write_bytes(flipped(data, choice.randrange(len(data)), choice.randrange(8)))
    else:
        path.write_bytes(data[: choice.randrange(len(data))] if how == "cut" else b"")
    return Injury(f"{path.name}: {how}")

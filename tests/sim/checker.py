"""Opens what a crash or damage left, and holds it against what was acknowledged (docs/DURABILITY.md).

Every broken rule is a `BrokenPromiseError`. One case = one state: opened twice, checked in full, collected, rebuilt.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvfs_tools.media_records import MediaSource
from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.check import check
from kvfsd.catalog.schema import SegmentState
from kvfsd.crypto.kek import RawKeyFile
from kvfsd.crypto.keyfile import SlotKeyFile
from kvfsd.metalog import powerloss
from kvfsd.metalog.rebuild import RebuildReport, rebuild
from kvfsd.pool.pool import Pool
from kvfsd.pool.tenants import TenantRegistry
from kvfsd.service.service import Service
from tests.sim.crashes import CrashState
from tests.sim.model import Kind, Node, Path, Seen, State
from tests.sim.observer import Observed, observe
from tests.sim.world import OPTIONS, Ground, remove_catalog


class BrokenPromiseError(AssertionError):
    """A promise that was not kept."""


@dataclass(slots=True)
class Allowed:
    """What one client may find: one of `states`, as a whole.

    `safe`: content that must be readable, by (identity, version) of its node; None = all of it. `history`: what was
    acknowledged so far, oldest first; a rebuild may give an older state, as far as the metadata log was behind.
    `started`: whether the client's directory must be there. `names_may_go`: a file that is not safe may be gone with
    its names.
    """

    states: list[State]
    history: list[State]
    safe: set[tuple[int, int]] | None = None
    started: bool = True
    names_may_go: bool = False

    def is_safe(self, node: Node) -> bool:
        """Whether the content of a node must be there."""
        return self.safe is None or (node.ident, node.version) in self.safe


def versions(state: State) -> set[tuple[int, int]]:
    """All content of a state, as `Allowed.safe` has it."""
    return {(node.ident, node.version) for node in state.nodes.values()}


@dataclass(slots=True)
class Verdict:
    """What was found in a case, for the counts of a run."""

    absent: int = 0
    """Files whose content a power loss took."""
    rebuilt: bool = False
    outcome: str = ""
    """What damage came to."""
    seen: list[Observed] = field(default_factory=list)


async def examine(
    place: Ground, state: CrashState, tenants: Sequence[str], allowed: Sequence[Allowed], *, with_rebuild: bool = True
) -> Verdict:
    """Open the state twice and check all that must hold."""
    put(place, state)
    verdict = Verdict()
    async with place.opened() as pool:
        if with_rebuild and not state.lost and all(one.started for one in allowed):
            await _check_rebuilt_as_it_is(place, pool, tenants, allowed)
        first = await _look(pool, tenants)
    for number, observed in enumerate(first):
        verdict.absent += check_client(number, observed, allowed[number])
    async with place.opened() as pool:
        service = await _service(pool)
        verdict.seen = await observe(service, tenants)
        _check_same(first, verdict.seen)
        _check_accounting(pool, tenants, verdict.seen)
        await _check_space(service)
        if with_rebuild:
            await powerloss.repair(service.catalog, service.store, service.metadata_log)
            await _check_rebuilt(place, pool, tenants, verdict.seen)
        verdict.rebuilt = with_rebuild
        _check_catalog(pool, "after collecting")
    return verdict


def put(place: Ground, state: CrashState) -> None:
    """Make the state the pool's."""
    place.place_catalog(state.database, state.log)
    place.driver.contents = {name: medium.clone() for name, medium in state.media.items()}


async def _look(pool: Pool, tenants: Sequence[str]) -> list[Observed]:
    """What a pool shows right after it was opened, before anything else is done."""
    _check_catalog(pool, "after recovery")
    service = await _service(pool)
    return await observe(service, tenants)


async def _service(pool: Pool) -> Service:
    service = Service(pool, OPTIONS)
    await service.metadata_log.drain()
    return service


def _check_catalog(pool: Pool, when: str) -> None:
    problems = check(pool.catalog.database)
    if problems:
        raise BrokenPromiseError(f"check {when}: {problems}")


# --- content -------------------------------------------------------------------------------------------


def check_client(number: int, observed: Observed, allowed: Allowed) -> int:
    """The client finds one of the allowed states -> how many files of it are absent."""
    if observed.errors:
        raise BrokenPromiseError(f"client {number}: {observed.errors[0]}")
    if observed.missing:
        if allowed.started:
            raise BrokenPromiseError(f"client {number}: its directory is gone")
        return 0
    best: tuple[int, str] | None = None
    for state in allowed.states:
        faults, absent = _faults(observed.tree, state, allowed)
        if not faults:
            return absent
        best = min(best or (len(faults), faults[0]), (len(faults), faults[0]))
    assert best is not None
    raise BrokenPromiseError(
        f"client {number}: none of {len(allowed.states)} states fits; best with {best[0]} faults: {best[1]}"
    )


def _faults(tree: Mapping[Path, Seen], state: State, allowed: Allowed) -> tuple[list[str], int]:
    """Why the tree is not that state; how many of its files are absent."""
    want = state.tree()
    faults = [f"{path}: should not be there" for path in sorted(tree.keys() - want.keys())]
    absent = 0
    for path, wanted in want.items():
        seen = tree.get(path)
        may_go = wanted.kind is Kind.FILE and not allowed.is_safe(state.nodes[path])
        if seen is None and not (may_go and allowed.names_may_go):
            faults.append(f"{path}: missing")
        elif seen is None or (seen.content is None and may_go):
            absent += 1
        elif seen.content is None:
            faults.append(f"{path}: cannot be read")
        elif seen.content != wanted.content:
            faults.append(f"{path}: wrong bytes: {_difference(wanted.content or b'', seen.content)}")
        if seen is not None and seen.metadata() != wanted.metadata():
            faults.append(f"{path}: want {wanted.metadata()}, have {seen.metadata()}")
    return faults, absent


def _difference(want: bytes, have: bytes) -> str:
    at = next((index for index, pair in enumerate(zip(want, have, strict=False)) if pair[0] != pair[1]), None)
    return f"want {len(want)} bytes, have {len(have)}, first difference at {at}"


def _check_same(first: list[Observed], second: list[Observed]) -> None:
    """Opened again there is the same, but that what could not be read may be gone."""
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        lost = {path for path, seen in one.tree.items() if seen.content is None}
        hidden = one.tree.keys() - other.tree.keys()
        if not hidden <= lost or other.tree.keys() - one.tree.keys():
            raise BrokenPromiseError(f"client {number}: opened again, other names: {sorted(hidden)}")
        for path, seen in other.tree.items():
            if seen != one.tree[path] and path not in lost and seen.content != one.tree[path].content:
                raise BrokenPromiseError(f"client {number}: opened again, {path} is another")


# --- accounting and space --------------------------------------------------------------------------------


def _check_accounting(pool: Pool, tenants: Sequence[str], seen: list[Observed]) -> None:
    """What is charged is what can be seen, and what is in quarantine."""
    for name in sorted(set(tenants)):
        tenant = pool.tenants.show(name)
        objects: dict[int, int] = {}
        for owner, observed in zip(tenants, seen, strict=True):
            if owner == name:
                objects |= observed.stored_bytes
        for row in pool.catalog.quarantine.all(tenant.number):
            objects[row.ino] = pool.catalog.inodes.find(tenant.number, row.ino).stored_bytes  # type: ignore[union-attr]
        want = (sum(objects.values()), len(objects))
        if (tenant.used_bytes, tenant.used_objects) != want:
            raise BrokenPromiseError(
                f"tenant {name}: charged {(tenant.used_bytes, tenant.used_objects)}, there is {want}"
            )


async def _check_space(service: Service) -> None:
    """After a collection nothing is held without a reason."""
    await service.collector.collect()
    await service.store.flush()
    for row in service.catalog.segments.all():
        if not row.live_bytes and row.state == SegmentState.CLOSED:
            raise BrokenPromiseError(f"segment {row.medium}:{row.segment} is held and empty")
    for space in service.store.spaces.values():
        rows = {row.segment for row in service.catalog.segments.all() if row.medium == space.index}
        if rows != set(space.in_use) or space.free_segments + len(rows) != space.superblock.segment_count:
            raise BrokenPromiseError(
                f"medium {space.index}: catalog holds {sorted(rows)}, the store {sorted(space.in_use)}"
            )


# --- rebuild -------------------------------------------------------------------------------------------


async def rebuilt(place: Ground, pool: Pool, tenants: Sequence[str]) -> tuple[list[Observed], RebuildReport]:
    """What a catalog made from the media alone shows; the pool's own is left as it is."""
    path = place.root / "rebuilt.db"
    remove_catalog(path)
    key_file = SlotKeyFile(place.root / "keys", pool.uuid, place.ports.randomness)
    slot_keys = key_file.load(RawKeyFile(place.root / "kek"), repair=False).candidates
    source = MediaSource(pool.uuid, pool.media, slot_keys, place.ports)
    catalog = Catalog.create(path, pool.uuid)
    try:
        report = await rebuild(catalog, source, source.unlock)
        other = copy.copy(pool)
        other.catalog = catalog
        other.tenants = TenantRegistry(catalog, pool.ring, place.ports.clock)
        return await observe(Service(other, OPTIONS), tenants), report
    finally:
        catalog.database.abandon()


async def _check_rebuilt(place: Ground, pool: Pool, tenants: Sequence[str], seen: list[Observed]) -> None:
    """Rebuilt from media whose log is drained, everything is there and nothing comes back."""
    found, report = await rebuilt(place, pool, tenants)
    if report.problems or report.log_gaps:
        raise BrokenPromiseError(f"rebuilt after a drain: problems {report.problems}, gaps {report.log_gaps}")
    for number, (want, have) in enumerate(zip(seen, found, strict=True)):
        if want.missing != have.missing:
            raise BrokenPromiseError(f"rebuilt after a drain: client {number}: directory missing: {have.missing}")
        hidden = {
            row.ino for tenant in pool.catalog.tenants.all() for row in pool.catalog.quarantine.all(tenant.tenant)
        }
        for path in want.tree.keys() | have.tree.keys():
            # A record that is bad where the catalog had moved it may still lie where it was.
            if want.tree.get(path) != have.tree.get(path) and have.inos.get(path) not in hidden:
                raise BrokenPromiseError(f"rebuilt after a drain: client {number}: {path}: {_brief(want, have, path)}")


def _brief(want: Observed, have: Observed, path: Path) -> str:
    sides = [
        (one.tree[path].metadata(), len(one.tree[path].content or b"")) if path in one.tree else None
        for one in (want, have)
    ]
    return f"want {sides[0]}, have {sides[1]}"


async def _check_rebuilt_as_it_is(
    place: Ground, pool: Pool, tenants: Sequence[str], allowed: Sequence[Allowed]
) -> None:
    """Rebuilt from the media of a killed process, whatever its log had reached is there, as it once was."""
    row = pool.catalog.database.one("SELECT min(sequence) FROM outbox")
    logged = row[0] - 1 if row and row[0] is not None else pool.catalog.database.last_sequence
    found, report = await rebuilt(place, pool, tenants)
    if report.problems or report.log_gaps:
        raise BrokenPromiseError(f"rebuilt: problems {report.problems}, gaps {report.log_gaps}")
    for number, observed in enumerate(found):
        history = allowed[number].history
        oldest = max((index for index, state in enumerate(history) if state.sequence <= logged), default=-1)
        states = history[max(0, oldest) :] + allowed[number].states
        # The old content of a file that was changed since then may have made way, and its new one is not logged yet.
        started = allowed[number].started and oldest >= 0
        check_client(number, observed, Allowed(states, history, versions(history[-1]), started, names_may_go=True))

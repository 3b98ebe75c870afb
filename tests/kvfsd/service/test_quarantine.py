"""Bad records become misses; an unlink that follows a fault can be undone; what is kept ends in time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvfs import limits
from kvfs.commands import (
    EntryGone,
    GetAttributes,
    Link,
    ObjectChanged,
    OpenObject,
    ReadDirectory,
    ReleaseUnlinked,
    Rename,
    Unlink,
)
from kvfs.errors import BadRecordError, ExistsError, MediumUnavailableError, NotFoundError
from kvfsd.catalog.check import check
from kvfsd.service.inprocess import InProcessQueuePair
from kvfsd.service.quarantine import GRACE_MS, KEEP_MS, SUSPECTS_MAX
from kvfsd.service.service import Service
from tests.kvfsd.serving import OTHER, TENANT, Host, Layout, SteppingClock, make_pool, ports, reopen_pool, serving


class Ward:
    """A service, a host, and a clock that the test moves."""

    def __init__(self, service: Service, clock: SteppingClock) -> None:
        self.service = service
        self.clock = clock
        self.session = service.attach(TENANT)
        self.host = Host(InProcessQueuePair(self.session))
        self.counters = service.metrics.counters

    async def damage(self, ino: int, block: int = 0) -> None:
        """Flip a stored bit of a block on every replica."""
        row = self.service.catalog.blocks.locate(self.session.tenant, ino, block)
        assert row is not None
        for place in row.locations:
            space = self.service.store.spaces[place.medium]
            at = space.byte_offset(place, 4096)
            buffer = bytearray(4096)
            await space.medium.read_into(at, memoryview(buffer))
            buffer[130] ^= 4
            await space.medium.write(at, memoryview(buffer))

    def fault(self, ino: int) -> None:
        self.service.quarantine.note_fault(self.session.tenant, ino)

    def used(self) -> tuple[int, int]:
        row = self.service.pool.tenants.show(TENANT)
        return row.used_bytes, row.used_objects


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    clock = SteppingClock()
    pool = await make_pool(tmp_path, Layout(quota_bytes=10_000), the_ports=ports(clock))
    async with serving(pool) as service:
        yield Ward(service, clock)


async def test_a_record_that_is_bad_everywhere_makes_its_file_a_miss(ward: Ward) -> None:
    host = ward.host
    attributes = await host.store(b"file", b"data")
    good = await host.store(b"good", b"fine")
    await ward.damage(attributes.ino)
    with pytest.raises(BadRecordError):
        await host.load(b"file")
    for command in (GetAttributes(attributes.ino), OpenObject(attributes.ino)):
        with pytest.raises(NotFoundError):
            await host.submit(command)
    with pytest.raises(NotFoundError):
        await host.lookup(b"file")
    listing = (await host.submit(ReadDirectory(1, 0, 10))).result
    assert [entry.name for entry in listing.entries] == [b"good"]
    assert host.pair.take_events() == [ObjectChanged(attributes.ino)]
    await host.pair.wait_event()
    assert host.pair.take_events() == [EntryGone(1, b"file")]
    assert ward.counters.quarantined_objects == 1
    assert await host.read_block(good.ino) == b"fine", "one damaged block costs that block's file only"


async def test_the_name_of_a_bad_file_is_free(ward: Ward) -> None:
    host = ward.host
    attributes = await host.store(b"file", b"data")
    await ward.damage(attributes.ino)
    with pytest.raises(BadRecordError):
        await host.load(b"file")
    await host.store(b"file", b"stored anew")
    assert await host.load(b"file") == b"stored anew"
    assert ward.used() == (11, 1), "and what was bad is gone with it"


async def test_a_second_read_of_a_bad_record_is_an_error_again_and_counts_once(ward: Ward) -> None:
    attributes = await ward.host.store(b"file", b"data")
    await ward.damage(attributes.ino)
    for _ in range(2):
        with pytest.raises(BadRecordError):
            await ward.host.read_block(attributes.ino)
    assert ward.counters.quarantined_objects == 1


async def test_a_hidden_file_can_be_restored(ward: Ward) -> None:
    attributes = await ward.host.store(b"file", b"data")
    await ward.damage(attributes.ino)
    with pytest.raises(BadRecordError):
        await ward.host.read_block(attributes.ino)
    await ward.damage(attributes.ino)  # the same bit: good again
    ward.service.quarantine.restore(ward.session.tenant, attributes.ino)
    assert await ward.host.load(b"file") == b"data"


async def test_bad_staged_data_hides_nothing(ward: Ward) -> None:
    host = ward.host
    attributes = await host.store(b"file", b"committed")
    await host.write_block(attributes.ino, 0, b"staged")
    row = ward.service.catalog.blocks.locate_staged(ward.session.attachment, ward.session.tenant, attributes.ino, 0)
    assert row is not None
    space = ward.service.store.spaces[row.locations[0].medium]
    await space.medium.write(space.byte_offset(row.locations[0], 4096), memoryview(bytes(4096)))
    with pytest.raises(BadRecordError):
        await host.read_block(attributes.ino, staged=True)
    assert await host.load(b"file") == b"committed"


# --- unlink after a fault ------------------------------------------------------------------------------


async def test_an_unlink_after_a_fault_is_undoable(ward: Ward) -> None:
    host = ward.host
    attributes = await host.store(b"file", b"data")
    ward.fault(attributes.ino)
    removed = (await host.submit(Unlink(1, b"file", False))).result
    assert (removed.ino, removed.nlink) == (attributes.ino, 0)
    with pytest.raises(NotFoundError):
        await host.lookup(b"file")
    assert ward.counters.quarantined_unlinks == 1
    ward.service.quarantine.restore(ward.session.tenant, attributes.ino)
    assert await host.load(b"file") == b"data"
    with pytest.raises(NotFoundError):
        ward.service.quarantine.restore(ward.session.tenant, attributes.ino)
    await host.submit(Unlink(1, b"file", False))
    assert ward.used() == (0, 0), "restored: no fault is remembered"


async def test_an_unlink_without_a_fault_or_after_the_grace_period_is_final(ward: Ward) -> None:
    host = ward.host
    for wait_ms, kept in ((None, 0), (GRACE_MS - 1, 1), (GRACE_MS + 1, 1)):
        attributes = await host.store(b"file", b"data")
        if wait_ms is not None:
            ward.fault(attributes.ino)
            ward.clock.advance_ms(wait_ms)
        await host.submit(Unlink(1, b"file", False))
        assert ward.counters.quarantined_unlinks == kept


async def test_a_medium_that_is_away_is_a_fault(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ward.host
    attributes = await host.store(b"file", b"data")

    async def away(*_: object) -> None:
        raise MediumUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(ward.service.store), "read_into", away)
        with pytest.raises(MediumUnavailableError):
            await host.load(b"file")
    assert (await host.lookup(b"file")).ino == attributes.ino, "a passing fault hides nothing"
    await host.submit(Unlink(1, b"file", False))
    ward.service.quarantine.restore(ward.session.tenant, attributes.ino)
    assert await host.load(b"file") == b"data"


async def test_a_restore_does_not_take_a_name_that_was_stored_anew(ward: Ward) -> None:
    host = ward.host
    attributes = await host.store(b"file", b"old")
    ward.fault(attributes.ino)
    await host.submit(Unlink(1, b"file", False))
    await host.store(b"file", b"new")
    with pytest.raises(ExistsError):
        ward.service.quarantine.restore(ward.session.tenant, attributes.ino)
    assert await host.load(b"file") == b"new"
    await host.submit(Rename(1, b"file", 1, b"aside", 0, False))
    ward.service.quarantine.restore(ward.session.tenant, attributes.ino)
    assert await host.load(b"file") == b"old"


async def test_a_name_among_others_is_just_removed(ward: Ward) -> None:
    host = ward.host
    attributes = await host.store(b"file", b"data")
    await host.submit(Link(attributes.ino, 1, b"second"))
    ward.fault(attributes.ino)
    await host.submit(Unlink(1, b"file", False))
    assert ward.counters.quarantined_unlinks == 0
    assert await host.load(b"second") == b"data"


async def test_an_open_file_in_quarantine_can_be_read_and_restored(ward: Ward) -> None:
    host = ward.host
    attributes = await host.store(b"file", b"data")
    ward.fault(attributes.ino)
    await host.submit(Unlink(1, b"file", True))
    assert await host.read_block(attributes.ino) == b"data"
    await host.submit(ReleaseUnlinked(attributes.ino))
    ward.service.quarantine.restore(ward.session.tenant, attributes.ino)
    assert await host.load(b"file") == b"data"


async def test_suspects_are_bounded(ward: Ward) -> None:
    for ino in range(2, SUSPECTS_MAX + 10):
        ward.fault(ino)
    tenant = ward.session.tenant
    assert not ward.service.quarantine.is_suspect(tenant, 2)
    assert ward.service.quarantine.is_suspect(tenant, SUSPECTS_MAX + 9)


# --- the end of it -------------------------------------------------------------------------------------


async def test_what_is_kept_is_purged_after_its_time(ward: Ward) -> None:
    host = ward.host
    attributes = await host.store(b"file", b"data")
    ward.fault(attributes.ino)
    await host.submit(Unlink(1, b"file", False))
    ward.clock.advance_ms(KEEP_MS - 1000)
    assert not ward.service.quarantine.purge()
    assert ward.used() == (4, 1)
    ward.clock.advance_ms(2000)
    ward.service.quarantine.purge()
    assert ward.used() == (0, 0)
    assert ward.counters.purged_objects == 1
    with pytest.raises(NotFoundError):
        ward.service.quarantine.restore(ward.session.tenant, attributes.ino)


async def test_what_is_hidden_is_purged_after_its_time_with_all_its_names(ward: Ward) -> None:
    host, hidden = ward.host, ward.service.hidden
    attributes = await host.store(b"file", b"data")
    await host.submit(Link(attributes.ino, 1, b"second"))
    kept = await host.store(b"kept", b"stays")
    await ward.damage(attributes.ino)
    with pytest.raises(BadRecordError):
        await host.read_block(attributes.ino)
    assert await hidden.purge(ward.service.quarantine.expiry_ns()) == 0
    ward.clock.advance_ms(KEEP_MS + 1)
    await host.store(b"second", b"anew")
    assert await hidden.purge(ward.service.quarantine.expiry_ns()) == 1
    assert ward.used() == (9, 2)
    assert await host.load(b"second") == b"anew"
    assert await host.read_block(kept.ino) == b"stays"
    assert check(ward.service.catalog.database) == []


async def test_what_is_kept_never_costs_its_tenant_a_write(ward: Ward) -> None:
    host = ward.host
    attributes = await host.store(b"file", bytes(9_000))
    ward.fault(attributes.ino)
    await host.submit(Unlink(1, b"file", False))
    await host.store(b"other", bytes(9_000))
    assert ward.used() == (9_000, 1)


async def test_one_tenants_need_does_not_empty_anothers_quarantine(ward: Ward) -> None:
    other = Host(InProcessQueuePair(ward.service.attach(OTHER)))
    attributes = await other.store(b"file", b"theirs")
    tenant = other.pair._session.tenant
    ward.service.quarantine.note_fault(tenant, attributes.ino)
    await other.submit(Unlink(1, b"file", False))
    assert not ward.service.quarantine.make_room(ward.session.tenant)
    ward.service.quarantine.restore(tenant, attributes.ino)
    assert await other.load(b"file") == b"theirs"
    assert ward.service.quarantine.make_room() is False


async def test_quarantine_survives_a_reopening(tmp_path: Path) -> None:
    clock = SteppingClock()
    pool = await make_pool(tmp_path, the_ports=ports(clock))
    async with serving(pool) as service:
        ward = Ward(service, clock)
        attributes = await ward.host.store(b"file", bytes(limits.BLOCK_BYTES + 1))
        ward.fault(attributes.ino)
        await ward.host.submit(Unlink(1, b"file", False))
    async with serving(await reopen_pool(tmp_path, the_ports=ports(clock))) as service:
        ward = Ward(service, clock)
        with pytest.raises(NotFoundError):
            await ward.host.lookup(b"file")
        service.quarantine.restore(ward.session.tenant, attributes.ino)
        assert await ward.host.load(b"file") == bytes(limits.BLOCK_BYTES + 1)

"""SegmentStore and collector over the real catalog instead of the fake of the other tests."""

import pytest
from segment_fakes import opened

from kvfs import limits
from kvfsd.catalog import Catalog
from kvfsd.ondisk.record import record_bytes
from kvfsd.segments.gc import SegmentCollector
from kvfsd.segments.store import SegmentStore
from tests.kvfsd.catalog.world import made_catalog
from tests.kvfsd.segments.test_gc import Pool


class CatalogPool(Pool):
    """As `Pool`; blocks are staged rows of one attachment."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.real = catalog
        self.store = SegmentStore([opened(0)], catalog.segments, catalog.transaction, self.barrier)
        self.collector = SegmentCollector(
            self.store,
            catalog.segments,
            catalog.blocks,
            catalog.transaction,
            lambda placed, location, error: self.bad.append((placed.ino, location, str(error))),
        )
        self.catalog.put_block = self.stage  # type: ignore[method-assign]

    async def barrier(self) -> None:
        self.real.database.sync_call()()

    def stage(self, tenant, ino, row) -> None:
        with self.real.transaction():
            self.real.blocks.stage(1, tenant, ino, row)

    def drop(self, ino: int, tenant: int = 1) -> None:
        with self.real.transaction():
            self.real.blocks.drop_staged(1, tenant, ino, 0)
        del self.expected[tenant, ino]

    def locations(self, ino: int, tenant: int = 1):
        return self.real.blocks.locate_staged(1, tenant, ino, 0).locations


@pytest.fixture
def catalog(tmp_path):
    made = made_catalog(tmp_path / "catalog")
    yield made
    made.database.close()


async def test_collection_moves_rows_of_the_real_catalog(catalog):
    pool = CatalogPool(catalog)
    await pool.fill(range(2, 17))
    for ino in (2, 3, 5, 6):
        pool.drop(ino)
    assert await pool.collector.collect() >= 1
    assert pool.collector.stats.records_copied >= 1
    for (_, ino), record in pool.expected.items():
        buffer = bytearray(len(record))
        await pool.store.read_into(pool.locations(ino)[0], memoryview(buffer))
        assert bytes(buffer) == record
    live = sum(row.live_bytes for row in catalog.segments.all())
    assert live == len(pool.expected) * record_bytes(limits.MIB)

"""An object held against its checks, with all that belongs to it: for the full check, and before a log is compacted."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from kvfsd.catalog.database import Database, Row
from kvfsd.catalog.rowmacs import TenantMacs, total
from kvfsd.catalog.rows import InodeRow, cookie_of

_SUM = "coalesce(sum(mac >> 32), 0), coalesce(sum(mac & 4294967295), 0)"
"""A sum of signed 64-bit numbers in halves that do not overflow."""


class Fault(NamedTuple):
    """What is damaged about an object."""

    kind: str
    text: str


def object_faults(database: Database, tenant: int, fetched: Row, *, each_name: bool = True) -> Iterator[Fault]:
    """Everything that does not fit the checks of the object whose row (LISTING_COLUMNS) was `fetched`.

    Without `each_name` the checks of a directory's names are added up as they are stored, which is fast.
    """
    macs = database.macs.of(tenant)
    ino = fetched[0]
    if macs.inode(fetched[:-1]) != fetched[-1]:
        yield Fault("damaged_object", f"{ino}: its row fails its check")
        return
    row = InodeRow._make(fetched[:-1])
    if not stat.S_ISDIR(row.mode):
        yield from _blocks(database, macs, tenant, row)
    elif each_name:
        yield from _names(database, macs, tenant, row)
    else:
        yield from _names_as_stored(database, tenant, row)
    values = database.all("SELECT sealed_name, sealed_value FROM xattr WHERE tenant=? AND ino=?", (tenant, ino))
    if total(*[macs.xattr(ino, *value) for value in values]) != row.xattrs:
        yield Fault("damaged_attributes", f"{ino}: {len(values)} extended attributes, not those it should have")


def _blocks(database: Database, macs: TenantMacs, tenant: int, row: InodeRow) -> Iterator[Fault]:
    summed = count = 0
    for block in database.iterate(
        "SELECT block, generation, length, epoch, tag FROM block WHERE tenant=? AND ino=?", (tenant, row.ino)
    ):
        summed += macs.block(row.ino, block)
        count += 1
    if total(summed) != row.members:
        yield Fault("damaged_blocks", f"{row.ino}: {count} blocks, not those it should have")


def _names(database: Database, macs: TenantMacs, tenant: int, row: InodeRow) -> Iterator[Fault]:
    summed = 0
    for cookie, name, ino, mac in database.iterate(
        "SELECT cookie, sealed_name, ino, mac FROM dirent WHERE tenant=? AND parent=?", (tenant, row.ino)
    ):
        check = macs.entry(row.ino, name, ino)
        summed += check
        if check != mac or cookie != cookie_of(name):
            yield Fault("damaged_name", f"in directory {row.ino}, at {cookie}, of object {ino}: it fails its check")
    if total(summed) != row.members:
        yield Fault("lost_names", f"in directory {row.ino}: its names are not those it should have")


def _names_as_stored(database: Database, tenant: int, row: InodeRow) -> Iterator[Fault]:
    high, low = database.one(f"SELECT {_SUM} FROM dirent WHERE tenant=? AND parent=?", (tenant, row.ino)) or (0, 0)
    if total((high << 32) + low) != row.members:
        yield Fault("lost_names", f"in directory {row.ino}: its names are not those it should have")

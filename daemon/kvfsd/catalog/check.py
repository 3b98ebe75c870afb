"""Full recount of the catalog against itself: what every crash must leave true. Runs read-only, beside a live pool.

Each rule is a query that returns what breaks it, the tenant first; a tenant that is being deleted has no tree left to
check, only its segments' bytes. Before the rules every row is held against its own check (`rowchecks`), after them
every sum of what belongs together. A pool after `Attachments.recover` has no problems at all; while
mounts are attached the rules hold as well, for uncommitted and nameless objects are accounted for.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kvfs.errors import FailsafeError, WrongKeyError
from kvfsd.catalog.connection import REPAIR
from kvfsd.catalog.database import Database
from kvfsd.catalog.rowchecks import object_faults
from kvfsd.catalog.rows import unpack_locations
from kvfsd.catalog.schema import LISTING_COLUMNS, TenantState
from kvfsd.ondisk.record import record_bytes

PROBLEMS_MAX: Final = 1000
"""More than this many of one kind are not listed."""
_TYPE_NAMES: Final = {"INT": "integer", "INTEGER": "integer", "BLOB": "blob", "TEXT": "text"}
_DIRECTORY: Final = "(mode & 0xF000) = 0x4000"


_REBUILD: Final = f"it is a miss or an error; {REPAIR}"
_LOST: Final = f"something is lost; {REPAIR}"
_COUNT: Final = f"a count is wrong; {REPAIR}"
_ADVICE: Final[dict[str, str]] = {
    "database": REPAIR,
    "type": REPAIR,
    "damaged_object": _REBUILD,
    "damaged_attributes": _REBUILD,
    "damaged_blocks": _REBUILD,
    "damaged_name": _REBUILD,
    "lost_names": _LOST,
    "dangling_name": _LOST,
    "file_links": _LOST,
    "stored_bytes": _LOST,
}


class Problem(NamedTuple):
    """`kind` is the broken rule's name; `detail` says where, with what is and what should be."""

    kind: str
    detail: str

    @property
    def advice(self) -> str:
        """What it means, and what to do about it."""
        return _ADVICE.get(self.kind, _COUNT)


_RULES: Final[dict[str, str]] = {
    # what is charged equals what is there
    "tenant_bytes": """
        SELECT t.tenant, t.used_bytes, coalesce(sum(i.stored_bytes), 0) AS counted
        FROM tenant t LEFT JOIN inode i ON i.tenant=t.tenant GROUP BY t.tenant HAVING t.used_bytes <> counted""",
    "tenant_objects": """
        SELECT t.tenant, t.used_objects, count(i.ino) AS counted
        FROM tenant t LEFT JOIN inode i ON i.tenant=t.tenant AND i.ino<>t.root_ino
        GROUP BY t.tenant HAVING t.used_objects <> counted""",
    "stored_bytes": """
        SELECT i.tenant, i.ino, i.stored_bytes, coalesce(b.bytes, 0) FROM inode i
        LEFT JOIN (SELECT tenant, ino, sum(length) AS bytes FROM block GROUP BY tenant, ino) b
        ON b.ino=i.ino AND b.tenant=i.tenant WHERE i.stored_bytes <> coalesce(b.bytes, 0)""",
    "size": "SELECT tenant, ino, size FROM inode WHERE size < 0 OR stored_bytes < 0",
    "block_beyond_size": """
        SELECT b.tenant, b.ino, b.block, i.size FROM block b JOIN inode i ON i.ino=b.ino
        WHERE b.block * 1048576 >= i.size""",
    # names
    "dangling_name": """
        SELECT d.tenant, d.parent, d.ino FROM dirent d LEFT JOIN inode i ON i.ino=d.ino AND i.tenant=d.tenant
        WHERE i.ino IS NULL""",
    "name_in_no_directory": f"""
        SELECT d.tenant, d.parent, d.ino FROM dirent d LEFT JOIN inode p ON p.ino=d.parent AND p.tenant=d.tenant
        AND {_DIRECTORY.replace("mode", "p.mode")} WHERE p.ino IS NULL""",
    "file_links": f"""
        SELECT i.tenant, i.ino, i.nlink, coalesce(d.names, 0) FROM inode i
        LEFT JOIN (SELECT ino, count(*) AS names FROM dirent GROUP BY ino) d ON d.ino=i.ino
        WHERE NOT {_DIRECTORY} AND i.nlink <> coalesce(d.names, 0)""",
    "directory_links": f"""
        SELECT i.tenant, i.ino, i.nlink, 2 + coalesce(c.children, 0) FROM inode i
        LEFT JOIN (SELECT parent, count(*) AS children FROM inode WHERE {_DIRECTORY} AND parent<>ino GROUP BY parent) c
        ON c.parent=i.ino WHERE {_DIRECTORY} AND i.nlink <> 2 + coalesce(c.children, 0)""",
    "directory_parent": f"""
        SELECT tenant, ino, parent FROM inode WHERE {_DIRECTORY} AND ino NOT IN (SELECT root_ino FROM tenant)
        AND (ino, parent) NOT IN (SELECT ino, parent FROM dirent)""",
    "directory_names": f"""
        SELECT d.tenant, d.ino, count(*) FROM dirent d JOIN inode i ON i.ino=d.ino WHERE {_DIRECTORY}
        GROUP BY d.ino HAVING count(*) > 1""",
    "root": f"""
        SELECT t.tenant, t.root_ino FROM tenant t LEFT JOIN inode i ON i.ino=t.root_ino AND i.tenant=t.tenant
        AND {_DIRECTORY} AND i.parent=i.ino WHERE i.ino IS NULL""",
    # nothing is kept without a reason
    "orphan_object": """
        SELECT tenant, ino FROM inode i WHERE nlink=0
        AND NOT EXISTS (SELECT 1 FROM open_unlinked o WHERE o.tenant=i.tenant AND o.ino=i.ino)
        AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.tenant=i.tenant AND q.ino=i.ino)""",
    "object_of_no_tenant": "SELECT tenant, ino FROM inode WHERE tenant NOT IN (SELECT tenant FROM tenant)",
    "orphan_block": """
        SELECT b.tenant, b.ino, b.block FROM block b LEFT JOIN inode i ON i.ino=b.ino AND i.tenant=b.tenant
        WHERE i.ino IS NULL AND NOT EXISTS (SELECT 1 FROM doomed d WHERE d.tenant=b.tenant AND d.ino=b.ino)""",
    "orphan_xattr": """
        SELECT x.tenant, x.ino FROM xattr x LEFT JOIN inode i ON i.ino=x.ino AND i.tenant=x.tenant
        WHERE i.ino IS NULL""",
    "orphan_quarantine": """
        SELECT q.tenant, q.ino FROM quarantine q LEFT JOIN inode i ON i.ino=q.ino AND i.tenant=q.tenant
        WHERE i.ino IS NULL""",
    "orphan_open_unlinked": """
        SELECT o.tenant, o.ino FROM open_unlinked o LEFT JOIN inode i ON i.ino=o.ino AND i.tenant=o.tenant
        WHERE i.ino IS NULL OR i.nlink<>0""",
}

_COUNTERS: Final[dict[str, str]] = {
    "counter_ino": "SELECT max(ino) FROM inode",
    "counter_generation": "SELECT max(coalesce((SELECT max(generation) FROM block), 0),"
    " coalesce((SELECT max(generation) FROM inode), 0))",
}


def check(database: Database) -> list[Problem]:
    """Every broken rule, none if the catalog is whole. Reads everything: about half a minute for a million objects.

    All queries see one moment, also beside a live pool.
    """
    database.run("BEGIN")
    try:
        deleting = {row[0] for row in database.all("SELECT tenant FROM tenant WHERE state=?", (TenantState.DELETING,))}
        problems = _integrity(database) + _types(database)
        if problems:
            return problems  # counting needs sound rows
        for kind, sql in _RULES.items():
            rows = database.all(f"{sql} LIMIT {PROBLEMS_MAX}")
            problems += [Problem(kind, ", ".join(map(str, row))) for row in rows if row[0] not in deleting]
        problems += _objects(database, deleting)
        return problems + _unreachable(database) + _segments(database) + _counters(database)
    finally:
        database.run("ROLLBACK")


def _objects(database: Database, deleting: set[int]) -> list[Problem]:
    """Rows that fail their checks, and objects that lack something."""
    problems: list[Problem] = []
    for tenant, *row in database.iterate(f"SELECT i.tenant, {LISTING_COLUMNS} FROM inode i"):
        if tenant in deleting:
            continue
        try:
            problems += [
                Problem(kind, f"{tenant}, {text}") for kind, text in object_faults(database, tenant, tuple(row))
            ]
        except WrongKeyError:
            problems.append(Problem("damaged_object", f"{tenant}, {row[0]}: there is no such tenant"))
        if len(problems) > PROBLEMS_MAX:
            break
    return problems


def _types(database: Database) -> list[Problem]:
    """Values that are not of their column's declared type: SQLite does not mind, every reader does."""
    problems = []
    tables = database.all("SELECT name FROM sqlite_schema WHERE type='table' AND name<>'meta'")
    for (table,) in tables:
        columns = database.all(f"PRAGMA table_info({table})")
        wrong = " OR ".join(f"typeof({name})<>'{_TYPE_NAMES.get(kind, '')}'" for _, name, kind, *_ in columns)
        row = database.one(f"SELECT count(*) FROM {table} WHERE {wrong}")
        if row and row[0]:
            problems.append(Problem("type", f"{table}, {row[0]} rows"))
    return problems


def _unreachable(database: Database) -> list[Problem]:
    """Directories that no chain of parents connects with a root: a cycle, or a parent that is none."""
    parents: dict[int, int] = dict(
        database.iterate(
            f"SELECT ino, parent FROM inode WHERE {_DIRECTORY} AND tenant IN (SELECT tenant FROM tenant WHERE state=1)"
        )
    )
    reachable: set[int] = set()
    problems: list[Problem] = []
    for start in parents:
        ino = start
        chain: list[int] = []
        while ino not in reachable and ino in parents and len(chain) <= len(parents):
            chain.append(ino)
            if parents[ino] == ino:
                reachable.add(ino)
            ino = parents[ino]
        if ino in reachable:
            reachable.update(chain)
        elif len(problems) < PROBLEMS_MAX:
            problems.append(Problem("unreachable_directory", str(start)))
    return problems


def _integrity(database: Database) -> list[Problem]:
    rows = database.all("PRAGMA integrity_check(100)")
    return [Problem("database", str(row[0])) for row in rows if row[0] != "ok"]


def _segments(database: Database) -> list[Problem]:
    counted: dict[tuple[int, int], int] = {}
    reach: dict[tuple[int, int], int] = {}
    for table in ("block", "staged_block", "log_record"):
        for length, packed in database.iterate(f"SELECT length, locations FROM {table}"):
            stored = record_bytes(length)
            for medium, segment, offset in unpack_locations(packed):
                place = (medium, segment)
                counted[place] = counted.get(place, 0) + stored
                reach[place] = max(reach.get(place, 0), offset * 4096 + stored)
    problems = []
    for medium, segment, live, end in database.all("SELECT medium, segment, live_bytes, write_offset FROM segment"):
        want = counted.pop((medium, segment), 0)
        if live != want:
            problems.append(Problem("segment_live_bytes", f"{medium}:{segment}, {live}, {want}"))
        if end < reach.get((medium, segment), 0):
            problems.append(Problem("segment_write_offset", f"{medium}:{segment}, {end}, {reach[medium, segment]}"))
    problems += [Problem("record_in_free_segment", f"{place[0]}:{place[1]}, {want}") for place, want in counted.items()]
    return problems


def _counters(database: Database) -> list[Problem]:
    problems = []
    for kind, sql in _COUNTERS.items():
        row = database.one(sql)
        highest = (row[0] if row else 0) or 0
        try:
            following = database.meta("next_" + kind.removeprefix("counter_"))
        except FailsafeError as error:
            problems.append(Problem("meta_row", str(error)))
            continue
        if following <= highest:
            problems.append(Problem(kind, f"{following}, {highest}"))
    return problems

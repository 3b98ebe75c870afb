"""The one table of errors: complete, never ENOSYS, and the same as in docs/ERRORS.md."""

import errno
from pathlib import Path

import pytest

from kvfs.errors import Status
from kvfs.fuse.errno_map import ERRNO, Context, errno_for

DOCUMENT = Path(__file__).parents[3] / "docs/ERRORS.md"


def test_every_status_is_mapped_in_every_context() -> None:
    assert set(ERRNO) == set(Status) - {Status.OK}
    assert all(len(row) == len(Context) for row in ERRNO.values())


def test_enosys_is_never_told() -> None:
    """The kernel would stop asking for the life of the mount."""
    assert errno.ENOSYS not in {code for row in ERRNO.values() for code in row}


@pytest.mark.parametrize("status", [Status.BAD_RECORD, Status.MEDIUM_UNAVAILABLE, Status.DEADLINE_EXCEEDED])
def test_a_fault_is_a_miss_before_the_engine_has_the_file_and_eio_after(status: Status) -> None:
    assert errno_for(status, Context.LOOKUP) == errno.ENOENT
    assert errno_for(status, Context.READ) == errno.EIO


def test_the_document_shows_the_table() -> None:
    rows = [line.strip("|").split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    rows = [[cell.strip(" `") for cell in cells] for cells in rows if len(cells) == 6]
    assert {cells[0]: tuple(getattr(errno, name) for name in cells[1:5]) for cells in rows} == {
        status.name: row for status, row in ERRNO.items()
    }

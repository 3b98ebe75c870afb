"""Tables of what is open: hints, change log, removals, bounds."""

import pytest
import trio

from kvfs.commands import Attributes, Placement
from kvfs.errors import StaleError, TooManyOpenError
from kvfs.fuse import handles
from kvfs.fuse.handles import CacheHints, ChangeLog, DirectoryHandle, Handle, OpenTable, RemovedDirectories
from kvfs.fuse.pending import PendingNames
from kvfs.openfile import OpenFile


def attributes(ino: int) -> Attributes:
    return Attributes(ino, 0o100644, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0)


def test_cached_data_is_kept_for_the_same_generation_only() -> None:
    hints = CacheHints()
    assert not hints.note_open(5, 1)
    hints.note_served(5, 1, 0)
    assert hints.note_open(5, 1)
    assert not hints.note_open(5, 2)
    assert not hints.note_open(5, 1)


def test_cached_data_is_not_kept_before_the_kernel_has_surely_dropped_the_old() -> None:
    hints = CacheHints()
    assert not hints.note_open(5, 1)
    assert not hints.note_open(5, 1)  # a second open while the first is on its way
    hints.note_served(5, 7, 100)  # a handle of another generation proves nothing
    assert not hints.note_open(5, 1)
    hints.note_served(5, 1, 100)
    assert hints.note_open(5, 1)


def test_a_file_is_served_when_as_many_bytes_as_it_has_went_out_in_this_generation() -> None:
    hints = CacheHints()
    hints.note_open(5, 1)
    hints.note_served(5, 1, 60)
    assert not hints.is_served(5, 1, 100)
    hints.note_served(5, 1, 40)
    assert hints.is_served(5, 1, 100)
    assert not hints.is_served(5, 2, 100)
    hints.note_open(5, 2)
    assert not hints.is_served(5, 2, 1)


def test_hints_are_bounded() -> None:
    hints = CacheHints(max_inodes=3)
    for ino in range(10):
        hints.note_open(ino, 1)
        hints.note_served(ino, 1, 0)
    assert [hints.note_open(ino, 1) for ino in (9, 8, 7)] == [True] * 3
    assert not hints.note_open(0, 1)


def test_the_change_log_forgets_on_the_safe_side() -> None:
    log = ChangeLog(max_inodes=2)
    before = log.sequence
    log.note(1)
    assert log.changed_since(1, before)
    assert not log.changed_since(2, before)
    now = log.sequence
    log.note(3)
    log.note(4)
    log.note(5)  # 1 and 3 are forgotten
    assert log.changed_since(1, before)
    assert log.changed_since(2, before)
    assert not log.changed_since(2, log.sequence)
    assert log.changed_since(5, now)
    log.note_all()
    assert log.changed_since(2, log.sequence - 1)
    assert not log.changed_since(2, log.sequence)


def test_removed_directories_are_bounded() -> None:
    removed = RemovedDirectories()
    for ino in range(removed.MAX + 5):
        removed.add(attributes(ino))
    assert removed.get(0) is None
    last = removed.get(removed.MAX + 4)
    assert last is not None
    assert last.nlink == 0


def test_handles_are_bounded_and_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "OPEN_FILES_MAX", 3)
    table = OpenTable()
    file = table.add(Handle(table.acquire_now(7), 0, False))
    directory = table.add(DirectoryHandle(1))
    table.add(DirectoryHandle(1))
    with pytest.raises(TooManyOpenError):
        table.add(DirectoryHandle(1))
    assert isinstance(table.handle(file), Handle)
    for wrong in (lambda: table.handle(directory), lambda: table.directory(file), lambda: table.handle(99)):
        with pytest.raises(StaleError):
            wrong()
    table.remove(file)
    with pytest.raises(StaleError):
        table.remove(file)


async def test_an_open_waits_for_a_removal_of_the_object() -> None:
    table = OpenTable()
    assert table.begin_removal(7) is False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.acquire, 7)
        await trio.testing.wait_all_tasks_blocked()
        assert table.get(7) is None
        table.end_removal(7)
    assert table.begin_removal(7) is True


def test_pending_names() -> None:
    pending = PendingNames()
    first = OpenFile(attributes(5), entry=Placement(1, b"a"), published=False)
    second = OpenFile(attributes(6), entry=Placement(1, b"a"), published=False)
    pending.add(first)
    assert pending.get(1, b"a") is first
    assert pending.get(2, b"a") is None
    assert pending.has_children(1)
    pending.add(second)  # the name was taken over
    pending.remove(Placement(1, b"a"), first)
    assert pending.snapshot(1) == [(b"a", second)]
    pending.remove(Placement(1, b"a"), second)
    assert not pending.has_children(1)
    assert len(pending) == 0


def test_lost_names_are_bounded_and_end_with_a_new_file() -> None:
    pending = PendingNames()
    files = [
        OpenFile(attributes(number), entry=Placement(1, b"%d" % number), published=False)
        for number in range(PendingNames.LOST_MAX + 5)
    ]
    for file in files:
        pending.add(file)
        assert file.entry is not None
        pending.lose(file.entry, file)
    assert len(pending) == 0
    assert pending.lost(1, b"4") is None
    assert pending.lost(1, b"5") is files[5]
    pending.add(OpenFile(attributes(5000), entry=Placement(1, b"5"), published=False))
    assert pending.lost(1, b"5") is None
    assert pending.forget_lost(1, b"6")
    assert not pending.forget_lost(1, b"6")

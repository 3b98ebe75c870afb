"""What one attachment leaves behind, and completions stored for exactly-once."""

from __future__ import annotations

from tests.kvfsd.catalog.world import FULL, World


def test_a_completion_is_found_by_its_exact_identity(world: World) -> None:
    attachments = world.catalog.attachments
    with world.catalog.transaction():
        attachments.store_completion(5, 3, 100, b"first")
    assert attachments.completion(5, 3, 100) == b"first"
    assert attachments.completion(5, 3, 101) is None
    assert attachments.completion(6, 3, 100) is None
    with world.catalog.transaction():
        attachments.store_completion(5, 3, 101, b"second")
    assert attachments.completion(5, 3, 100) is None
    assert attachments.completion(5, 3, 101) == b"second"


def test_recovery_of_one_attachment_leaves_the_others_alone(world: World) -> None:
    kept = world.store("kept")
    for attachment in (1, 2):
        world.store(f"open {attachment}")
        world.unlink(f"open {attachment}", keep_for=attachment)
        world.stage(kept, [world.block(0, 10)], attachment)
        with world.catalog.transaction():
            world.catalog.attachments.store_completion(attachment, 0, 1, b"x")
    world.catalog.attachments.recover(1)
    assert world.catalog.blocks.staged_bytes(1) == 10
    assert world.catalog.tenants.get(1).used_bytes == 4 * FULL
    assert world.catalog.attachments.completion(1, 0, 1) is None
    assert world.catalog.attachments.completion(2, 0, 1) == b"x"
    world.catalog.attachments.recover()
    assert world.catalog.blocks.staged_bytes(1) == 0
    assert world.catalog.tenants.get(1).used_bytes == 2 * FULL
    row = world.catalog.blocks.locate(1, kept, 0)
    assert row is not None
    assert row.length == FULL


def test_an_object_that_two_attachments_have_open_goes_with_the_last(world: World) -> None:
    ino = world.store("a")
    world.unlink("a", keep_for=1)
    with world.catalog.transaction():
        world.catalog.database.run("INSERT INTO open_unlinked VALUES(1, ?, 2)", (ino,))
    world.catalog.attachments.recover(1)
    assert world.catalog.inodes.find(1, ino) is not None
    world.catalog.attachments.recover(2)
    assert world.catalog.inodes.find(1, ino) is None


def test_recovery_reaps_large_objects(world: World) -> None:
    world.store("large", [1] * 1500)
    world.unlink("large")
    world.catalog.attachments.recover()
    assert world.catalog.segments.get(0, 0).live_bytes == 0

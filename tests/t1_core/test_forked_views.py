"""What was open at a fork is the child's too, and neither side lets go of what is the other's.

Views of snapshots, and files, have a cell in shared memory, and the child takes cells of its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest
from crashsim.death import SharedArena, fork, wait

OTHERS = 400


@pytest.fixture
def arena() -> Iterator[SharedArena]:
    made = SharedArena()
    yield made
    made.close()


def put(fs: Any, path: str, data: bytes) -> None:
    with fs.open(path, "wb") as file:
        file.write(data)


def seen(view: Any) -> bytes:
    with view.open("/f", "rb") as file:
        data: bytes = file.read()
    return data


def opens(fs: Any, epoch_id: int) -> int:
    (row,) = fs.snapshot_table(epoch_id)
    found: int = row["opens"]
    return found


def test_a_child_holds_a_snapshot_that_is_to_be_deleted(arena: SharedArena) -> None:
    """Its parent closes the view first; the deferred deletion waits for the child."""
    held, held_by_child = os.pipe()
    end, ended = os.pipe()

    def child(view: Any) -> None:
        os.write(held_by_child, b"x")
        os.read(end, 1)
        assert seen(view) == b"old"
        view.close()

    with arena.attach() as fs:
        put(fs, "/f", b"old")
        epoch_id = fs.snapshot_create(None)
        put(fs, "/f", b"new")
        view = fs.snapshot_open(epoch_id)
        assert not fs.snapshot_delete(epoch_id, defer=True)
        with pytest.raises(OSError, match=str(epoch_id)) as refused:
            fs.snapshot_open(epoch_id)
        assert refused.value.errno == errno.ENOENT
        pid = fork(child, view)
        os.read(held, 1)
        view.close()
        assert opens(fs, epoch_id) == 1
        with pytest.raises(OSError, match="open") as busy:
            fs.snapshot_delete(epoch_id)
        assert busy.value.errno == errno.EBUSY
        os.write(ended, b"x")
        assert wait(pid) == 0
        assert fs.snapshot_delete(epoch_id)
    for descriptor in (held, held_by_child, end, ended):
        os.close(descriptor)


def test_what_the_parent_let_go_of_at_once(arena: SharedArena) -> None:
    """The child comes too late for it, or does not; nothing else suffers when it closes it."""

    def child(view: Any, file: Any) -> None:
        with fs.snapshot_open(kept) as other:
            if view.closed:
                with pytest.raises(ValueError, match="closed"):
                    view.stat("/f")
            else:
                assert seen(view) == b"old"
            try:
                assert file.pread(3, 0) == b"old"
            except OSError as error:
                assert error.errno == errno.ESTALE
            view.close()
            file.close()
            assert seen(other) == b"old"
            assert opens(fs, kept) >= 1
            with fs.open("/f", "rb") as again:
                assert again.read() == b"old"

    with arena.attach() as fs:
        put(fs, "/f", b"old")
        # They are taken over one after the other, so the child comes late to what is opened last.
        others = [fs.open("/f", "rb") for _ in range(OTHERS)]
        kept = fs.snapshot_create(None)
        for _ in range(10):
            epoch_id = fs.snapshot_create(None)
            put(fs, "/gone", b"old")
            view, file = fs.snapshot_open(epoch_id), fs.open("/gone", "rb")
            fs.unlink("/gone")
            pid = fork(child, view, file)
            view.close()
            file.close()
            try:
                fs.snapshot_delete(epoch_id)
            except OSError as error:
                assert error.errno == errno.EBUSY
            assert wait(pid) == 0
            fs.reap()
        for other in others:
            other.close()
        assert opens(fs, kept) == 0

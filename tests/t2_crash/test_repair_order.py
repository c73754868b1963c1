"""What repair relies on, and in which order: words the dead had not written back, locks that are
held while others are repaired, and a repairer who dies after it has freed the lock."""

from __future__ import annotations

import os
import platform
import signal
import struct
from collections.abc import Callable
from typing import Any

import pytest
from crashsim.arena import MIB
from crashsim.death import SharedArena, audit, fork, settle, wait
from crashsim.medium import STORE, Event, Medium, events
from crashsim.steps import bury, possible, states

from nova_mp.core import fs as core
from nova_mp.tools.fsck import check, format_report

BLOCK = 4096
debug_only = pytest.mark.skipif(not core.DEBUG_BUILD, reason="failpoints are in the debug build")
stepped = pytest.mark.skipif(
    platform.machine() != "x86_64" or not possible(), reason="processes cannot be stepped here"
)


def put(fs: Any, path: str, data: bytes, offset: int = 0) -> None:
    with fs.os_open(path, os.O_CREAT | os.O_RDWR) as file:
        file.pwrite(data, offset)


def killed_at(shared: SharedArena, failpoint: str, act: Callable[[Any], Any]) -> None:
    """A process that dies at a failpoint of `act(fs)`."""

    def child() -> None:
        fs = shared.attach()
        fs.arm_failpoint(failpoint)
        act(fs)

    assert wait(fork(child)) == -signal.SIGKILL


def watched(shared: SharedArena, fs: Any) -> int:
    """Bytes of DRAM that an operation may change, all of them there."""
    used = int(fs.stats()["dram"]["bytes_reserved"]) + 2 * MIB
    os.posix_fallocate(shared.fd, 0, used)
    return used


@debug_only
def test_a_free_inode_slot_has_no_log_of_its_past() -> None:
    """An inode evicted at mount, its log's pages in others' use, and a creator that dies early."""
    first = SharedArena(cpus=1)
    with first.attach() as fs:
        put(fs, "/keep", b"k" * BLOCK)
        victim = fs.os_open("/victim", os.O_CREAT | os.O_RDWR)
        for page in range(40):
            victim.pwrite(b"v" * BLOCK, page * BLOCK)
        fs.unlink("/victim")
        image = first.image()
        victim.close()
    first.close()
    shared = SharedArena(image=image, cpus=1)
    data = os.urandom(300 * BLOCK)
    with shared.attach() as fs:
        put(fs, "/keep", data)
    killed_at(shared, "inode.slot_taken", lambda fs: put(fs, "/new", b""))
    with shared.attach() as fs:
        assert len(fs.reap()) == 1
        settle(fs)
        audit(fs, shared)
        with fs.os_open("/keep", os.O_RDONLY) as file:
            assert file.pread(len(data), 0) == data
    shared.close()


def last_word(before: bytes, now: bytes, step: int) -> int:
    """Offset of the one word that has grown by `step`."""
    changed = [at for at in range(0, len(now), 8) if now[at : at + 8] != before[at : at + 8]]
    values = {at: [struct.unpack_from("<Q", i, at)[0] for i in (before, now)] for at in changed}
    (found,) = [at for at, (old, new) in values.items() if new - old == step]
    return found


@debug_only
@pytest.mark.parametrize(
    ("failpoint", "step"), [("log.committed", 64), ("snapshot.deleted", 1)], ids=["tail", "deleted"]
)
def test_what_repair_decides_by_is_on_the_medium_first(failpoint: str, step: int) -> None:
    """The dead stored the word that commits, and did not write it back; then the power fails."""
    shared = SharedArena()
    with shared.attach() as fs:
        put(fs, "/file", b"a" * BLOCK)
        put(fs, "/other", b"o" * BLOCK)
        epoch_id = fs.snapshot_create(None)
        put(fs, "/file", b"b" * BLOCK)
    before = shared.image()
    if step == 1:
        killed_at(shared, failpoint, lambda fs: fs.snapshot_delete(epoch_id))
    else:
        killed_at(shared, failpoint, lambda fs: put(fs, "/file", b"W" * BLOCK))
    now = shared.image()
    word = last_word(before, now, step)
    image = now[:word] + before[word : word + 8] + now[word + 8 :]
    medium = Medium(image)
    medium.feed(Event(STORE, word, 8, now[word : word + 8]))
    with shared.attach() as fs:
        fs.trace_start()
        assert len(fs.reap()) == 1
        settle(fs)
        # Whatever was freed is used again, and that is on the medium.
        for page in range(12):
            put(fs, "/other", os.urandom(BLOCK), page * BLOCK)
        for event in events(fs.trace_stop()):
            medium.feed(event)
    report = check(bytes(medium.image))
    assert report.ok, format_report(report)
    again = SharedArena(image=bytes(medium.image))
    with again.attach() as fs:
        settle(fs)
        audit(fs, again)
        with fs.os_open("/file", os.O_RDONLY) as file:
            assert file.pread(1, 0) == (b"b" if step == 1 else b"W")
    again.close()
    shared.close()


@stepped
def test_whoever_holds_a_lock_of_lists_repairs_the_table_of_snapshots() -> None:
    """A writer meets the death of a deleter at each step, in the middle of recording a block."""
    shared = SharedArena(2 * MIB, cpus=1)
    with shared.attach() as fs:
        put(fs, "/file", b"a" * 4 * BLOCK)
        first = fs.snapshot_create(None)
        put(fs, "/file", b"b" * BLOCK)
        fs.snapshot_create(None)
        used = watched(shared, fs)

    def deletion() -> Callable[[], Any]:
        fs = shared.attach("coordinator")
        return lambda: fs.snapshot_delete(first)

    deaths = 0
    for number, pid in enumerate(states(shared, used, deletion)):
        copy = shared.copy()
        bury(copy.dram, pid)

        def write(copy: SharedArena = copy) -> None:
            with copy.attach() as fs:
                put(fs, "/file", b"c" * BLOCK, 2 * BLOCK)

        assert wait(fork(write), 10.0) == 0, number
        with copy.attach() as fs:
            fs.reap()
            settle(fs)
            audit(fs, copy)
        copy.close()
        deaths += 1
    assert deaths > 20
    shared.close()


@debug_only
@stepped
def test_what_was_written_after_a_repair_stays() -> None:
    """A repairer dies at each step of repairing a write; what is written then is not undone."""
    shared = SharedArena(2 * MIB, cpus=1)
    with shared.attach() as fs:
        put(fs, "/file", b"a" * 2 * BLOCK)
        used = watched(shared, fs)
    killed_at(shared, "log.committed", lambda fs: put(fs, "/file", b"W" * BLOCK))

    def repair() -> Callable[[], Any]:
        fs = shared.attach("coordinator")
        return fs.reap

    deaths = 0
    for number, pid in enumerate(states(shared, used, repair)):
        copy = shared.copy()
        bury(copy.dram, pid)

        def write(copy: SharedArena = copy) -> None:
            with copy.attach() as fs, fs.os_open("/file", os.O_RDWR) as file:
                assert file.pread(1, 0) == b"W"
                file.pwrite(b"N" * BLOCK, 0)
                fs.reap()
                assert file.pread(1, 0) == b"N"
                settle(fs)
                audit(fs, copy)

        assert wait(fork(write), 10.0) == 0, number
        copy.close()
        deaths += 1
    assert deaths > 20
    shared.close()

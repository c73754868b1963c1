"""The regions of blocks that CPUs have: where they begin, and that neighbours do not disturb."""

from __future__ import annotations

import os
import threading

import pytest
from crashsim.arena import MIB, arena
from crashsim.death import SharedArena, audit, ended, fork, settle, wait

from nova_mp.tools.image import BLOCK_BYTES

CPUS = 8
TURNS = 200_000
SECONDS = 60.0


@pytest.mark.parametrize("cpus", [1, 2, 3, 7, 64, 128])
@pytest.mark.parametrize("size", [6 * MIB, 8 * MIB, 8 * MIB + 5 * BLOCK_BYTES, 64 * MIB])
def test_no_two_share_a_word_of_the_bitmap(size: int, cpus: int) -> None:
    with arena(size, cpus=cpus) as a:
        stats = a.fs.stats()
        sizes = [row["blocks"] for row in stats["cpus"]]
        assert len(sizes) == cpus
        # The last block of the arena is the second superblock.
        block = start = size // BLOCK_BYTES - 1 - sum(sizes)
        assert 0 < start < 200
        share = sum(sizes) / cpus
        for number, length in enumerate(sizes):
            assert block in (start, size // BLOCK_BYTES - 1) or block % 64 == 0, number
            assert abs(length - share) < 64 + cpus
            block += length
        assert sum(row["free_blocks"] for row in stats["cpus"]) == stats["blocks"]["free"]


def overwrites(arena: SharedArena, cpu: int) -> None:
    fs = arena.attach(cpu=cpu)
    # Two blocks at a time: one alone would be kept, and never come back to its region.
    data = os.urandom(2 * BLOCK_BYTES)
    with fs.os_open(f"/{cpu}", os.O_RDWR) as file:
        for turn in range(TURNS):
            file.pwrite(data, turn % 16 * BLOCK_BYTES)
    fs.close()


def test_neighbours_do_not_lose_each_others_bits() -> None:
    """Regions of less than two words, so that all that is taken and freed lies near a boundary."""
    shared = SharedArena(2 * MIB, cpus=CPUS)
    with shared.attach() as fs:
        for cpu in range(CPUS):
            with fs.os_open(f"/{cpu}", os.O_CREAT | os.O_RDWR) as file:
                file.pwrite(bytes(16 * BLOCK_BYTES), 0)
    pids = [fork(overwrites, shared, cpu) for cpu in range(CPUS)]
    assert [wait(pid, SECONDS) for pid in pids] == [0] * CPUS
    with shared.attach() as fs:
        settle(fs)
        audit(fs, shared)
    shared.close()


def test_what_threads_keep_is_free() -> None:
    """A thread keeps the block that it freed last; it counts as free, and goes back with it."""
    shared = SharedArena()
    with shared.attach() as fs:
        for number in range(4):
            with fs.os_open(f"/{number}", os.O_CREAT | os.O_RDWR) as file:
                file.pwrite(b"a" * BLOCK_BYTES, 0)
        free = fs.stats()["blocks"]["free"]
        done, leave = threading.Barrier(5), threading.Event()

        def overwrite(number: int) -> None:
            with fs.os_open(f"/{number}", os.O_RDWR) as file:
                for _ in range(10):
                    file.pwrite(b"b" * BLOCK_BYTES, 0)
            done.wait()
            if number % 2:
                leave.wait()

        threads = [threading.Thread(target=overwrite, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        done.wait()
        ended(*threads[::2])
        # Two have ended, two live.
        assert fs.stats()["blocks"]["free"] == free == fs.statvfs("/").f_bfree
        assert len(fs.reap()) == 2
        assert fs.stats()["blocks"]["free"] == free
        leave.set()
        ended(*threads[1::2])
    with shared.attach() as fs:
        assert fs.reap() == []
        assert len(fs.slots()) == 1
        assert fs.stats()["blocks"]["free"] == free
        audit(fs, shared)
    shared.close()


def test_slots_of_ended_threads_are_others_later() -> None:
    """Whoever closes a file system leaves alone a slot that its thread had, and another has now."""
    shared = SharedArena()
    with shared.attach() as other:
        fs = shared.attach()
        thread = threading.Thread(target=fs.stat, args=("/",))
        thread.start()
        ended(thread)
        assert len(other.reap()) == 1
        begun, leave = threading.Event(), threading.Event()

        def work() -> None:
            other.stat("/")
            begun.set()
            leave.wait()

        taker = threading.Thread(target=work)
        taker.start()
        begun.wait()
        before = len(other.slots())
        fs.close()
        assert len(other.slots()) == before - 1, "its own slot, and no other"
        leave.set()
        ended(taker)
    shared.close()


def test_space_of_deleted_snapshots_is_there_without_a_cleaner() -> None:
    """Who finds no space does what the cleaner has not come to yet."""
    with arena(8 * MIB) as a:
        fs = a.fs
        file = fs.os_open("/file", os.O_CREAT | os.O_RDWR)
        file.pwrite(bytes(5 * MIB), 0)
        made = fs.snapshot_create(None)
        with pytest.raises(OSError, match="No space"):
            for at in range(0, 5 * MIB, BLOCK_BYTES):
                file.pwrite(b"n" * BLOCK_BYTES, at)
        fs.snapshot_delete(made)
        assert fs.stats()["snapshots"]["backlog"] > 0
        for at in range(0, 5 * MIB, BLOCK_BYTES):
            file.pwrite(b"N" * BLOCK_BYTES, at)
        file.close()
        a.settle()
        blocks = fs.stats()["blocks"]
        assert blocks["held"] == 0
        assert blocks["free"] + blocks["live"] + blocks["head"] == blocks["total"]

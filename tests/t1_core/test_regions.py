"""The regions of blocks that CPUs have: where they begin, and that neighbours do not disturb."""

from __future__ import annotations

import os

import pytest
from crashsim.arena import MIB, arena
from crashsim.death import SharedArena, audit, fork, settle, wait

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
    data = os.urandom(BLOCK_BYTES)
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

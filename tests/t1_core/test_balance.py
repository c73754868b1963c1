"""Many CPUs in a small arena: what one of them has too much of, the others can use."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from crashsim.death import MIB, SharedArena, audit

CPUS = 32
BLOCK = 4096


def no_space(fs: Any, path: str) -> bool:
    """Whether a file of one block finds no place; what there is of it goes again."""
    try:
        with fs.os_open(path, os.O_CREAT | os.O_RDWR) as file:
            file.pwrite(b"x" * BLOCK, 0)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        if fs.exists(path):
            fs.unlink(path)
        return True
    return False


def fill(fs: Any, folder: str) -> list[str]:
    """Files of one block until nothing fits any more."""
    made: list[str] = []
    fs.make_dir(folder)
    while not no_space(fs, path := f"{folder}/{len(made)}"):
        made.append(path)
    return made


def spare(fs: Any) -> int:
    """Free blocks that everybody may use: without those kept for operations that give back."""
    blocks = fs.stats()["blocks"]
    return int(blocks["free"] - blocks["reserved"])


@pytest.fixture
def arena() -> Any:
    made = SharedArena(8 * MIB, cpus=CPUS)
    yield made
    made.close()


def test_one_cpu_can_use_nearly_everything(arena: SharedArena) -> None:
    with arena.attach(cpu=3) as fs:
        made = fill(fs, "/all")
        stats = fs.stats()
        # A file takes a block and a page of log; each CPU's share would be far less.
        assert 2 * len(made) > 0.9 * (stats["blocks"]["total"] - stats["blocks"]["head"])
        assert spare(fs) < 2 * 2, "there is room for another file"
        assert stats["counters"]["steals"] > 0
        for path in made:
            fs.unlink(path)
        audit(fs, arena)


def test_the_others_work_in_what_is_left(arena: SharedArena) -> None:
    with arena.attach(cpu=0) as greedy:
        made = fill(greedy, "/all")
        for cpu in (1, CPUS // 2, CPUS - 1):
            with arena.attach(cpu=cpu) as fs:
                assert no_space(fs, f"/full-{cpu}"), "it was full for another CPU only"
                # No two neighbours, so that no new chunk of inodes fits anywhere.
                for path in made[1:21:2]:
                    if greedy.exists(path):
                        greedy.unlink(path)
                room = spare(fs)
                names = [f"/{cpu}-{number}" for number in range(room // 2 - 1)]
                full = [name for name in names if no_space(fs, name)]
                assert len(names) > 5 and not full, f"{room} blocks free, no room for {full}"
                for name in names:
                    fs.unlink(name)
                # The logs of the directories may have grown by a page.
                again = [path for path in made[1:21:2] if not no_space(greedy, path)]
                assert len(again) >= 8, "what was given back cannot be had again"
        audit(greedy, arena)


def test_snapshots_hold_what_another_cpu_overwrites(arena: SharedArena) -> None:
    with arena.attach("coordinator", cpu=0) as fs, arena.attach(cpu=CPUS - 1) as other:
        with fs.os_open("/large", os.O_CREAT | os.O_RDWR) as file:
            file.pwrite(b"1" * (spare(fs) // 3 * BLOCK), 0)
        kept = fs.snapshot_create(None)
        with other.os_open("/large", os.O_RDWR) as file:
            for at in range(0, other.stat("/large").st_size, BLOCK):
                file.pwrite(b"2" * BLOCK, at)
        assert fs.stats()["blocks"]["held"] > 0
        fs.snapshot_delete(kept)
        audit(fs, arena)

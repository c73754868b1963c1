"""Deaths beside processes that store into mapped files: nobody hangs, and nothing is lost.

Bystanders store dependent values without pause: value n into the second file only once n is in the
first. Somebody dies, at a failpoint or at a random moment; the bystanders go on, snapshots can be
taken, none of them holds a value without the one before it, and every block is accounted for.
"""

from __future__ import annotations

import mmap
import os
import random
import secrets
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from crashsim.arena import MIB
from crashsim.death import SharedArena, audit, fork, settle, wait
from t2_crash.defects_help import get, put

core = pytest.importorskip("nova_mp.core.fs", reason="the core is not built")

SECONDS = 20.0  # nobody waits for so long unless he hangs
PAGES = 12
BYSTANDERS = 2
SEED = int(os.environ.get("NOVA_MP_SEED") or secrets.randbits(31))
TORTURE = os.environ.get("NOVA_MP_TORTURE", "0") not in ("", "0")
KILLS = 1000 if TORTURE else 30
WORD = struct.Struct("<Q")


class Scene:
    """An arena, its bystanders, and what they have done so far (IN SHARED MEMORY)."""

    def __init__(self) -> None:
        self.arena = SharedArena(16 * MIB)
        self.board = memoryview(mmap.mmap(-1, 4096)).cast("Q")
        self.fs = self.arena.attach("coordinator")
        for number in range(BYSTANDERS):
            for part in "ab":
                put(self.fs, f"/{number}{part}", bytes(PAGES * 4096))
        put(self.fs, "/victim", bytes(PAGES * 4096))
        self.fs.snapshot_create("first")
        self.pids = [fork(self.bystand, number) for number in range(BYSTANDERS)]
        self.progress()

    def bystand(self, number: int) -> None:
        fs = self.arena.attach()
        views = []
        for part in "ab":
            with fs.os_open(f"/{number}{part}", os.O_RDWR) as file:
                views.append(memoryview(file.mmap()))
        value = 0
        while not self.board[100]:
            value += 1
            at = value % PAGES * 4096
            WORD.pack_into(views[0], at, value)
            WORD.pack_into(views[1], at, value)
            self.board[number] = value
        for view in views:
            mapping = view.obj
            view.release()
            mapping.close()
        fs.close()

    def progress(self) -> None:
        """All bystanders store something."""
        before = self.board[:BYSTANDERS].tolist()
        end = time.monotonic() + SECONDS
        while any(new <= old + PAGES for new, old in zip(self.board, before, strict=False)):
            assert time.monotonic() < end, f"bystanders hang: {self.fs.slots()}"
            for pid in self.pids:
                assert os.waitpid(pid, os.WNOHANG) == (0, 0), "a bystander ended"
            time.sleep(0.001)

    def look(self, view: Any) -> None:
        """What a snapshot holds: never n in the second file without n in the first."""
        for number in range(BYSTANDERS):
            first, second = (
                [WORD.unpack_from(get(view, f"/{number}{part}"), page * 4096)[0]
                 for page in range(PAGES)]
                for part in "ab"
            )  # fmt: skip
            assert max(first) - max(second) in (0, 1), (first, second)
            newest = max(first)
            # The page after it may be half stored, or as it was.
            assert set(first) >= set(range(max(1, newest - PAGES + 2), newest + 1)), first

    def finish(self) -> None:
        """All leave; everything adds up, and is the same when it is mounted again."""
        self.board[100] = 1
        for pid in self.pids:
            assert wait(pid, SECONDS) == 0
        self.pids = []
        self.fs.reap()
        settle(self.fs)
        audit(self.fs, self.arena)
        blocks = self.fs.stats()["blocks"]
        for number in range(BYSTANDERS):
            for part in "ab":
                values = [WORD.unpack_from(get(self.fs, f"/{number}{part}"), page * 4096)[0]
                          for page in range(PAGES)]  # fmt: skip
                assert max(values) == self.board[number]
        for row in self.fs.snapshot_table():
            with self.fs.snapshot_open(row["epoch_id"]) as view:
                self.look(view)
        self.fs.close()
        again = self.arena = self.arena.remount()
        with again.attach() as fs:
            mounted = fs.stats()["blocks"]
            for kind in ("free", "held", "live"):
                assert mounted[kind] == blocks[kind], (mounted, blocks)
            audit(fs, again)

    def end(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.fs.close()
        self.arena.close()


@contextmanager
def scene() -> Iterator[Scene]:
    made = Scene()
    try:
        yield made
    finally:
        made.end()


# ---------------------------------------------------------------------------------- at failpoints


def maps(fs: Any) -> Any:
    with fs.os_open("/victim", os.O_RDWR) as file:
        return file.mmap()


def stores(fs: Any, arm: Callable[[], None]) -> None:
    view = memoryview(maps(fs))
    arm()
    view[::512] = b"s" * len(view[::512])


def writes(fs: Any, arm: Callable[[], None]) -> None:
    with fs.os_open("/victim", os.O_RDWR) as file:
        mapping = file.mmap()
        arm()
        file.pwrite(b"w" * 9000, 1000)
        file.truncate(3000)
        mapping.close()


def creates(fs: Any, arm: Callable[[], None]) -> None:
    mapping = maps(fs)
    with memoryview(mapping) as view:
        view[0] = 1  # or there would be nothing to protect
    arm()
    fs.snapshot_create("victim's")
    mapping.close()


def unmaps(fs: Any, arm: Callable[[], None]) -> None:
    mapping = maps(fs)
    fs.truncate("/victim", 100)
    arm()
    mapping.close()


VICTIMS: list[tuple[Callable[[Any, Callable[[], None]], None], str, int]] = [
    (stores, "fault.preserved", 1),
    (stores, "fault.preserved", 3),
    (stores, "fault.resolved", 1),
    (stores, "fault.resolved", 2),
    (stores, "mmap.copied", 2),
    (stores, "mmap.entry_appended", 1),
    (stores, "mmap.preserved", 2),
    (stores, "log.before_commit", 1),
    (stores, "log.committed", 1),
    (stores, "list.appended", 1),
    (writes, "mmap.before_store", 1),
    (writes, "mmap.truncated", 1),
    (writes, "mmap.entry_appended", 2),
    (unmaps, "log.committed", 1),
    (unmaps, "inode.cells_set", 1),
    (unmaps, "free.bits_cleared", 1),
    (creates, "stores.held", 1),
    (creates, "stores.protected", 1),
    (creates, "stores.protected", 3),
    (creates, "log.before_commit", 1),
    (creates, "snapshot.committed", 1),
    (creates, "snapshot.in_table", 1),
    (creates, "snapshot.epoch_persisted", 1),
    (creates, "snapshot.before_grace", 1),
]


def run_victim(arena: SharedArena, act: Any, point: str, nth: int) -> None:
    fs = arena.attach("coordinator")
    act(fs, lambda: fs.arm_failpoint(point, nth))


@pytest.mark.skipif(not core.DEBUG_BUILD, reason="failpoints are in the debug build")
@pytest.mark.parametrize(
    ("act", "point", "nth"), VICTIMS, ids=lambda value: getattr(value, "__name__", str(value))
)
@pytest.mark.parametrize("reaped", [False, True])
def test_death_at_a_failpoint(act: Any, point: str, nth: int, reaped: bool) -> None:
    with scene() as s:
        ended = wait(fork(run_victim, s.arena, act, point, nth), SECONDS)
        assert ended == -signal.SIGKILL, f"does not pass {point} ({ended})"
        # What the dead left is mended by those whom it keeps from storing.
        s.progress()
        if reaped:
            s.fs.reap()
        for _ in range(3):
            made = s.fs.snapshot_create(None)
            with s.fs.snapshot_open(made) as view:
                s.look(view)
            s.progress()
        s.finish()


# -------------------------------------------------------------------------------- at random moments


def stores_forever(fs: Any, _: Any) -> None:
    rng = random.Random()
    while True:
        with maps(fs) as mapping, memoryview(mapping) as view:
            for _turn in range(rng.randrange(200)):
                view[rng.randrange(len(view))] = 1
        size = rng.choice((100, 3000, PAGES * 4096))
        fs.truncate("/victim", size)
        fs.truncate("/victim", PAGES * 4096)


def creates_forever(fs: Any, _: Any) -> None:
    mapping = maps(fs)
    while True:
        made = fs.snapshot_create(None)
        fs.snapshot_delete(made)
        fs.reclaim(100)
        memoryview(mapping)[0] = 1


@pytest.mark.parametrize("act", [stores_forever, creates_forever])
def test_death_at_a_random_moment(act: Any) -> None:
    print(f"replay with NOVA_MP_SEED={SEED}")
    rng = random.Random(SEED)
    with scene() as s:
        for turn in range(KILLS):
            pid = fork(run_forever, s.arena, act)
            time.sleep(rng.uniform(0.0, 0.05))
            os.kill(pid, signal.SIGKILL)
            # Before the kernel has done with it, too.
            made = s.fs.snapshot_create(None)
            assert wait(pid, SECONDS) == -signal.SIGKILL
            with s.fs.snapshot_open(made) as view:
                s.look(view)
            if rng.random() < 0.5:
                s.fs.reap()
            s.progress()
            if turn % 3:
                s.fs.snapshot_delete(made)
                s.fs.reclaim(1000)
        s.finish()


def run_forever(arena: SharedArena, act: Any) -> None:
    act(arena.attach("coordinator"), None)

"""Workers killed at random moments while others work: nobody waits long, nothing is lost.

The load, and how it is known what must be there after a death, are in `crashsim.load`. NOVA_MP_SEED
gives a run the same operations and kills (not the same moments), NOVA_MP_TORTURE=1 makes it long.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crashsim.arena import contents, differences
from crashsim.death import MIB, SharedArena, audit, fork, settle, wait
from crashsim.load import (
    DELETING,
    IDS,
    KINDS,
    LIVE,
    LONGEST,
    LONGEST_OP,
    PAUSE,
    PAUSED,
    RETURNED,
    STOP,
    Board,
    Books,
    choose,
    clock_ns,
    expect,
    files,
    perform,
)

SEED = int(os.environ.get("NOVA_MP_SEED") or secrets.randbits(31))
TORTURE = os.environ.get("NOVA_MP_TORTURE", "") not in ("", "0")
KILLS = 1000 if TORTURE else 15
WORKERS = 3
LONGEST_NS = 1_000_000_000


def own_core(run: Run, role: str, cpu: int) -> Any:
    """A `Core` in a child, instead of the one that it got of its parent."""
    fs = run.arena.attach(role, cpu)
    run.fs.close()
    return fs


def work(run: Run, number: int, seed: int) -> None:
    """A worker's life."""
    board, model = run.board, run.books.models[number]
    fs = own_core(run, "worker", number)
    rng = random.Random(seed)
    record = board.record(number)
    while True:
        op = choose(rng, number, model, run.alone)
        board.rest(record)
        start = clock_ns()
        perform(fs, op)
        board.called(record, start, KINDS.index(op[0]))
        model = expect(model, op)


def keep(run: Run, seed: int) -> None:
    """Takes, browses and deletes snapshots, and cleans up behind them."""
    board = run.board
    fs = own_core(run, "coordinator", 0)
    rng = random.Random(seed)
    record = board.record(WORKERS)
    ids = board.snapshots
    while True:
        board.rest(record)
        what = rng.choice(("create", "delete", "reclaim", "reclaim", "open", "gc"))
        held = [k for k in range(IDS) if ids[2 * k + 1] == LIVE]
        start = clock_ns()
        if what == "create" and len(held) < 5:
            free = next(k for k in range(IDS) if ids[2 * k + 1] == 0)
            ids[2 * free] = fs.snapshot_create(None)
            ids[2 * free + 1] = LIVE
        elif what == "delete" and held:
            gone = rng.choice(held)
            ids[2 * gone + 1] = DELETING
            try:
                fs.snapshot_delete(ids[2 * gone])
                ids[2 * gone + 1] = 0
            except OSError as error:
                # A predecessor died with a view of it open, and has not been reaped yet.
                if error.errno != errno.EBUSY:
                    raise
                ids[2 * gone + 1] = LIVE
        elif what == "reclaim":
            fs.reclaim(rng.choice((1, 7, 1000)))
        elif what == "open" and held:
            with fs.snapshot_open(ids[2 * rng.choice(held)]) as view:
                view.listdir("/shared")
        elif what == "gc" and rng.random() < 0.2:
            fs.gc()
        board.called(record, start, 100)


class Run:
    """One arena, its workers, and what is known about them."""

    def __init__(self, seed: int, alone: bool) -> None:
        self.alone = alone
        self.rng = random.Random(seed)
        self.seed = seed
        self.arena = SharedArena(32 * MIB, cpus=WORKERS)
        self.fs = self.arena.attach("supervisor")
        self.board = Board(WORKERS + 1)
        self.books = Books(self.board, WORKERS, alone)
        self.pids: list[int] = [0] * (WORKERS + 1)
        self.frozen: dict[int, Any] = {}
        self.fs.make_dir("/shared")
        for number in range(WORKERS):
            self.fs.make_dir(f"/w{number}")
        for number in range(WORKERS + 1):
            self.start(number)

    def start(self, number: int) -> None:
        seed = self.rng.getrandbits(32)
        if number == WORKERS:
            self.board.clear(number)
            self.pids[number] = fork(keep, self, seed)
            return
        self.books.start(number, seed)
        self.pids[number] = fork(work, self, number, seed)

    def kill(self, number: int) -> None:
        os.kill(self.pids[number], signal.SIGKILL)
        ended = wait(self.pids[number])
        assert ended == -signal.SIGKILL, f"worker {number} ended by itself: {ended}"
        if number < WORKERS:
            self.look(number, died=True)
        else:
            self.look_at_snapshots()

    def look_at_snapshots(self) -> None:
        """Compare the snapshots there are with what their keeper did."""
        ids, there = self.board.snapshots, {info["epoch_id"] for info in self.fs.snapshot_table()}
        known = {ids[2 * k]: k for k in range(IDS) if ids[2 * k + 1]}
        for epoch_id in there - known.keys():
            # The one whose creation was under way.
            free = next(k for k in range(IDS) if ids[2 * k + 1] == 0)
            ids[2 * free], ids[2 * free + 1] = epoch_id, LIVE
        assert len(there - known.keys()) <= 1, (there, known)
        for epoch_id, place in known.items():
            if epoch_id in there:
                ids[2 * place + 1] = LIVE
            else:
                assert ids[2 * place + 1] == DELETING, f"snapshot {epoch_id} has gone"
                ids[2 * place + 1] = 0

    def look(self, number: int, *, died: bool = False) -> None:
        """Compare a worker's files with what they must be."""
        model = self.books.advance(number)
        found = files(self.fs, number)
        if died and found != model:
            op, after = self.books.after_death(number)
            self.books.models[number] = after
            lines = differences(found, after) and differences(found, model)
            assert not lines, f"worker {number} died in {op[:3]}: {lines}"
        else:
            assert found == model, f"worker {number}: {differences(found, model)}"

    def pause(self, seconds: float = 5.0) -> None:
        self.board.words[PAUSE] = 1
        end = time.monotonic() + seconds
        for number in range(WORKERS + 1):
            while not self.board.record(number)[PAUSED]:
                assert time.monotonic() < end, f"{number} does not come to rest: {self.fs.slots()}"
                gone, status = os.waitpid(self.pids[number], os.WNOHANG)
                assert gone == 0, f"worker {number} ended: {os.waitstatus_to_exitcode(status)}"
                time.sleep(0.0005)

    def resume(self) -> None:
        for number in range(WORKERS + 1):
            self.board.record(number)[PAUSED] = 0
        self.board.words[PAUSE] = 0

    def check(self) -> None:
        """Everybody rests: is everything as it must be?"""
        self.fs.reap()
        for number in range(WORKERS):
            self.look(number)
        self.look_at_snapshots()
        audit(self.fs, self.arena)
        frozen = {}
        for info in self.fs.snapshot_table():
            with self.fs.snapshot_open(info["epoch_id"]) as view:
                frozen[info["epoch_id"]] = contents(view)
        for epoch_id, shown in self.frozen.items():
            if epoch_id in frozen:
                lines = differences(frozen[epoch_id], shown)
                assert not lines, f"snapshot {epoch_id} changed: {lines[:5]}"
        self.frozen = frozen
        for number in range(WORKERS + 1):
            record = self.board.record(number)
            took, code = record[LONGEST], record[LONGEST_OP]
            what = KINDS[code] if code < len(KINDS) else "snapshot"
            assert took < LONGEST_NS, f"worker {number} spent {took / 1e9:.2f} s in {what}"

    def finish(self) -> None:
        """All leave in order; the file system is the same when it is mounted again."""
        self.board.words[STOP] = 1
        for number, pid in enumerate(self.pids):
            assert wait(pid) == 0
            self.pids[number] = 0
        self.fs.reap()
        settle(self.fs)
        before, free = contents(self.fs), self.fs.stats()["blocks"]
        self.fs.close()
        self.arena = self.arena.remount()
        with self.arena.attach() as fs:
            lines = differences(contents(fs), before)
            assert not lines, lines[:5]
            again = fs.stats()["blocks"]
            assert (again["free"], again["held"]) == (free["free"], free["held"])
            audit(fs, self.arena)

    def end(self) -> None:
        for pid in filter(None, self.pids):
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue
        self.fs.close()
        self.arena.close()


@contextmanager
def running(alone: bool = False) -> Iterator[Run]:
    print(f"replay with NOVA_MP_SEED={SEED}")
    run = Run(SEED, alone)
    try:
        yield run
    finally:
        run.end()


def test_random_kills() -> None:
    with running() as run:
        for kill in range(KILLS):
            time.sleep(run.rng.uniform(0.005, 0.1))
            victim = run.rng.randrange(WORKERS + 1)
            run.kill(victim)
            if run.rng.random() < 0.5:
                run.fs.reap()
            run.start(victim)
            if kill % 5 == 4:
                run.pause()
                run.check()
                run.resume()
        run.pause()
        run.check()
        run.finish()


def test_a_stopped_process_holds_up_nobody() -> None:
    with running(alone=True) as run:
        stopped = run.pids[0]
        for _ in range(200):
            time.sleep(run.rng.uniform(0.001, 0.01))
            os.kill(stopped, signal.SIGSTOP)
            os.waitid(os.P_PID, stopped, os.WSTOPPED)
            # Inside an operation it may hold a lock of the whole arena's, for nanoseconds; and the
            # next snapshot waits for the operation's end, and whoever maps a file for the snapshot.
            mine = [slot for slot in run.fs.slots() if slot["pid"] == stopped]
            if all(slot["locks"] <= 1 and not slot["epoch_id"] for slot in mine):
                break
            os.kill(stopped, signal.SIGCONT)
        others = range(1, WORKERS)
        before = [run.board.record(number)[RETURNED] for number in others]
        time.sleep(2.0)
        after = [run.board.record(number)[RETURNED] for number in others]
        assert all(new > old for old, new in zip(before, after, strict=True)), (before, after)
        longest = [run.board.record(number)[LONGEST] / 1e9 for number in others]
        assert max(longest) < 1.0, f"the others waited up to {max(longest):.2f} s"
        os.kill(stopped, signal.SIGCONT)
        run.pause()
        run.board.record(0)[LONGEST] = run.board.record(WORKERS)[LONGEST] = 0
        run.check()
        run.finish()

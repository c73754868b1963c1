"""Workers killed at random moments while others work: nobody waits long, nothing is lost.

Each worker changes files of its own, in a directory of its own and in one that all share, by a
seeded sequence of operations; each operation is one call. What a worker was doing is counted in
memory that outlives it, so after its death its files are known: as after its last call that
returned, or as after the one that was under way. NOVA_MP_SEED gives a run the same operations and
kills (not the same moments), NOVA_MP_TORTURE=1 makes it long.
"""

from __future__ import annotations

import errno
import mmap
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

SEED = int(os.environ.get("NOVA_MP_SEED") or secrets.randbits(31))
TORTURE = os.environ.get("NOVA_MP_TORTURE", "") not in ("", "0")
KILLS = 1000 if TORTURE else 15
WORKERS = 3
NAMES = 7
LONGEST_NS = 1_000_000_000

# Words of a worker's record, in memory that it shares with the test.
RETURNED, PAUSED, LONGEST, LONGEST_OP, RECORD = 0, 1, 2, 3, 8
PAUSE, STOP, CONTROL = 0, 1, 8
IDS = 64
LIVE, DELETING = 1, 2

File = tuple[bytes, tuple[tuple[str, bytes], ...]]
Model = dict[str, File]
Op = tuple[Any, ...]
WEIGHTS = {
    "create": 3, "write": 6, "append": 3, "truncate": 3, "unlink": 2, "rename": 3, "xattr": 2,
    "symlink": 1, "share": 2, "mkdir": 1,
}  # fmt: skip
KINDS = list(WEIGHTS)


def choose(rng: random.Random, number: int, model: Model, alone: bool) -> Op:
    """The next operation of worker `number`, given what its files are.

    `alone`: all in its own directory, so that no other worker needs a lock that it holds.
    """
    names = sorted(model)
    files = [name for name in names if model[name][0] is not LINK]
    kind = rng.choices(KINDS, list(WEIGHTS.values()))[0]
    place = rng.choice((f"/w{number}", f"/w{number}" if alone else "/shared"))
    free = f"{place}/w{number}-{rng.randrange(NAMES)}"
    if kind == "share" and not alone:
        what = rng.choice(("create", "unlink", "rename"))
        return ("share", what, rng.randrange(4), rng.randrange(4))
    if kind == "mkdir":
        return ("mkdir", f"/w{number}/dir")
    if kind in ("create", "symlink", "share"):
        return ("symlink" if kind == "symlink" else "create", free)
    if kind == "rename" and names:
        return ("rename", rng.choice(names), free)
    if kind == "unlink" and names:
        return ("unlink", rng.choice(names))
    if not files:
        return ("create", free)
    path = rng.choice(files)
    if kind == "xattr":
        value = rng.randbytes(rng.choice((0, 9, 700)))
        return ("xattr", path, rng.choice(("user.a", "user.b")), value)
    if kind == "truncate":
        return ("truncate", path, rng.choice((0, 1, 4096, 5000, 20_000, 60_000)))
    size = rng.choice((1, 100, 4096, 5000, 30_000))
    if kind == "append":
        return ("append", path, rng.randbytes(size))
    return ("write", path, rng.randrange(50_000), rng.randbytes(size))


LINK = b"<link>"


def expect(model: Model, op: Op) -> Model:
    """What an operation makes of the files; a call that fails changes nothing."""
    new = dict(model)
    kind, path = op[0], op[1]
    if kind == "create":
        new.setdefault(path, (b"", ()))
    elif kind == "symlink":
        new.setdefault(path, (LINK, ()))
    elif kind == "unlink":
        del new[path]
    elif kind == "rename" and path != op[2]:
        new[op[2]] = new.pop(path)
    elif kind == "xattr":
        data, attributes = new[path]
        new[path] = (data, tuple(sorted({**dict(attributes), op[2]: op[3]}.items())))
    elif kind == "truncate":
        data, attributes = new[path]
        new[path] = (data[: op[2]].ljust(op[2], b"\0"), attributes)
    elif kind in ("write", "append"):
        data, attributes = new[path]
        at = op[2] if kind == "write" else len(data)
        data = data.ljust(at, b"\0")
        new[path] = (data[:at] + op[-1] + data[at + len(op[-1]) :], attributes)
    return new


def perform(fs: Any, op: Op) -> None:
    """Do an operation: one call that changes something."""
    kind, path = op[0], op[1]
    try:
        if kind == "create":
            fs.os_open(path, os.O_CREAT | os.O_RDWR).close()
        elif kind == "symlink":
            fs.symlink("to/nowhere" * 20, path)
        elif kind == "unlink":
            fs.unlink(path)
        elif kind == "rename":
            fs.rename(path, op[2])
        elif kind == "xattr":
            fs.setxattr(path, op[2], op[3])
        elif kind == "truncate":
            fs.truncate(path, op[2])
        elif kind == "mkdir":
            if fs.exists(path):
                fs.rmdir(path)
            else:
                fs.make_dir(path)
        elif kind == "share":
            share(fs, *op[1:])
        else:
            flags = os.O_RDWR | (os.O_APPEND if kind == "append" else 0)
            with fs.os_open(path, flags) as file:
                if kind == "append":
                    file.write(op[2])
                else:
                    file.pwrite(op[3], op[2])
    except (FileExistsError, FileNotFoundError):
        if kind not in ("create", "symlink", "share"):
            raise


def share(fs: Any, what: str, one: int, other: int) -> None:
    """Something with names that all workers fight over; whether it works is up to the others."""
    path = f"/shared/x{one}"
    if what == "create":
        with fs.os_open(path, os.O_CREAT | os.O_RDWR) as file:
            file.pwrite(b"x" * 9000, 0)
    elif what == "unlink":
        fs.unlink(path)
    else:
        fs.rename(path, f"/shared/x{other}")


class Board:
    """Words in shared memory: control, a record for each worker, and the snapshots there are."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 1 << 16)
        self.words = memoryview(self.memory).cast("Q")

    def record(self, number: int) -> memoryview:
        start = CONTROL + number * RECORD
        return self.words[start : start + RECORD]

    @property
    def snapshots(self) -> memoryview:
        start = CONTROL + (WORKERS + 1) * RECORD
        return self.words[start : start + 2 * IDS]

    def rest(self, record: memoryview) -> None:
        """Wait as long as the test wants everybody to; ends the process when it is time."""
        if self.words[STOP]:
            os._exit(0)
        while self.words[PAUSE]:
            record[PAUSED] = 1
            time.sleep(0.0005)
            if self.words[STOP]:
                os._exit(0)
        record[PAUSED] = 0

    def called(self, record: memoryview, start: int, code: int) -> None:
        """A call returned."""
        took = time.monotonic_ns() - start
        if took > record[LONGEST]:
            record[LONGEST], record[LONGEST_OP] = took, code
        record[RETURNED] += 1


def own_core(run: Run, role: str, cpu: int) -> Any:
    """A `Core` in a child, instead of the one that it got of its parent."""
    fs = run.arena.attach(role, cpu)
    run.fs.close()
    return fs


def work(run: Run, number: int, seed: int) -> None:
    """A worker's life."""
    board, model = run.board, run.models[number]
    fs = own_core(run, "worker", number)
    rng = random.Random(seed)
    record = board.record(number)
    while True:
        op = choose(rng, number, model, run.alone)
        board.rest(record)
        start = time.monotonic_ns()
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
        start = time.monotonic_ns()
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
        self.board = Board()
        self.models: list[Model] = [{} for _ in range(WORKERS)]
        self.rngs: list[random.Random] = [random.Random() for _ in range(WORKERS)]
        self.done = [0] * WORKERS
        self.pids: list[int] = [0] * (WORKERS + 1)
        self.frozen: dict[int, Any] = {}
        self.fs.make_dir("/shared")
        for number in range(WORKERS):
            self.fs.make_dir(f"/w{number}")
        for number in range(WORKERS + 1):
            self.start(number)

    def start(self, number: int) -> None:
        seed = self.rng.getrandbits(32)
        record = self.board.record(number)
        record[PAUSED] = 0
        if number == WORKERS:
            self.pids[number] = fork(keep, self, seed)
            return
        record[RETURNED] = 0
        self.done[number] = 0
        self.rngs[number] = random.Random(seed)
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

    def advance(self, number: int) -> Model:
        """The files of a worker after all its calls that returned."""
        returned = self.board.record(number)[RETURNED]
        while self.done[number] < returned:
            op = choose(self.rngs[number], number, self.models[number], self.alone)
            self.models[number] = expect(self.models[number], op)
            self.done[number] += 1
        return self.models[number]

    def files(self, number: int) -> Model:
        """The files of a worker, as they are."""
        found: Model = {}
        for directory in (f"/w{number}", "/shared"):
            for name, _, dtype in self.fs.scan(directory):
                if dtype == 4 or not name.startswith(f"w{number}-"):
                    continue
                path = f"{directory}/{name}"
                if dtype == 10:
                    assert self.fs.readlink(path) == "to/nowhere" * 20
                    found[path] = (
                        LINK,
                        tuple(
                            (key, self.fs.getxattr(path, key, follow_symlinks=False))
                            for key in sorted(self.fs.listxattr(path, follow_symlinks=False))
                        ),
                    )
                    continue
                keys = sorted(self.fs.listxattr(path))
                attributes = tuple((key, self.fs.getxattr(path, key)) for key in keys)
                with self.fs.os_open(path, os.O_RDONLY) as file:
                    found[path] = (file.pread(1 << 20, 0), attributes)
        return found

    def look(self, number: int, *, died: bool = False) -> None:
        """Compare a worker's files with what they must be."""
        model = self.advance(number)
        found = self.files(number)
        if died and found != model:
            op = choose(self.rngs[number], number, model, self.alone)
            self.models[number] = after = expect(model, op)
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
            # Inside an operation it may hold a lock of the whole arena's, for nanoseconds.
            mine = [slot for slot in run.fs.slots() if slot["pid"] == stopped]
            if all(slot["locks"] <= 1 for slot in mine):
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

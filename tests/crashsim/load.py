"""Seeded load on a file system, of which is known what each worker's files must be.

Each worker changes files of its own, in a directory of its own and in one that all share, by a
seeded sequence of operations; what it does to its own files each time is one call that changes
something. So after its death its files are as after its last operation that returned, or as after
the one that was under way. How many returned is counted in memory that outlives it (`Board`).
"""

from __future__ import annotations

import io
import mmap
import os
import random
import sys
import time
from contextlib import nullcontext
from typing import Any

NAMES = 7
WORD = 8
STORES = 1000

File = tuple[bytes, tuple[tuple[str, bytes], ...]]
Model = dict[str, File]
Op = tuple[Any, ...]
WEIGHTS = {
    "create": 3, "write": 6, "append": 3, "truncate": 3, "unlink": 2, "rename": 3, "xattr": 2,
    "symlink": 1, "share": 2, "litter": 1, "hold": 1, "mapped": 4,
}  # fmt: skip
KINDS = list(WEIGHTS)
LINK = b"<link>"
TARGET = "to/nowhere" * 20


def choose(rng: random.Random, number: int, model: Model, alone: bool = False) -> Op:
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
    if kind == "litter":
        return ("litter", f"/w{number}/litter", rng.randrange(40))
    if kind in ("create", "symlink", "share"):
        return ("symlink" if kind == "symlink" else "create", free)
    if kind == "rename" and names:
        return ("rename", rng.choice(names), free)
    if kind == "unlink" and names:
        return ("unlink", rng.choice(names))
    if not files:
        return ("create", free)
    path = rng.choice(files)
    if kind == "hold":
        return ("hold", path)
    if kind == "xattr":
        value = rng.randbytes(rng.choice((0, 9, 700)))
        return ("xattr", path, rng.choice(("user.a", "user.b")), value)
    if kind == "truncate":
        return ("truncate", path, rng.choice((0, 1, 4096, 5000, 20_000, 60_000)))
    size = rng.choice((1, 100, 4096, 5000, 30_000))
    words = len(model[path][0]) // WORD
    if kind == "mapped" and words:
        what = rng.choice(("store", "store", "write", "truncate"))
        return ("mapped", path, what, rng.randrange(words) * WORD, rng.randbytes(WORD))
    if kind == "append":
        return ("append", path, rng.randbytes(size))
    return ("write", path, rng.randrange(50_000), rng.randbytes(size))


def expect(model: Model, op: Op) -> Model:
    """What an operation makes of the files; a call that fails changes nothing."""
    new = dict(model)
    kind, path = op[0], op[1]
    if kind == "create":
        new.setdefault(path, (b"", ()))
    elif kind == "symlink":
        new.setdefault(path, (LINK, ()))
    elif kind in ("unlink", "hold"):
        del new[path]
    elif kind == "rename" and path != op[2]:
        new[op[2]] = new.pop(path)
    elif kind == "xattr":
        data, attributes = new[path]
        new[path] = (data, tuple(sorted({**dict(attributes), op[2]: op[3]}.items())))
    elif kind == "truncate":
        data, attributes = new[path]
        new[path] = (data[: op[2]].ljust(op[2], b"\0"), attributes)
    elif kind == "mapped" and op[2] == "truncate":
        data, attributes = new[path]
        new[path] = (data[: op[3]], attributes)
    elif kind in ("write", "append", "mapped"):
        data, attributes = new[path]
        at = len(data) if kind == "append" else op[-2]
        data = data.ljust(at, b"\0")
        new[path] = (data[:at] + op[-1] + data[at + len(op[-1]) :], attributes)
    return new


def perform(fs: Any, op: Op) -> None:
    """Do an operation."""
    kind, path = op[0], op[1]
    try:
        if kind == "create":
            fs.os_open(path, os.O_CREAT | os.O_RDWR).close()
        elif kind == "symlink":
            fs.symlink(TARGET, path)
        elif kind == "unlink":
            fs.unlink(path)
        elif kind == "rename":
            fs.rename(path, op[2])
        elif kind == "xattr":
            fs.setxattr(path, op[2], op[3])
        elif kind == "truncate":
            fs.truncate(path, op[2])
        elif kind == "litter":
            _litter(fs, path, op[2])
        elif kind == "share":
            _share(fs, *op[1:])
        elif kind == "mapped":
            _map(fs, *op[1:])
        elif kind == "hold":
            with fs.os_open(path, os.O_RDWR) as file:
                fs.unlink(path)
                file.pwrite(b"h" * 9000, 3)
        else:
            flags = os.O_RDWR | (os.O_APPEND if kind == "append" else 0)
            with fs.os_open(path, flags) as file:
                if kind == "append":
                    file.write(op[2])
                else:
                    file.pwrite(op[3], op[2])
    except (FileExistsError, FileNotFoundError):
        if kind not in ("create", "symlink", "share", "litter"):
            raise


def _map(fs: Any, path: str, what: str, at: int, word: bytes) -> None:
    """A store into a mapped file, of one word, which no death divides; or a change beside it.

    The word is stored often: between two of the stores a snapshot may be taken, and only the first
    one changes the file. Where files cannot be mapped it is written.
    """
    with fs.os_open(path, os.O_RDWR) as file:
        try:
            mapping = file.mmap()
        except io.UnsupportedOperation:
            mapping, what = nullcontext(), what if what == "truncate" else "write"
        with mapping:
            if what == "truncate":
                file.truncate(at)
            elif what == "write":
                file.pwrite(word, at)
            else:
                with memoryview(mapping) as view, view[at : at + WORD].cast("Q") as words:
                    for _ in range(STORES):
                        words[0] = int.from_bytes(word, sys.byteorder)


def _share(fs: Any, what: str, one: int, other: int) -> None:
    """Something with names that all workers fight over; whether it works is up to the others."""
    path = f"/shared/x{one}"
    if what == "create":
        with fs.os_open(path, os.O_CREAT | os.O_RDWR) as file:
            file.pwrite(b"x" * 9000, 0)
    elif what == "unlink":
        fs.unlink(path)
    else:
        fs.rename(path, f"/shared/x{other}")


def _litter(fs: Any, place: str, count: int) -> None:
    """A directory that grows, or goes with all that is in it. A death may leave any part of it."""
    if not fs.exists(place):
        fs.make_dir(place)
        fs.make_dir(f"{place}/sub")
        for number in range(count):
            fs.os_open(f"{place}/{number}", os.O_CREAT | os.O_RDWR).close()
        if count:
            fs.link(f"{place}/0", f"{place}/sub/again")
            fs.chmod(f"{place}/0", 0o600)
            fs.setxattr(f"{place}/0", "user.litter", b"l" * count)
            fs.removexattr(f"{place}/0", "user.litter")
        fs.rename(f"{place}/sub", f"{place}/moved")
        return
    for name, _, kind in fs.scan(place):
        if kind == 4:
            for inner, _, _ in fs.scan(f"{place}/{name}"):
                fs.unlink(f"{place}/{name}/{inner}")
            fs.rmdir(f"{place}/{name}")
        else:
            fs.unlink(f"{place}/{name}")
    fs.rmdir(place)


def files(fs: Any, number: int) -> Model:
    """The files of a worker, as they are."""
    found: Model = {}
    for directory in (f"/w{number}", "/shared"):
        for name, _, kind in fs.scan(directory):
            if kind == 4 or not name.startswith(f"w{number}-"):
                continue
            path = f"{directory}/{name}"
            keys = sorted(fs.listxattr(path, follow_symlinks=False))
            attributes = tuple((key, fs.getxattr(path, key, follow_symlinks=False)) for key in keys)
            if kind == 10:
                assert fs.readlink(path) == TARGET
                found[path] = (LINK, attributes)
                continue
            with fs.os_open(path, os.O_RDONLY) as file:
                found[path] = (file.pread(1 << 20, 0), attributes)
    return found


_schedule: dict[int, int] = {}


def clock_ns() -> int:
    """A clock that stands still while this process waits for a processor to be free.

    Who waits longer than that waits for somebody, and not for the load of the machine.
    """
    pid = os.getpid()
    if pid not in _schedule:
        # What a parent opened is the parent's.
        _schedule[pid] = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    queued = int(os.pread(_schedule[pid], 100, 0).split()[1])
    return time.monotonic_ns() - queued


# Words of a worker's record on the board, and of the board's head.
RETURNED, PAUSED, LONGEST, LONGEST_OP, DOUBTS, RECORD = 0, 1, 2, 3, 4, 64
PAUSE, STOP, CONTROL = 0, 1, 8
DOUBTS_MAX = RECORD - DOUBTS - 1
IDS = 64
LIVE, DELETING = 1, 2


class Board:
    """Words in shared memory: control, a record for each worker, and the snapshots there are."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.memory = mmap.mmap(-1, 8 * (CONTROL + workers * RECORD + 2 * IDS))
        self.words = memoryview(self.memory).cast("Q")

    def record(self, number: int) -> memoryview:
        """What is known of a worker."""
        start = CONTROL + number * RECORD
        return self.words[start : start + RECORD]

    @property
    def snapshots(self) -> memoryview:
        """Pairs of a snapshot's id and LIVE, DELETING, or 0."""
        return self.words[CONTROL + self.workers * RECORD :]

    def clear(self, number: int) -> None:
        """A new worker takes the place of one that died; how long it waited is kept."""
        record = self.record(number)
        for word in range(RECORD):
            if word not in (LONGEST, LONGEST_OP):
                record[word] = 0

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
        """A call returned that began at `start` of `clock_ns`."""
        took = max(0, clock_ns() - start)
        if took > record[LONGEST]:
            record[LONGEST], record[LONGEST_OP] = took, code
        record[RETURNED] += 1

    def undone(self, record: memoryview) -> None:
        """The call that returns next failed, and was found to have changed nothing."""
        record[DOUBTS + 1 + record[DOUBTS]] = record[RETURNED]
        record[DOUBTS] += 1


class Books:
    """What each worker's files must be: its operations are drawn once more, as far as it came."""

    def __init__(self, board: Board, workers: int, alone: bool = False) -> None:
        self.board = board
        self.alone = alone
        self.models: list[Model] = [{} for _ in range(workers)]
        self._rngs = [random.Random() for _ in range(workers)]
        self._done = [0] * workers

    def start(self, number: int, seed: int) -> None:
        """A worker begins, with the files that its predecessor had."""
        self.board.clear(number)
        self._rngs[number] = random.Random(seed)
        self._done[number] = 0

    def advance(self, number: int) -> Model:
        """The files of a worker after all its operations that returned."""
        record = self.board.record(number)
        undone = set(record[DOUBTS + 1 : DOUBTS + 1 + record[DOUBTS]].tolist())
        while self._done[number] < record[RETURNED]:
            op = self._next(number)
            if self._done[number] not in undone:
                self.models[number] = expect(self.models[number], op)
            self._done[number] += 1
        return self.models[number]

    def after_death(self, number: int) -> tuple[Op, Model]:
        """The operation that was under way, and what it would have made of the files."""
        op = self._next(number)
        return op, expect(self.models[number], op)

    def _next(self, number: int) -> Op:
        return choose(self._rngs[number], number, self.models[number], self.alone)

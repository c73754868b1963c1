"""Snapshots beside writers in several processes are moments of what these did.

Each chain of processes hands a token round: only who holds it may write, and it is handed on after
the write has returned. So record n is there only if n - 1 was acknowledged before, in another
process, on another CPU, and mostly in another file. What a chain leaves after record n is therefore
known exactly, and a snapshot must show just that, for some n between the last record acknowledged
before the snapshot was asked for and the last one begun when it was there.

It must also be complete when create has returned: what it shows if power fails just then is what it
shows later. Without a grace period an operation of its epoch could still be under way.

Reading live files one after the other gives no such moment. The test makes such naive copies too,
and requires that the same check refuses them. On the debug build the grace period, or the second
look at the epoch that it needs, is also switched off, and the same check must find that.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from crashsim.death import fork

from nova_mp.core import fs as core
from nova_mp.core.boundary import DEBUG_BUILD
from nova_mp.protocol import identity

SIZE = 96 << 20
CPUS = 4
CHAINS = 2
PROCESSES = 3
RECORDS = 1500
FILES = 4
BURST = 8
POWER_FAILS_EVERY = 8  # bursts
WORD = 8
INSPECTED = 150
LIMIT_S = 60.0
# A writer reports now and then into a pipe that holds few reports, so it cannot leave whoever takes
# the snapshots behind, however busy the machine is.
PROGRESS_EVERY = 20
REPORT = b"p" * 2048
PIPE_BYTES = 4096


class Segments:
    """The two segments of an arena, and a page of counters, inherited by forked processes.

    `medium`, if given, is the contents of PMEM after a power failure.
    """

    def __init__(self, medium: memoryview | None = None) -> None:
        self.pm = memoryview(mmap.mmap(-1, SIZE))
        if medium is None:
            core.format_arena(self.pm, cpus=CPUS)
        else:
            self.pm[:] = medium
        base, limit = core.dram_geometry(SIZE, CPUS)
        self.fd = os.memfd_create("consistency")
        os.ftruncate(self.fd, limit)
        os.posix_fallocate(self.fd, 0, base)
        self.dram = memoryview(mmap.mmap(self.fd, limit))
        core.mount(self.pm, self.dram, self.fd, cpus=CPUS)
        self.counters = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def attach(self, role: str, cpu: int) -> Any:
        return core.Core(self.pm, self.dram, self.fd, role=role, cpu=cpu % CPUS)

    def close(self) -> None:
        """Let go of it; the memory goes with the last reference."""
        os.close(self.fd)

    def begun(self, chain: int) -> int:
        """Records of the chain whose operation has begun."""
        return self.counters[2 * chain]

    def acknowledged(self, chain: int) -> int:
        """Records of the chain whose operation has returned."""
        return self.counters[2 * chain + 1]


# ------------------------------------------------------------------------- what a chain writes


def folder(chain: int) -> str:
    return f"/chain{chain}"


def place(chain: int, number: int) -> tuple[str, int]:
    """How record `number` is written, and which of the files it concerns."""
    chosen = random.Random(chain << 32 | number)
    ways = ("append", "append", "create", "rename", "xattr", "large")
    return chosen.choice(ways), chosen.randrange(FILES)


def holder(chain: int, number: int) -> int:
    """Which process of the chain writes record `number`."""
    return random.Random(number << 8 | chain).randrange(PROCESSES)


def prepare(fs: Any, chain: int) -> None:
    top = folder(chain)
    for path in (top, f"{top}/made", f"{top}/moved"):
        fs.make_dir(path)
    for index in range(FILES):
        for name in (f"log{index}", f"large{index}", f"xattr{index}", f"moved/{index}-none"):
            fs.open(f"{top}/{name}", "xb").close()


def write(fs: Any, chain: int, number: int, before: str) -> None:
    """Write record `number`; `before` is the name that a rename takes away."""
    top = folder(chain)
    way, index = place(chain, number)
    if way == "append":
        with fs.open(f"{top}/log{index}", "ab") as file:
            file.write(number.to_bytes(WORD, "big"))
    elif way == "create":
        fs.open(f"{top}/made/{number}", "xb").close()
    elif way == "rename":
        fs.rename(f"{top}/moved/{before}", f"{top}/moved/{index}-{number}")
    elif way == "xattr":
        fs.setxattr(f"{top}/xattr{index}", "user.record", b"%d" % number)
    else:
        # Several blocks in one operation: it is in a snapshot whole or not at all.
        with fs.open(f"{top}/large{index}", "r+b") as file:
            file.pwrite(number.to_bytes(WORD, "big") * (3 * 4096 // WORD), 0)


class State:
    """What a chain has left after its first records, grown record by record."""

    def __init__(self, chain: int) -> None:
        self.chain = chain
        self.logs: list[list[int]] = [[] for _ in range(FILES)]
        self.made: set[str] = set()
        self.moved = [f"{index}-none" for index in range(FILES)]
        self.xattrs: list[int | None] = [None] * FILES
        self.large: list[int | None] = [None] * FILES

    def add(self, number: int) -> str:
        """Take in record `number`; gives back the name that its rename takes away, or nothing."""
        way, index = place(self.chain, number)
        if way == "append":
            self.logs[index].append(number)
        elif way == "create":
            self.made.add(str(number))
        elif way == "rename":
            gone, self.moved[index] = self.moved[index], f"{index}-{number}"
            return gone
        elif way == "xattr":
            self.xattrs[index] = number
        else:
            self.large[index] = number
        return ""

    def shown(self) -> tuple[Any, ...]:
        """The same as `look` finds it."""
        logs = tuple(map(tuple, self.logs))
        moved = tuple(sorted(self.moved))
        return (logs, tuple(sorted(self.made)), moved, tuple(self.xattrs), tuple(self.large))


def words(data: bytes) -> list[int]:
    assert len(data) % WORD == 0, "part of a record"
    return [int.from_bytes(data[at : at + WORD], "big") for at in range(0, len(data), WORD)]


def look(fs: Any, chain: int, pause: Callable[[], None] = lambda: None) -> tuple[Any, ...]:
    """All records of a chain in a file system or snapshot; `pause` comes halfway."""
    top = folder(chain)
    logs, large, xattrs = [], [], []
    made = tuple(sorted(fs.listdir(f"{top}/made")))
    for index in range(FILES):
        if index == FILES // 2:
            pause()
        with fs.open(f"{top}/log{index}", "rb") as file:
            logs.append(tuple(words(file.read())))
        with fs.open(f"{top}/large{index}", "rb") as file:
            found = set(words(file.read()))
        assert len(found) < 2, "an operation is there in part"
        large.append(found.pop() if found else None)
        named = fs.listxattr(f"{top}/xattr{index}")
        value = fs.getxattr(f"{top}/xattr{index}", "user.record") if named else None
        xattrs.append(None if value is None else int(value))
    moved = tuple(sorted(fs.listdir(f"{top}/moved")))
    return (tuple(logs), made, moved, tuple(xattrs), tuple(large))


def newest(shown: tuple[Any, ...]) -> int:
    """The highest record of a chain that is there; -1 if there is none."""
    logs, made, moved, xattrs, large = shown
    numbers = [number for log in logs for number in log] + [int(name) for name in made]
    numbers += [int(end) for name in moved if (end := name.partition("-")[2]) != "none"]
    numbers += [number for number in (*xattrs, *large) if number is not None]
    return max(numbers, default=-1)


# ------------------------------------------------------------------------------- the processes


def chain_process(segments: Segments, chain: int, own: int, pipes: list[Any], told: int) -> None:
    """Write the records whose turn is this process's; the token comes as a byte in its pipe."""
    state = State(chain)
    names = [state.add(number) for number in range(RECORDS)]
    with segments.attach("client", own + chain * PROCESSES) as fs:
        for number in range(RECORDS):
            if holder(chain, number) != own:
                continue
            if number and holder(chain, number - 1) != own:
                assert os.read(pipes[own][0], 1) == b"t"
            segments.counters[2 * chain] = number + 1
            write(fs, chain, number, names[number])
            segments.counters[2 * chain + 1] = number + 1
            if number % PROGRESS_EVERY == 0:
                assert os.write(told, REPORT) == len(REPORT)
            if number + 1 < RECORDS and holder(chain, number + 1) != own:
                os.write(pipes[holder(chain, number + 1)][1], b"t")


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that stand still, wherever they are; those that have ended are left alone."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    yield
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def writers(segments: Segments) -> Iterator[tuple[int, list[int]]]:
    """All chains at work; gives a descriptor that has a report for every few records, and an end;
    and the writers' pids.

    A writer with a full pipe before it waits.
    """
    listen, told = os.pipe()
    fcntl.fcntl(told, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    pids, pipes = [], []
    try:
        for chain in range(CHAINS):
            own = [os.pipe() for _ in range(PROCESSES)]
            pipes += own
            for number in range(PROCESSES):
                pids.append(fork(chain_process, segments, chain, number, own, told))
        os.close(told)
        yield listen, pids
        pidfds = [os.pidfd_open(pid) for pid in pids]
        assert identity.wait_dead(pidfds, LIMIT_S), "the writers do not end"
        for pidfd in pidfds:
            os.close(pidfd)
        assert [os.waitpid(pids.pop(), 0)[1] for _ in list(pids)] == [0] * CHAINS * PROCESSES
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for pair in pipes:
            os.close(pair[0])
            os.close(pair[1])
        os.close(listen)


class Judge:
    """Compares what is seen of a chain with what there was after each record."""

    def __init__(self) -> None:
        self.moments: list[dict[int, tuple[Any, ...]]] = []
        for chain in range(CHAINS):
            state = State(chain)
            moments = {-1: state.shown()}
            for number in range(RECORDS):
                state.add(number)
                moments[number] = state.shown()
            self.moments.append(moments)

    def fault(self, chain: int, shown: tuple[Any, ...]) -> str:
        """What is wrong, or nothing: it must be what there was after the newest record it has."""
        last = newest(shown)
        wanted = self.moments[chain][last]
        if shown == wanted:
            return ""
        parts = ("logs", "made", "moved", "xattrs", "large")
        odd = [name for name, a, b in zip(parts, shown, wanted, strict=True) if a != b]
        return f"chain {chain} has record {last}, but not all before it: {odd}"


def progress(listen: int) -> bool:
    """Wait for the next report; False when the writers have ended."""
    assert select.select([listen], [], [], LIMIT_S)[0], "a writer is stuck"
    return bool(os.read(listen, len(REPORT)))


@dataclass
class Taken:
    """A snapshot, and how far each chain was just before it was asked for, and just after."""

    epoch_id: int
    before: list[int]
    after: list[int]


class Observer:
    """Takes snapshots as fast as it can, and judges them; `faults` says what is wrong with them."""

    def __init__(self, segments: Segments, fs: Any, judge: Judge) -> None:
        self.segments, self.fs, self.judge = segments, fs, judge
        self.taken: list[Taken] = []
        self.shown: dict[tuple[int, int], tuple[Any, ...]] = {}
        self.faults: list[str] = []

    def counts(self, count: Callable[[int], int]) -> list[int]:
        return [count(chain) for chain in range(CHAINS)]

    def burst(self, pids: list[int]) -> None:
        """Several snapshots one after the other, then look into one of them."""
        for _ in range(BURST):
            before = self.counts(self.segments.acknowledged)
            epoch_id = self.fs.snapshot_create(None)
            after = self.counts(self.segments.begun)
            self.taken.append(Taken(epoch_id, before, after))
        bursts = len(self.taken) // BURST
        if bursts % POWER_FAILS_EVERY == 0:
            self.power_fails(pids)
        self.inspect(self.fs, self.taken[-1 - bursts % BURST])

    def power_fails(self, pids: list[int]) -> None:
        """Look at the last snapshot as it is when power fails just after it was taken."""
        with stopped(pids):
            after = Segments(self.segments.pm)
        with after.attach("coordinator", 0) as fs:
            self.inspect(fs, self.taken[-1])
        after.close()

    def inspect(self, fs: Any, taken: Taken) -> None:
        with fs.snapshot_open(taken.epoch_id) as view:
            for chain in range(CHAINS):
                try:
                    fault = self.fault(taken, chain, look(view, chain))
                except AssertionError as torn:
                    fault = str(torn)
                if fault:
                    self.faults.append(f"{taken}: {fault}")

    def fault(self, taken: Taken, chain: int, shown: tuple[Any, ...]) -> str:
        """What is wrong with what a snapshot shows of a chain, or nothing."""
        count = newest(shown) + 1
        if self.shown.setdefault((taken.epoch_id, chain), shown) != shown:
            return f"chain {chain} has changed: it has {count} records now"
        if count < taken.before[chain]:
            return "an acknowledged record is not there"
        if count > taken.after[chain]:
            return "a record is there that began later"
        return self.judge.fault(chain, shown)

    def look_again(self) -> None:
        """At all that were looked at, and others, now that nobody writes."""
        seen = {epoch_id for epoch_id, _ in self.shown}
        others = [taken for taken in self.taken if taken.epoch_id not in seen]
        chosen = random.Random(1).sample(others, min(INSPECTED, len(others)))
        for taken in [taken for taken in self.taken if taken.epoch_id in seen] + chosen:
            self.inspect(self.fs, taken)

    def naive(self, listen: int) -> str:
        """What the judge says of a live chain that was read file by file, with a pause."""

        def pause() -> None:
            # Half of the files are read; the other half is when the writers have gone on.
            goal = self.segments.acknowledged(0) + PROGRESS_EVERY
            while self.segments.acknowledged(0) < goal:
                assert progress(listen), "the writers were too quick"

        try:
            return self.judge.fault(0, look(self.fs, 0, pause))
        except AssertionError as torn:
            return str(torn)


@pytest.fixture
def segments() -> Iterator[Segments]:
    made = Segments()
    yield made
    made.close()


def observed(segments: Segments) -> Observer:
    """Snapshots taken while the chains are at work, all of them judged, and judged again."""
    with segments.attach("coordinator", 0) as fs:
        for chain in range(CHAINS):
            prepare(fs, chain)
    judge = Judge()
    with writers(segments) as (listen, pids), segments.attach("coordinator", 0) as fs:
        observer = Observer(segments, fs, judge)
        refused = [observer.naive(listen) for _ in range(3)]
        assert all(refused), refused
        while progress(listen):
            observer.burst(pids)
    observer.fs = segments.attach("coordinator", 0)
    observer.look_again()
    return observer


def test_no_snapshot_has_a_record_without_those_before_it(segments: Segments) -> None:
    observer = observed(segments)
    assert not observer.faults, observer.faults[:5]
    taken = observer.taken
    assert len(taken) > RECORDS // PROGRESS_EVERY * BURST
    assert len({tuple(each.after) for each in taken}) > RECORDS // PROGRESS_EVERY // 2
    with observer.fs as fs:
        for chain in range(CHAINS):
            shown = look(fs, chain)
            assert newest(shown) == RECORDS - 1
            assert not observer.judge.fault(chain, shown)
        for each in taken:
            fs.snapshot_delete(each.epoch_id)
        while fs.reclaim():
            continue
        assert fs.stats()["blocks"]["held"] == 0


@pytest.mark.parametrize("protection", ["grace", "second-look"])
def test_the_check_fails_without_a_protection(
    segments: Segments, monkeypatch: pytest.MonkeyPatch, protection: str
) -> None:
    """The debug build can do without it; the ordinary build does not know how to."""
    monkeypatch.setenv("NOVA_MP_WITHOUT", protection)
    observer = observed(segments)
    observer.fs.close()
    if DEBUG_BUILD:
        assert any("has changed" in fault for fault in observer.faults), observer.faults[:5]
    else:
        assert not observer.faults, observer.faults[:5]


def test_the_judge_notices_a_record_that_is_missing() -> None:
    judge = Judge()
    for number in (5, 400, RECORDS - 1):
        shown = judge.moments[1][number]
        assert newest(shown) == number
        assert not judge.fault(1, shown)
        logs = list(shown[0])
        index = max(range(FILES), key=lambda at: len(logs[at]))
        logs[index] = logs[index][:-1]
        assert judge.fault(1, (tuple(logs), *shown[1:])) or newest(shown) == shown[0][index][-1]

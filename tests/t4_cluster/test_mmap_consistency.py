"""Snapshots of mapped arrays and ordinary files, stored to by several processes, are moments.

Each chain of processes hands a token round. Its holder looks whether the last value of the step
before is visible, and then makes a step of its own: numbered values stored one after the other into
pages of a mapped array, by a compiled loop; one value written to an ordinary file; or one written
to a file that is mapped. So value n is stored only after n - 1 was visible, across pages, files and
processes, and what a chain has left at any moment follows from the newest value in it. A snapshot,
taken by a running engine's coordinator while all of that goes on, must show just such a moment, and
one between the call and the return of create.

Looking at live arrays one after the other gives no such moment, and the same check must refuse it.
On the debug build pages can be protected one at a time without holding back the faults
(NOVA_MP_WITHOUT=hold): then it must refuse snapshots too.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from crashsim.death import fork

import nova_mp
from nova_mp.core.fs import DEBUG_BUILD
from nova_mp.protocol import identity

np = pytest.importorskip("numpy")

SNAPSHOTS = 10_000 if os.environ.get("NOVA_MP_TORTURE", "0") not in ("", "0") else 200
SEED = int(os.environ.get("NOVA_MP_SEED", "1"))
CHAINS = 2
PROCESSES = 3
ARRAYS = 3
PLAIN = 2
PAGES = 96
VALUES = 32
"""Of a step; each goes to another page."""
TABLE = 1024
AT_ONCE = 8
"""Snapshots that are taken one right after the other, before they are looked at."""
LIMIT_S = 60.0
WORD = 8
STOP = 2 * CHAINS


@dataclass(frozen=True)
class Step:
    """What a step of a chain does; step s ends with value (s + 1) * VALUES."""

    kind: str
    target: int
    at: Any
    places: Any
    holder: int


class Plan:
    """The steps of a chain, the same in every process: a table that is gone through in a circle."""

    def __init__(self, chain: int) -> None:
        chosen = random.Random(SEED << 8 | chain)
        self.top = f"/chain{chain}"
        order = [chosen.sample(range(PAGES), PAGES) for _ in range(ARRAYS)]
        # One word in each page, not the same in all.
        self.words = [np.array([page * 512 + page * 37 % 512 for page in one]) for one in order]
        self.table = [self._step(chosen) for _ in range(TABLE)]

    def _step(self, chosen: random.Random) -> Step:
        kind = chosen.choice(("store",) * 4 + ("write", "write in place"))
        target = chosen.randrange(PLAIN if kind == "write" else ARRAYS)
        start = chosen.randrange(PAGES)
        at = np.arange(start, start + (VALUES if kind == "store" else 1)) % PAGES
        return Step(kind, target, at, self.words[target][at], chosen.randrange(PROCESSES))

    def __getitem__(self, number: int) -> Step:
        return self.table[number % TABLE]

    def array(self, index: int) -> str:
        """Path of an array that is mapped."""
        return f"{self.top}/array{index}"

    def plain(self, index: int) -> str:
        """Path of a file that is not."""
        return f"{self.top}/plain{index}"

    def prepare(self, fs: Any) -> None:
        fs.mkdir(self.top)
        for index in range(ARRAYS):
            fs.write_bytes(self.array(index), bytes(PAGES * 4096))
        for index in range(PLAIN):
            fs.write_bytes(self.plain(index), bytes(WORD))


# ------------------------------------------------------------------------------- the processes


class Chain:
    """One process's hands on a chain: its files open, its arrays mapped."""

    def __init__(self, plan: Plan, fs: Any, stack: ExitStack) -> None:
        self.plan = plan
        self.files = [stack.enter_context(fs.open(plan.array(i), "r+b")) for i in range(ARRAYS)]
        self.plain = [stack.enter_context(fs.open(plan.plain(i), "r+b")) for i in range(PLAIN)]
        self.arrays = [np.frombuffer(file.mmap(), dtype="<u8") for file in self.files]

    def visible(self, number: int) -> int:
        """The last value of a step that has been made."""
        step = self.plan[number]
        if step.kind == "write":
            return int.from_bytes(self.plain[step.target].pread(WORD, 0), "little")
        return int(self.arrays[step.target][step.places[-1]])

    def make(self, number: int) -> None:
        step = self.plan[number]
        last = (number + 1) * VALUES
        if step.kind == "store":
            # A loop of NumPy's, in this order, at the speed of the machine.
            self.arrays[step.target][step.places] = np.arange(last - VALUES + 1, last + 1)
        elif step.kind == "write":
            self.plain[step.target].pwrite(last.to_bytes(WORD, "little"), 0)
        else:
            file = self.files[step.target]
            file.pwrite(last.to_bytes(WORD, "little"), int(step.places[-1]) * WORD)


def chain_process(name: str, counters: Any, chain: int, own: int, pipes: list[Any]) -> None:
    """Make the steps that are this process's, from the token in its pipe to the next holder's."""
    plan = Plan(chain)
    with nova_mp.attach(name, title=f"chain{chain}.{own}") as fs, ExitStack() as stack:
        hands = Chain(plan, fs, stack)
        while True:
            number = int.from_bytes(os.read(pipes[own][0], WORD), "little")
            while plan[number].holder == own and not counters[STOP]:
                assert number == 0 or hands.visible(number - 1) == number * VALUES
                counters[2 * chain] = number + 1
                hands.make(number)
                counters[2 * chain + 1] = number + 1
                number += 1
            if counters[STOP]:
                break
            os.write(pipes[plan[number].holder][1], number.to_bytes(WORD, "little"))
        for _, told in pipes:
            os.write(told, bytes(WORD))
        # Before the arena is left; nothing must refer to a mapping then.
        del hands


@contextmanager
def chains_at_work(name: str) -> Iterator[Any]:
    """All chains; gives what counts the steps that have begun and ended. They end with it."""
    counters = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
    pids: list[int] = []
    pipes = [[os.pipe() for _ in range(PROCESSES)] for _ in range(CHAINS)]
    try:
        for chain in range(CHAINS):
            for own in range(PROCESSES):
                arguments = (name, counters, chain, own, pipes[chain])
                pids.append(fork(chain_process, *arguments))
            os.write(pipes[chain][Plan(chain)[0].holder][1], bytes(WORD))
        yield counters
        counters[STOP] = 1
        pidfds = [os.pidfd_open(pid) for pid in pids]
        assert identity.wait_dead(pidfds, LIMIT_S), "the chains do not end"
        for pidfd in pidfds:
            os.close(pidfd)
        assert [os.waitpid(pids.pop(), 0)[1] for _ in list(pids)] == [0] * CHAINS * PROCESSES
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for read, write in (pair for one in pipes for pair in one):
            os.close(read)
            os.close(write)


# -------------------------------------------------------------------------------------- judging


class State:
    """What a chain has left after a value.

    A round through the table stores to every word. So the values that are there come from the last
    TABLE steps, and are the same in each round but for what was added since the round before.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        words = np.full((ARRAYS + 1, PAGES), -2 * TABLE * VALUES, dtype="<i8")
        words[ARRAYS, PLAIN:] = 0
        self.after = np.empty((TABLE, *words.shape), dtype="<i8")
        for number in range(-TABLE, TABLE):
            self._add(words, number, VALUES)
            self.after[number] = words
        assert words.min() > -TABLE * VALUES, "a round does not reach every word"

    def at(self, newest: int) -> tuple[Any, ...]:
        """After value `newest`, as `look` finds it."""
        steps, part = divmod(newest, VALUES)
        words = np.zeros_like(self.after[0])
        if steps:
            round_began = (steps - 1) // TABLE * TABLE * VALUES
            words = np.maximum(self.after[(steps - 1) % TABLE] + round_began, 0)
            words[ARRAYS, PLAIN:] = 0
        self._add(words, steps, part)
        arrays = tuple(words[index].tobytes() for index in range(ARRAYS))
        return arrays, tuple(words[ARRAYS, :PLAIN].tolist())

    def _add(self, words: Any, number: int, count: int) -> None:
        step = self.plan[number]
        last = (number + 1) * VALUES
        if step.kind == "store":
            first = last - VALUES + 1
            words[step.target][step.at[:count]] = np.arange(first, first + count)
        elif count == VALUES:
            target = (ARRAYS, step.target) if step.kind == "write" else (step.target, step.at)
            words[target] = last


def look(fs: Any, plan: Plan, mapped: bool, between: Callable[[], None]) -> tuple[Any, ...]:
    """The words of a chain in a file system or a snapshot; `between` comes after each array."""
    arrays = []
    for index in range(ARRAYS):
        with fs.open(plan.array(index), "rb") as file:
            if mapped:
                with file.mmap(writable=False) as mapping:
                    data = np.frombuffer(mapping, dtype="<u8")[plan.words[index]].tobytes()
            else:
                data = np.frombuffer(file.read(), dtype="<u8")[plan.words[index]].tobytes()
        arrays.append(data)
        between()
    plain = [fs.read_bytes(plan.plain(index)) for index in range(PLAIN)]
    return tuple(arrays), tuple(int.from_bytes(data, "little") for data in plain)


def newest(shown: tuple[Any, ...]) -> int:
    """The highest value of a chain that is there; 0 if there is none."""
    return max(*(int(np.frombuffer(data, "<u8").max()) for data in shown[0]), *shown[1])


@dataclass
class Taken:
    """A snapshot, how far the chains were before and after, and what was seen in it."""

    epoch_id: int
    ended: list[int]
    begun: list[int]
    shown: list[Any]


class Observer:
    """Takes snapshots as fast as it can, and judges them."""

    def __init__(self, fs: Any, counters: Any) -> None:
        self.fs, self.counters = fs, counters
        self.plans = [Plan(chain) for chain in range(CHAINS)]
        self.states = [State(plan) for plan in self.plans]
        self.faults: list[str] = []
        self.moments: set[tuple[int, ...]] = set()
        self.taken = 0
        self.before: list[Taken] = []

    def counts(self, which: int) -> list[int]:
        return [self.counters[2 * chain + which] for chain in range(CHAINS)]

    def several(self) -> None:
        """Some snapshots; each is looked at twice, with those of the next call in between."""
        taken = []
        for _ in range(AT_ONCE):
            ended = self.counts(1)
            epoch_id = self.fs.snapshots.create().epoch_id
            taken.append(Taken(epoch_id, ended, self.counts(0), []))
        self.taken += AT_ONCE
        for each in taken:
            self.judge(each)
        self.forget()
        self.before = taken

    def shown(self, taken: Taken, mapped: bool) -> list[Any]:
        with self.fs.snapshots.open(taken.epoch_id) as view:
            return [look(view, plan, mapped, lambda: None) for plan in self.plans]

    def judge(self, taken: Taken) -> None:
        taken.shown = self.shown(taken, taken.epoch_id % 3 == 0)
        values = [newest(shown) for shown in taken.shown]
        for chain, value in enumerate(values):
            self.compare(chain, value, taken.shown[chain])
            if value < taken.ended[chain] * VALUES:
                self.faults.append(f"{value} is the last, {taken.ended[chain]} steps had ended")
            if value > taken.begun[chain] * VALUES:
                self.faults.append(f"{value} is there, {taken.begun[chain]} steps had begun")
        self.moments.add(tuple(values))

    def compare(self, chain: int, value: int, shown: Any) -> None:
        wanted = self.states[chain].at(value)
        if shown != wanted:
            parts = [*zip(shown[0], wanted[0], strict=True), *zip(shown[1], wanted[1], strict=True)]
            odd = [at for at, (a, b) in enumerate(parts) if a != b]
            self.faults.append(f"chain {chain} has {value}, but not all before it; files {odd}")

    def forget(self) -> None:
        """Look at the snapshots of before again, and delete them."""
        for each in self.before:
            if self.shown(each, each.epoch_id % 5 == 0) != each.shown:
                self.faults.append(f"snapshot {each.epoch_id} has changed")
            self.fs.snapshots.delete(each.epoch_id)
        self.before = []

    def naive(self) -> str:
        """What the check says of live arrays, read one after the other while the chain goes on."""

        def between() -> None:
            goal = self.counters[0] + 20
            while self.counters[0] < goal:
                os.sched_yield()

        shown = look(self.fs, self.plans[0], True, between)
        self.compare(0, newest(shown), shown)
        return self.faults.pop() if self.faults else ""


# ---------------------------------------------------------------------------------------- tests


@contextmanager
def observed(name: str) -> Iterator[Observer]:
    """An engine of its own with the chains at work in it."""
    nova_mp.mkfs(name, size=192 << 20, cpus=2)
    try:
        with nova_mp.start(name), nova_mp.attach(name) as fs:
            for chain in range(CHAINS):
                Plan(chain).prepare(fs)
            with chains_at_work(name) as counters:
                yield Observer(fs, counters)
            fs.snapshots.wait(LIMIT_S)
            assert fs.stats()["blocks"]["held"] == 0
    finally:
        nova_mp.destroy(name, force=True)


def test_no_snapshot_has_a_value_without_those_before_it(arena_prefix: str) -> None:
    with observed(f"{arena_prefix}chains") as observer:
        refused = [observer.naive() for _ in range(3)]
        assert all("not all before it" in fault for fault in refused), refused
        while observer.taken < SNAPSHOTS and not observer.faults:
            observer.several()
        observer.forget()
    assert not observer.faults, (observer.faults[:5], f"NOVA_MP_SEED={SEED}")
    # The chains went on all the time: hardly two snapshots are alike.
    assert len(observer.moments) > SNAPSHOTS // 4


def test_the_check_fails_when_faults_are_not_held_back(
    arena_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages protected one at a time; the ordinary build does not know how to."""
    monkeypatch.setenv("NOVA_MP_WITHOUT", "hold")
    with observed(f"{arena_prefix}nohold") as observer:
        # Nearly always the first dozens are wrong already.
        most = 200 if DEBUG_BUILD else 10
        while observer.taken < most * AT_ONCE and not observer.faults:
            observer.several()
        observer.forget()
    if DEBUG_BUILD:
        assert any("not all before it" in f or "changed" in f for f in observer.faults)
    else:
        assert not observer.faults, observer.faults[:5]


def test_a_collected_log_still_tells_the_size_of_a_mapped_file(arena_prefix: str) -> None:
    """Preserving takes the pages over from the only entry that tells it."""
    name = f"{arena_prefix}size"
    nova_mp.mkfs(name, size=32 << 20, cpus=1)
    try:
        with nova_mp.start(name), nova_mp.attach(name) as fs:
            fs.write_bytes("/file", b"a" * 10_000)
            with fs.open("/file", "r+b") as file, file.mmap() as mapping:
                view = memoryview(mapping)
                for number in range(400):
                    epoch_id = fs.snapshot_create(None)
                    with fs.snapshots.open(epoch_id) as old:
                        assert old.stat("/file").st_size == 10_000
                    for page in range(3):
                        view[page * 4096] = number % 256
                    fs.snapshot_delete(epoch_id)
                view.release()
            assert fs.stats()["counters"]["gc_fast_pages"], "nothing was collected"
            fs.snapshots.wait(LIMIT_S)
        nova_mp.start(name).stop()
        with nova_mp.start(name), nova_mp.attach(name) as fs:
            assert fs.stat("/file").st_size == 10_000
            assert fs.read_bytes("/file")[4096] == 399 % 256
    finally:
        nova_mp.destroy(name, force=True)

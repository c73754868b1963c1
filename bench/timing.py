"""Fair timed loops: one attached process against the same calls of the operating system.

What makes them fair:

- the clock (`time.perf_counter_ns`) starts right before the first call and stops right after the
  last one, around N calls in one loop, so that reading the clock costs neither side anything;
- both sides' loops have the same shape; the functions and their arguments are local names, bound
  before the clock starts, and nothing is drawn, formatted or allocated in the loop;
- both sides get the same offsets or the same number of names, in the same order;
- the garbage collector is off; each side has run once, uncounted, before;
- the sides take turns, A B A B, so that a busy moment of the machine meets both.

The operating system's call is `os.pwrite` itself, never a wrapper of ours.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

Side = Callable[[], int]
"""Runs one side's loop and returns how many ns it took."""

CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL
NAMES = 512


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: ``operations`` calls a loop, at least ``target`` times the peer's rate."""

    name: str
    operation: str
    operations: int
    block_bytes: int = 4096
    working_set_bytes: int = 4096
    pattern: str = "random"
    target: float | None = None


@contextmanager
def collector_off() -> Iterator[None]:
    """The garbage collector stands still in here."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def draw_offsets(case: Case, seed: int) -> list[int]:
    """Byte offsets of the loop: permutations of all blocks, or one pass after the other."""
    blocks = list(range(0, case.working_set_bytes, case.block_bytes))
    rng = random.Random(seed)
    found: list[int] = []
    while len(found) < case.operations:
        if case.pattern == "random":
            rng.shuffle(blocks)
        found += blocks
    # Through an array, so that the numbers lie in memory in the order of the loop: fetching a
    # shuffled list's objects from all over memory took 20 to 100 ns an operation on either side.
    return array("q", found[: case.operations]).tolist()


# ----------------------------------------------------------------------------------- the loops


def _positional(call: Callable[[Any, int], Any], data: Any, offsets: Sequence[int]) -> int:
    start = perf_counter_ns()
    for offset in offsets:
        call(data, offset)
    return perf_counter_ns() - start


def _positional_os(
    call: Callable[[int, Any, int], Any], fd: int, data: Any, offsets: Sequence[int]
) -> int:
    start = perf_counter_ns()
    for offset in offsets:
        call(fd, data, offset)
    return perf_counter_ns() - start


def _create(
    create: Callable[[str, int], Any], unlink: Callable[[str], None], names: Sequence[str],
    flags: int,
) -> int:
    start = perf_counter_ns()
    for name in names:
        create(name, flags).close()
        unlink(name)
    return perf_counter_ns() - start


def _create_os(
    create: Callable[[str, int], int], close: Callable[[int], None],
    unlink: Callable[[str], None], names: Sequence[str], flags: int,
) -> int:
    start = perf_counter_ns()
    for name in names:
        close(create(name, flags))
        unlink(name)
    return perf_counter_ns() - start


def _stat(call: Callable[[str], Any], names: Sequence[str]) -> int:
    start = perf_counter_ns()
    for name in names:
        call(name)
    return perf_counter_ns() - start


# ----------------------------------------------------------------------------------- the sides


class Subject:
    """Both sides' files for one case, laid out alike; `close` takes them away again."""

    def __init__(self, case: Case, file_system: Any, root: str, peer: str, seed: int) -> None:
        self.case = case
        self.file_system = file_system
        self.root, self.peer = root, peer
        self.offsets: list[int] = []
        self.data = bytearray(random.Random(seed).randbytes(case.block_bytes))
        self.file: Any = None
        self.fd = -1
        file_system.mkdir(root, parents=True)
        os.mkdir(peer)
        if case.operation in ("pwrite", "preadinto"):
            self.offsets = draw_offsets(case, seed)
            self._lay_out()
        elif case.operation == "stat":
            for name in self._names(""):
                file_system.write_bytes(root + name, b"x")
                with open(peer + name, "wb") as file:
                    file.write(b"x")

    def _names(self, prefix: str) -> list[str]:
        count = min(NAMES, self.case.operations)
        return [f"{prefix}/name-{index:04}" for index in range(count)]

    def _loop_names(self, prefix: str) -> list[str]:
        names = self._names(prefix)
        rounds = -(-self.case.operations // len(names))
        return (names * rounds)[: self.case.operations]

    def _lay_out(self) -> None:
        """Both files whole, so that the loops overwrite and read what is there."""
        piece = random.Random(0).randbytes(1 << 20)
        self.file = self.file_system.open(self.root + "/data", "x+b")
        self.fd = os.open(self.peer + "/data", CREATE_FLAGS)
        for offset in range(0, self.case.working_set_bytes, len(piece)):
            part = piece[: self.case.working_set_bytes - offset]
            self.file.pwrite(part, offset)
            os.pwrite(self.fd, part, offset)

    def ours(self) -> Side:
        """The loop on the arena."""
        fs = self.file_system
        match self.case.operation:
            case "pwrite":
                return lambda: _positional(self.file.pwrite, self.data, self.offsets)
            case "preadinto":
                return lambda: _positional(self.file.preadinto, self.data, self.offsets)
            case "create":
                names = self._loop_names(self.root)
                return lambda: _create(fs.os_open, fs.unlink, names, CREATE_FLAGS)
            case "stat":
                names = self._loop_names(self.root)
                return lambda: _stat(fs.stat, names)
        raise ValueError(f"unknown operation {self.case.operation!r}")

    def theirs(self) -> Side:
        """The same loop on the peer's files."""
        match self.case.operation:
            case "pwrite":
                return lambda: _positional_os(os.pwrite, self.fd, self.data, self.offsets)
            case "preadinto":
                buffers = [self.data]
                return lambda: _positional_os(os.preadv, self.fd, buffers, self.offsets)
            case "create":
                names = self._loop_names(self.peer)
                return lambda: _create_os(os.open, os.close, os.unlink, names, CREATE_FLAGS)
            case "stat":
                names = self._loop_names(self.peer)
                return lambda: _stat(os.stat, names)
        raise ValueError(f"unknown operation {self.case.operation!r}")

    def close(self) -> None:
        """Close and remove the arena's files; the peer's directory belongs to the caller."""
        if self.file is not None:
            self.file.close()
        if self.fd >= 0:
            os.close(self.fd)
        with suppress(FileNotFoundError):
            self.file_system.rmtree(self.root)


def take_turns(sides: Sequence[Side], repeats: int) -> list[list[int]]:
    """Run the sides in turn, once uncounted and then ``repeats`` times; ns of each run."""
    found: list[list[int]] = [[] for _ in sides]
    with collector_off():
        for side in sides:
            side()
        for _ in range(repeats):
            for times, side in zip(found, sides, strict=True):
                times.append(side())
    return found


def compare(case: Case, ours: Sequence[int], theirs: Sequence[int]) -> dict[str, Any]:
    """The row of a case: ns per operation of both sides, and how many times faster ours is.

    ``ratio`` is the ratio of the medians; ``ratio_low`` and ``ratio_high`` are the quartiles of
    the ratios of neighbouring runs.
    """
    pairs = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    mine, other = statistics.median(ours), statistics.median(theirs)
    ratio = other / mine
    return {
        "name": case.name, "operation": case.operation, "operations": case.operations,
        "block_bytes": case.block_bytes, "working_set_bytes": case.working_set_bytes,
        "pattern": case.pattern, "repeats": len(ours),
        "nova_mp_ns": mine / case.operations, "peer_ns": other / case.operations,
        "nova_mp_runs_ns": [took / case.operations for took in ours],
        "peer_runs_ns": [took / case.operations for took in theirs],
        "ratio": ratio,
        "ratio_low": pairs[len(pairs) // 4], "ratio_high": pairs[-1 - len(pairs) // 4],
        "target": case.target, "met": None if case.target is None else ratio >= case.target,
    }

"""What stores into memory cost beside snapshots of it: the loops, and the kinds of memory.

Every kind is measured by a process of its own, by the same loops:

- freeze: all pages are stored to, then one snapshot is taken, on the clock, and dropped;
- first store: a snapshot is taken, then one word is stored to pages in random order, each store
  between two readings of the clock (`idle` is the same again, when nothing is left to do);
- rewrite: a snapshot is taken, then everything is copied over, in order; and, taking turns, the
  same bytes are copied over plain memory, shared as well: for a mapped file, its own memory, mapped
  once more as any shared memory is, since two pieces of memory differ by as much as a quarter;
- steady: the same without a snapshot;
- pause: the longest single store from just before a snapshot is taken until the next one is.

Nothing is cleaned or freed on the clock.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter_ns
from typing import Any, Protocol

from .snapload import spread, touch_all
from .snappeers import Fork
from .timing import collector_off

PAGE = 4096
LARGE_PAGE = 2 << 20
MAP_FIXED = 0x10
WORDS = PAGE // 8
LONG_NS = 1000
"""Stores that take less are not kept for the search of a pause."""


@dataclass(frozen=True, slots=True)
class MappedPlan:
    """A job file's [mapped_bench]; docs/BENCHMARKS.md says what the keys mean."""

    seed: int
    large_bytes: int
    small_bytes: int
    repeats: int
    first_stores: int
    snapshots: int
    every_ns: int
    peers: tuple[str, ...]


class Memory(Protocol):
    """Memory that snapshots can be taken of."""

    words: Any

    def take(self) -> Any:
        """Take one and return what `drop` needs."""

    def drop(self, taken: Any) -> None:
        """Let go of it, and wait until nothing is left of it."""


class Mapped:
    """A file of an arena, mapped."""

    def __init__(self, file_system: Any, path: str, size: int, stack: ExitStack) -> None:
        self.file_system = file_system
        file = stack.enter_context(file_system.open(path, "x+b"))
        file.truncate(size)
        self.words = words_of(file.mmap())

    def take(self) -> int:
        """The call that the coordinator makes, without the message."""
        return int(self.file_system.snapshot_create(None))

    def drop(self, taken: int) -> None:
        """Delete it; the cleaner's work is done here."""
        self.file_system.snapshot_delete(taken)
        while self.file_system.reclaim():
            continue


class Forked(Fork):
    """Private memory; a child keeps it as it was (copy on write)."""

    def __init__(self, size: int) -> None:
        self.words = words_of(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Plain:
    """Shared memory of tmpfs, and nothing else."""

    def __init__(self, where: str, size: int) -> None:
        self.size = size
        with open(f"{where}/{len(os.listdir(where))}", "x+b", buffering=0) as file:
            file.truncate(size)
            self.memory = mmap.mmap(file.fileno(), size)
        self.words = words_of(self.memory)
        self.words[::WORDS] = 1

    def take(self) -> None:
        """There are no snapshots of it."""

    def drop(self, taken: None) -> None:
        """Nothing to let go of."""


class Copied(Plain):
    """Shared memory; whoever stores makes a copy of it and goes on."""

    def __init__(self, where: str, size: int) -> None:
        super().__init__(where, size)
        self.copy = Plain(where, size).words

    def take(self) -> None:
        """Copy all of it into memory that is there already."""
        self.copy[:] = self.words


class Protected(Plain):
    """Shared memory, write-protected by one `mprotect`; what a store would cost is not in it."""

    def __init__(self, where: str, size: int) -> None:
        super().__init__(where, size)
        self.call = ctypes.CDLL(None, use_errno=True).mprotect
        self.at = self.words.ctypes.data

    def _protect(self, how: int) -> None:
        if self.call(ctypes.c_void_p(self.at), ctypes.c_size_t(self.size), how):
            raise OSError(ctypes.get_errno(), "mprotect")

    def take(self) -> None:
        """Make it read-only."""
        self._protect(mmap.PROT_READ)

    def drop(self, taken: None) -> None:
        """Make it writable again."""
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE)


def words_of(buffer: Any) -> Any:
    """A buffer as an array of 64-bit words."""
    import numpy

    return numpy.frombuffer(buffer, dtype=numpy.uint64)


def mapped_plainly(words: Any) -> Any:
    """The memory of `words`, or of its first piece, mapped again as any shared memory is.

    At an address like that of `words`: the rate of a copy depends on where the two lie in a page of
    2 MiB, by a tenth.
    """
    start = end = words.ctypes.data
    first, segment = 0, ""
    with open("/proc/self/maps") as maps:
        for line in maps:
            where, _, offset, _, _, *path = line.split(maxsplit=5)
            low, high = (int(part, 16) for part in where.split("-"))
            if low <= start < high:
                first, segment = int(offset, 16) + start - low, path[0].strip()
            # Write protection may have cut a piece.
            if low <= end < high and int(offset, 16) + end - low == first + end - start:
                end = high
    size = min(end - start, words.nbytes)
    room = mmap.mmap(-1, size + LARGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with open(segment, "r+b") as file:
        all_of_it = words_of(room)
        skip = (start - all_of_it.ctypes.data) % LARGE_PAGE
        there = libc_mmap()(all_of_it.ctypes.data + skip, size, mmap.PROT_READ | mmap.PROT_WRITE,
                            mmap.MAP_SHARED | MAP_FIXED, file.fileno(), first)
    if there != all_of_it.ctypes.data + skip:
        raise OSError(ctypes.get_errno(), "mmap")
    return all_of_it[skip // 8 : (skip + size) // 8]


def libc_mmap() -> Callable[..., int]:
    """mmap(2), which Python's does not let one tell where."""
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_size_t
    call.argtypes = [ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return call


# ------------------------------------------------------------------------------------ loops


def freeze(memory: Memory, repeats: int) -> dict[str, float]:
    """ns that a snapshot takes when all pages have been stored to."""
    took = []
    for _ in range(repeats + 1):
        memory.words[::WORDS] += 1
        start = perf_counter_ns()
        taken = memory.take()
        took.append(perf_counter_ns() - start)
        memory.drop(taken)
    return spread(took[1:])


def first_stores(memory: Memory, plan: MappedPlan) -> dict[str, Any]:
    """ns of the first store to a page after a snapshot, and of another one to the same page."""
    pages = list(range(len(memory.words) // WORDS))
    random.Random(plan.seed).shuffle(pages)
    places = [page * WORDS for page in pages[: plan.first_stores]]
    memory.words[::WORDS] += 1
    taken = memory.take()
    view = memoryview(memory.words)
    found = {}
    for name in ("first", "idle"):
        took = []
        for place in places:
            start = perf_counter_ns()
            view[place] = 1
            took.append(perf_counter_ns() - start)
        found[name] = spread(took)
    view.release()
    memory.drop(taken)
    return found


def copies(memory: Memory, plain: Any, repeats: int) -> dict[str, Any]:
    """Rates of copies over everything, over those of `plain` memory."""
    source = plain.copy()
    words = memory.words[: len(plain)]
    ratios: dict[str, list[float]] = {"rewrite": [], "steady": []}
    rates = []
    for turn in range(repeats + 1):
        base = _copy_ns(plain, source)
        taken = memory.take()
        after = _copy_ns(words, source)
        base = (base + _copy_ns(plain, source)) // 2
        memory.drop(taken)
        # What is protected still is not any more after this.
        _copy_ns(words, source)
        steady = []
        for _ in range(3):
            one, two = _copy_ns(plain, source), _copy_ns(words, source)
            steady += [(one, two), (_copy_ns(plain, source), two)]
        if turn:
            rates.append(plain.nbytes * 1e9 / base)
            ratios["rewrite"].append(base / after)
            ratios["steady"] += [one / other for one, other in steady]
    found = {name: statistics.median(values) for name, values in ratios.items()}
    return {**found, "plain_bytes_per_second": statistics.median(rates)}


def _copy_ns(to: Any, source: Any) -> int:
    start = perf_counter_ns()
    to[:] = source
    return perf_counter_ns() - start


def own_pauses(memory: Memory, plan: MappedPlan) -> list[int]:
    """ns that a thread is kept from storing by a snapshot it takes itself, first store included."""
    draw = random.Random(plan.seed)
    pages = len(memory.words) // WORDS
    view = memoryview(memory.words)
    found = []
    for _ in range(min(plan.snapshots, 30)):
        for _ in range(1000):
            view[draw.randrange(pages) * WORDS] = 1
        start = perf_counter_ns()
        taken = memory.take()
        view[draw.randrange(pages) * WORDS] = 1
        found.append(perf_counter_ns() - start)
        memory.drop(taken)
    view.release()
    return found


def long_stores(words: Any, seed: int, stop: Callable[[], bool]) -> list[tuple[int, int]]:
    """Stores to pages in random order until told to stop: (start, ns) of all that took long."""
    pages = list(range(len(words) // WORDS))
    random.Random(seed).shuffle(pages)
    view = memoryview(words)
    found = []
    while not stop():
        for page in pages[:4096]:
            start = perf_counter_ns()
            view[page * WORDS] = 1
            end = perf_counter_ns()
            if end - start > LONG_NS:
                found.append((start, end - start))
        pages = pages[4096:] + pages[:4096]
    view.release()
    return found


# -------------------------------------------------------------------------------- processes


def mapped_main(
    pipe: Connection, where: str, name: str, plan: MappedPlan, protection: str
) -> None:
    """A process that maps files of an arena: measures, then stores until it is told to stop.

    What lies in the directory `where` the parent removes: this process may be killed.
    """
    import nova_mp

    os.environ["NOVA_MP_MMAP_PROTECTION"] = protection
    with collector_off(), nova_mp.attach(name) as file_system, ExitStack() as stack:
        touch_all(file_system)
        found = _measured(plan, lambda size: Mapped(file_system, f"/{size}", size, stack), where)
        memory = Mapped(file_system, "/pause", plan.large_bytes, stack)
        memory.words[::WORDS] = 1
        # Whoever stopped the run does not want the answers any more.
        with suppress(EOFError, ConnectionError):
            pipe.send(("ok", found))
            pipe.recv()
            pipe.send(("ok", None))
            stores = long_stores(memory.words, plan.seed, pipe.poll)
            pipe.recv()
            pipe.send(("ok", stores))
            pipe.recv()
        del memory


def memory_main(pipe: Connection, where: str, kind: str, plan: MappedPlan) -> None:
    """A process with memory of another kind; the directory `where` is as in `mapped_main`."""
    with collector_off():
        if kind == "mprotect":
            large = Protected(where, plan.large_bytes)
            pipe.send(("ok", {"freeze": freeze(large, plan.repeats)}))
        else:
            makers: dict[str, Callable[[int], Memory]] = {
                "fork": Forked, "copy": lambda size: Copied(where, size),
                "plain": lambda size: Plain(where, size),
            }
            found = _measured(plan, makers[kind], where)
            if kind != "plain":
                found["pause"] = spread(own_pauses(makers[kind](plan.large_bytes), plan))
            pipe.send(("ok", found))
        with suppress(EOFError):
            pipe.recv()


def _measured(plan: MappedPlan, make: Callable[[int], Memory], where: str) -> dict[str, Any]:
    small = make(plan.small_bytes)
    small.words[::WORDS] = 1
    found = first_stores(small, plan)
    plain = Plain(where, plan.small_bytes).words
    if isinstance(small, Mapped):
        plain = mapped_plainly(small.words)
    found |= copies(small, plain, plan.repeats)
    del small
    large = make(plan.large_bytes)
    found["freeze"] = freeze(large, plan.repeats)
    return found


@contextmanager
def stores_beside(pool: Any) -> Iterator[list[tuple[int, int]]]:
    """A process of `mapped_main` stores meanwhile; its long stores are in the list afterwards."""
    found: list[tuple[int, int]] = []
    pool.call("store")
    yield found
    found += pool.call("stop")[0]

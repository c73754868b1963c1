"""Writers and snapshot takers for the snapshot benchmark, and the loop that is timed.

Where the clock starts: `overwrite` reads it right before its first call and then after each batch
of 64 calls; calls over elapsed time is the rate, so whatever stops the writer is charged to it.
A latency is from right before the one call that takes the snapshot to right after it.

Snapshots under load are taken by a process of their own (`ticker_main`) on a fixed schedule; a
snapshot that comes late because the one before took too long is taken at once, and counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from time import monotonic_ns
from typing import Any, Protocol

from .loadclient import wait_until
from .timing import Case, collector_off, draw_offsets

BLOCK = 4096
BATCH = 64
CHUNK = 1 << 20
Write = Callable[[Any, int], Any]


class Taker(Protocol):
    """Takes snapshots of one thing and drops them again; used in one process."""

    def take(self) -> Any:
        """Take one and return what `drop` needs."""

    def drop(self, taken: Any) -> None:
        """Delete it."""

    def settle(self) -> None:
        """Wait until what was deleted takes no space any more."""

    def close(self) -> None:
        """Give everything back."""


@dataclass(frozen=True, slots=True)
class NovaSource:
    """An arena; ``public`` takes the way through the coordinator, else the core's in process."""

    name: str
    public: bool = True

    def open(self) -> Taker:
        """Attach in this process."""
        return NovaTaker(self.name, self.public)


class NovaTaker:
    """Snapshots of an arena, by an attached client."""

    def __init__(self, name: str, public: bool) -> None:
        import nova_mp

        self.file_system: Any = nova_mp.attach(name)
        self.public = public

    def take(self) -> int:
        """The id of a new snapshot."""
        if self.public:
            return int(self.file_system.snapshots.create().epoch_id)
        return int(self.file_system.snapshot_create(None))

    def drop(self, taken: int) -> None:
        """Delete it."""
        if self.public:
            self.file_system.snapshots.delete(taken)
        else:
            self.file_system.snapshot_delete(taken)

    def settle(self) -> None:
        """Wait for the cleaner, or where it has not been told, do its work."""
        if self.public:
            self.file_system.snapshots.wait(60.0)
            return
        for _ in range(1000):
            if not self.file_system.reclaim():
                break

    def close(self) -> None:
        """Detach."""
        self.file_system.close()


def offset_batches(data_bytes: int, seed: int) -> list[list[int]]:
    """Offsets of all blocks of ``data_bytes`` in random order, in batches of 64."""
    count = max(data_bytes // BLOCK, BATCH)
    offsets = draw_offsets(Case("", "pwrite", count, BLOCK, data_bytes), seed)
    return [offsets[at : at + BATCH] for at in range(0, len(offsets) - BATCH + 1, BATCH)]


def lay_out(write: Write, data_bytes: int) -> None:
    """Write all of it once, in pieces that no file system can compress or share."""
    piece = random.Random(0).randbytes(CHUNK)
    for offset in range(0, data_bytes, CHUNK):
        write(piece[: data_bytes - offset], offset)


def touch_all(file_system: Any) -> None:
    """Use all of the arena once: the first touch of a page is a page fault, whoever does it."""
    free = file_system.stats()["blocks"]["free"] * BLOCK * 9 // 10 // (1 << 20) << 20
    with closing(file_system.open("/all", "xb")) as file:
        lay_out(file.pwrite, free)
    file_system.unlink("/all")


class Writer:
    """Overwrites 4 KiB blocks in random order for given times, and goes on where it stopped."""

    def __init__(self, write: Write, data_bytes: int, seed: int) -> None:
        self.write = write
        self.data = random.Random(seed).randbytes(BLOCK)
        self.batches: Iterator[list[int]] = cycle(offset_batches(data_bytes, seed))

    def run(self, window_ns: int, between: Callable[[], None] | None = None) -> tuple[int, int]:
        """Calls made and ns taken; ``between`` is called after each batch, on the clock."""
        with collector_off():
            return self._run(window_ns, between)

    def run_until(self, stop: Callable[[], Any]) -> int:
        """Write until ``stop()`` is true; returns how many calls."""
        calls = 0
        while not stop():
            calls += self._run(1_000_000, None)[0]
        return calls

    def run_calls(self, calls: int) -> None:
        """Make at least so many calls."""
        for _ in range(-(-calls // BATCH)):
            self._run(0, None)

    def _run(self, window_ns: int, between: Callable[[], None] | None) -> tuple[int, int]:
        write, data, calls = self.write, self.data, 0
        began = now = monotonic_ns()
        end = began + window_ns
        for batch in self.batches:
            for offset in batch:
                write(data, offset)
            calls += BATCH
            if between is not None:
                between()
            now = monotonic_ns()
            if now >= end:
                break
        return calls, now - began


def time_creates(taker: Taker, count: int, limit_ns: int) -> tuple[list[int], list[int]]:
    """ns of ``count`` creates and as many deletes, fewer when ``limit_ns`` has passed.

    At least three, however long they take.
    """
    created: list[int] = []
    dropped: list[int] = []
    end = monotonic_ns() + limit_ns
    while len(created) < count and (len(created) < 3 or monotonic_ns() < end):
        start = monotonic_ns()
        taken = taker.take()
        created.append(monotonic_ns() - start)
        start = monotonic_ns()
        taker.drop(taken)
        dropped.append(monotonic_ns() - start)
        taker.settle()
    return created, dropped


# ------------------------------------------------------------------------------- processes


def _obey(pipe: Connection, verbs: dict[str, Callable[..., Any]]) -> None:
    """Answer messages until "finish" or the end of the pipe."""
    with suppress(EOFError):
        pipe.send(("ok", None))
        while True:
            verb, values = pipe.recv()
            if verb == "finish":
                pipe.send(("ok", None))
                return
            pipe.send(("ok", verbs[verb](*values)))


def writer_main(pipe: Connection, name: str, index: int, data_bytes: int) -> None:
    """A process that overwrites a file of its own on an arena until it is told to stop."""
    import nova_mp

    with nova_mp.attach(name, index) as file_system:
        file = file_system.open(f"/writer-{index}", "x+b")
        lay_out(file.pwrite, data_bytes)
        writer = Writer(file.pwrite, data_bytes, index)

        def run(chosen: int) -> int:
            """Say so and write, if among the first ``chosen``, until the next message."""
            with collector_off():
                pipe.send(("ok", None))
                calls = writer.run_until(pipe.poll) if index < chosen else 0
            pipe.recv()
            return calls

        _obey(pipe, {"run": run})
        file.close()


def ticker_main(pipe: Connection, source: Any) -> None:
    """A process that takes a snapshot every so often and keeps the newest few."""
    taker: Taker = source.open()

    def tick(start: int, every: int, end: int, keep: int) -> dict[str, Any]:
        """Snapshots at ``start + every``, twice that, … before ``end``; all are gone after it."""
        latencies: list[int] = []
        held: list[Any] = []
        due, late = start + every, 0
        while due < end:
            late += monotonic_ns() > due + every
            wait_until(due)
            began = monotonic_ns()
            held.append(taker.take())
            latencies.append(monotonic_ns() - began)
            if len(held) > keep:
                taker.drop(held.pop(0))
            due = max(due + every, monotonic_ns() - every)
        for taken in held:
            taker.drop(taken)
        return {"latencies": latencies, "late": late}

    try:
        _obey(pipe, {"tick": tick})
    finally:
        taker.close()


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least ``percent`` of all are not above; 0 of none."""
    ordered = sorted(samples)
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * percent // 100)
    return float(ordered[max(0, int(rank) - 1)])


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Count, p50, p99 and maximum."""
    return {
        "count": len(samples), "p50": percentile(samples, 50), "p99": percentile(samples, 99),
        "max": float(max(samples, default=0)),
    }

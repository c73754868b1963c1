"""One client process of a load job.

It is told what to do over a pipe, by (verb, arguments) tuples, and answers each with ("ok", result)
or ("error", text). Between "lay_out" and "finish" it measures as often as it is asked to.

Where the clock starts: a measurement begins at an instant (CLOCK_MONOTONIC) that is the same for
all clients, in the future when they are told. An operation's service time is from right before the
call to right after it; with a rate, its intended start is on a schedule fixed in advance, so an
operation that had to wait for a slow one before it is charged for the wait (no coordinated
omission). What the harness does between two operations (drawing, checking) is in no latency, but in
the elapsed time: throughput of a closed loop is what a program would get.
"""

from __future__ import annotations

import gc
import random
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import compress, cycle, islice
from multiprocessing.connection import Connection
from typing import Any

from .histogram import Histogram
from .job import ClientGroup
from .peers import DirectoryFileSystem
from .pool import SharedNumbers
from .records import check_prefix
from .workload import Step, Workload

clock = time.monotonic_ns
# Sleeping wakes up late by about this much; the rest of the wait for an intended start is spun.
SPIN_NS = 60_000


@dataclass(frozen=True, slots=True)
class Target:
    """What a client works on: an arena (``kind`` "attached" or "remote") or a "directory"."""

    kind: str
    name: str

    def connect(self) -> Any:
        """The file system; the caller closes it."""
        if self.kind == "directory":
            return DirectoryFileSystem(self.name)
        import nova_mp

        return nova_mp.attach(self.name) if self.kind == "attached" else nova_mp.connect(self.name)


@dataclass(slots=True)
class Window:
    """When to start, from when to count, when to stop (CLOCK_MONOTONIC, ns)."""

    start: int
    count_from: int
    end: int


class LoadClient:
    """Runs one client's stream; keeps its place in it from one measurement to the next."""

    def __init__(
        self, target: Target, group: ClientGroup, client: int, seed: int,
        marks: SharedNumbers | None,
    ) -> None:
        """``marks`` (shared memory, two numbers a client) is there when blocks are verified: how
        many writes of this client have begun, and how many have returned."""
        self.group = group
        self.verify = marks is not None
        self.marks = marks
        self.seed = seed + client
        self.workload = Workload(target.connect(), group, client, seed)
        self.bound: list[tuple[Any, tuple[Any, ...]]] = []
        self.at = 0

    def lay_out(self) -> None:
        """Make the files, and bind the calls of the stream to them."""
        self.workload.lay_out(self.verify)
        if not self.verify:
            self.bound = [self.workload.bind(step) for step in self.workload.stream]
        self._mark(returned=True)

    def measure(self, start: int, warmup_ns: int, duration_ns: int) -> dict[str, Any]:
        """Run from ``start`` on, and report the operations that began after the warm-up."""
        window = Window(start, start + warmup_ns, start + warmup_ns + duration_ns)
        service, lag = array("q"), array("q")
        first = self.at
        gc.collect()
        gc.disable()
        try:
            if self.group.rate:
                began, ended = self._open_loop(window, service, lag)
            else:
                began, ended = self._closed_loop(window, service)
        finally:
            gc.enable()
        return self._report(first, service, lag, began, ended)

    def _closed_loop(self, window: Window, service: array[int]) -> tuple[int, int]:
        """As fast as it goes; returns when counting began and ended."""
        wait_until(window.start)
        began = 0
        length = len(self.workload.stream)
        while True:
            for index in range(self.at, length):
                function, arguments, step = self._next(index)
                before = clock()
                function(*arguments)
                after = clock()
                self.at = index + 1
                if step is not None:
                    self._mark(returned=True)
                    self.workload.check(step)
                if before < window.count_from:
                    service.append(-1)
                    continue
                began = began or before
                service.append(after - before)
                if after >= window.end:
                    return began, after
            self.at = 0

    def _open_loop(
        self, window: Window, service: array[int], lag: array[int]
    ) -> tuple[int, int]:
        """On schedule; operations whose intended start is in the warm-up are not counted."""
        length = len(self.workload.stream)
        wait_until(window.start)
        after = window.start
        for intended in self._schedule(window):
            if self.at == length:
                self.at = 0
            function, arguments, step = self._next(self.at)
            self.at += 1
            wait_until(intended)
            before = clock()
            function(*arguments)
            after = clock()
            if step is not None:
                self._mark(returned=True)
                self.workload.check(step)
            counted = intended >= window.count_from
            service.append(after - before if counted else -1)
            lag.append(before - intended)
        return window.count_from, max(after, window.end)

    def _schedule(self, window: Window) -> Iterable[int]:
        """Intended starts: evenly spaced, or as a Poisson process of the same rate."""
        gap = 1e9 / self.group.rate
        if not self.group.poisson:
            count = int((window.end - window.start) / gap)
            return (window.start + int(index * gap) for index in range(count))
        rng = random.Random(self.seed)
        starts, at = array("q"), float(window.start)
        while (at := at + rng.expovariate(1.0) * gap) < window.end:
            starts.append(int(at))
        return starts

    def _next(self, index: int) -> tuple[Any, tuple[Any, ...], Step | None]:
        if not self.verify:
            function, arguments = self.bound[index]
            return function, arguments, None
        step = self.workload.stream[index]
        function, arguments = self.workload.prepare(step)
        self._mark(returned=False)
        return function, arguments, step

    def _mark(self, *, returned: bool) -> None:
        """Publish that all writes so far have begun, or have returned."""
        if self.marks is not None:
            self.marks[2 * self.workload.client + returned] = len(self.workload.recorder.history)

    def _report(
        self, first: int, service: array[int], lag: array[int], began: int, ended: int
    ) -> dict[str, Any]:
        """Fold the raw samples. A service time of -1 marks the warm-up."""
        counted = bytes(value >= 0 for value in service)
        operations = [step.operation for step in self.workload.stream]
        by_operation: dict[str, Any] = {}
        bytes_moved = 0
        for name in sorted(set(operations)):
            mask = islice(cycle([operation == name for operation in operations]), first, None)
            chosen = bytes(a and b for a, b in zip(counted, mask, strict=False))
            histogram = Histogram()
            histogram.record(compress(service, chosen))
            if histogram.count:
                by_operation[name] = histogram.pack()
                bytes_moved += histogram.count * self.workload.bytes_of(name)
        latencies = {"service": Histogram(), "lag": Histogram(), "response": Histogram()}
        latencies["service"].record(compress(service, counted))
        if lag:
            latencies["lag"].record(compress(lag, counted))
            both = map(int.__add__, service, lag)
            latencies["response"].record(compress(both, counted))
        else:
            # A closed loop intends to start when it does.
            latencies["lag"].zeros = sum(counted)
            latencies["response"] = latencies["service"]
        return {
            "operations": sum(counted),
            "bytes": bytes_moved,
            "began": began,
            "ended": ended,
            "latency": {name: histogram.pack() for name, histogram in latencies.items()},
            "by_operation": by_operation,
        }

    def check_live(self) -> int:
        """Check that every block of the live files holds its latest write; returns how many."""
        recorder = self.workload.recorder
        found = self.workload.check_everything()
        check_prefix(recorder.history, found, len(recorder.history), len(recorder.history))
        return len(found)

    def check_snapshot(self, snapshot: int, low: int, high: int) -> int:
        """Check that a snapshot holds a prefix of this client's writes; returns its length.

        ``low`` writes had returned before it was asked for, ``high`` had begun when it was there.
        """
        with self.workload.file_system.snapshots.open(snapshot) as view:
            found = self.workload.check_everything(view)
        return check_prefix(self.workload.recorder.history, found, low, high)

    def finish(self) -> None:
        """Close files and file system."""
        self.workload.close()
        self.workload.file_system.close()


def wait_until(instant: int) -> None:
    """Return at ``instant`` (CLOCK_MONOTONIC, ns), or at once when it has passed."""
    left = instant - clock()
    if left > SPIN_NS:
        time.sleep((left - SPIN_NS) / 1e9)
    while clock() < instant:
        pass


def obey(pipe: Connection, make: Callable[[], Any]) -> None:
    """Make a client, and carry out what the pipe says until that is finish, or the pipe closes."""
    try:
        client = make()
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        return
    pipe.send(("ok", None))
    while True:
        try:
            verb, values = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("ok", getattr(client, verb)(*values)))
        except Exception as error:
            pipe.send(("error", f"{verb}: {type(error).__name__}: {error}"))
            return
        if verb == "finish":
            return


def main(pipe: Connection, *arguments: Any) -> None:
    """The process."""
    obey(pipe, lambda: LoadClient(*arguments))

"""A load job from start to result: an arena, client processes, snapshots, repeats, peers.

Each repeat measures the arena and then each peer, so that a change of the machine's mood meets all
of them. Clients of whoever is not being measured wait on a pipe and use no processor.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import nova_mp

from . import loadclient
from .arena import temporary_arena
from .environment import describe
from .histogram import Histogram, merge
from .job import Job
from .loadclient import Target
from .peers import file_system_of, scratch_directory
from .pool import Pool, SharedNumbers

Progress = Callable[[str, float, float], None]
OUTPUT_VERSION = 1
# From telling the clients until they all start; a pipe message takes far less.
LEAD_NS = 100_000_000
# Beyond the time it was asked to measure, a client may take this long to fold its samples.
FOLDING_S = 120.0


def run_load(job: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Run a load job and return its result (see docs/BENCHMARKS.md for the fields).

    ``progress(label, done, total)`` is called as it goes. Raises NovaError when the arena cannot be
    made or a client fails, which includes every block that verification finds wrong.
    """
    report = progress or (lambda label, done, total: None)
    environment = describe(cpus=job.arena.cpus, processes=job.processes)
    with ExitStack() as stack:
        arena = stack.enter_context(temporary_arena(job.arena, "bench"))
        marks = stack.enter_context(_marks(job))
        subjects = [
            stack.enter_context(_subject(job, "nova_mp", arena.name, marks)),
            *(
                stack.enter_context(_peer_subject(job, peer.kind, peer.path))
                for peer in job.peers
            ),
        ]
        snapshots = SnapshotSchedule(job, arena.name, marks)
        steps, done = job.run.repeats * len(subjects), 0
        for repeat in range(job.run.repeats):
            for subject in subjects:
                report(f"repeat {repeat + 1}: {subject.name}", done, steps)
                with snapshots.running() if subject is subjects[0] else ExitStack():
                    subject.measure(job)
                done += 1
        report("verify", done, steps)
        verified = _verify(job, subjects[0], snapshots)
        snapshots_result = snapshots.result()
        report("done", steps, steps)
        for subject in subjects:
            subject.pool.call("finish")
    first = subjects[0].result(job)
    peers = []
    for subject in subjects[1:]:
        found = subject.result(job)
        peers.append(found | _ratios(first["total"], found["total"]))
    return {
        "output_version": OUTPUT_VERSION, "kind": "load", "name": job.name, "job": job.tables,
        "environment": environment, **first, "peers": peers, "snapshots": snapshots_result,
        "verify": verified,
    }


class Subject:
    """What is measured: the arena or a peer, with its own client processes."""

    def __init__(self, name: str, pool: Pool, fs_type: str) -> None:
        self.name = name
        self.pool = pool
        self.fs_type = fs_type
        self.repeats: list[list[dict[str, Any]]] = []

    def measure(self, job: Job) -> None:
        """One repeat."""
        start = time.monotonic_ns() + LEAD_NS
        self.pool.post("measure", start, job.run.warmup_ns, job.run.duration_ns)
        seconds = (LEAD_NS + job.run.warmup_ns + job.run.duration_ns) / 1e9
        self.repeats.append(self.pool.collect(seconds + FOLDING_S))

    def result(self, job: Job) -> dict[str, Any]:
        """Groups and total of all repeats."""
        groups, at = [], 0
        for group in job.clients:
            mine = [repeat[at : at + group.count] for repeat in self.repeats]
            at += group.count
            groups.append({
                "name": group.name, "count": group.count, "mode": group.mode,
                "block_bytes": group.block_bytes, "pattern": group.pattern,
                "loop": "open" if group.rate else "closed", "rate": group.rate or None,
                **_summarise(mine),
            })
        return {
            "subject": self.name, "file_system": self.fs_type, "groups": groups,
            "total": _summarise(self.repeats),
        }


@contextmanager
def _subject(job: Job, name: str, where: str, marks: SharedNumbers | None) -> Iterator[Subject]:
    """The arena, or a peer's directory, with clients that have laid out their files."""
    directory = name != "nova_mp"
    arguments: list[tuple[Any, ...]] = []
    for group in job.clients:
        target = Target("directory" if directory else group.mode, where)
        for _ in range(group.count):
            arguments.append((target, group, len(arguments), job.run.seed, marks))
    with Pool(loadclient.main, arguments) as pool:
        pool.collect(60.0 + len(pool.pipes))
        pool.call("lay_out", timeout=600.0)
        yield Subject(name, pool, file_system_of(where) if directory else "nova_mp")


@contextmanager
def _peer_subject(job: Job, kind: str, path: str) -> Iterator[Subject]:
    # A peer checks its blocks as the arena's clients do, or the comparison would not be fair.
    with (
        _marks(job) as marks, scratch_directory(path) as where,
        _subject(job, kind, where, marks) as subject,
    ):
        yield subject


@contextmanager
def _marks(job: Job) -> Iterator[SharedNumbers | None]:
    """Where clients publish how many writes have begun and returned, when blocks are verified."""
    if not job.run.verify:
        yield None
        return
    marks = SharedNumbers(2 * job.processes)
    try:
        yield marks
    finally:
        marks.close()


def _summarise(repeats: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Figures of some clients over all repeats; throughput is the median of the repeats."""
    rows = []
    for clients in repeats:
        seconds = [max(1, one["ended"] - one["began"]) / 1e9 for one in clients]
        rows.append({
            "operations": sum(one["operations"] for one in clients),
            "bytes": sum(one["bytes"] for one in clients),
            "seconds": round(max(seconds), 6),
            "operations_per_second": sum(
                one["operations"] / took for one, took in zip(clients, seconds, strict=True)
            ),
            "bytes_per_second": sum(
                one["bytes"] / took for one, took in zip(clients, seconds, strict=True)
            ),
        })
    everyone = [one for clients in repeats for one in clients]
    operations = sorted({name for one in everyone for name in one["by_operation"]})
    return {
        "operations": sum(row["operations"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "operations_per_second": statistics.median(r["operations_per_second"] for r in rows),
        "bytes_per_second": statistics.median(r["bytes_per_second"] for r in rows),
        "repeats": rows,
        "latency": {
            name: _merged(one["latency"][name] for one in everyone).summary()
            for name in ("service", "lag", "response")
        },
        "by_operation": {
            name: _merged(
                one["by_operation"][name] for one in everyone if name in one["by_operation"]
            ).summary()
            for name in operations
        },
    }


def _merged(packed: Any) -> Histogram:
    return merge(Histogram.unpack(one) for one in packed)


def _ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float | None]:
    """nova_mp's throughput over the peer's, and the peer's median latency over nova_mp's."""
    rate = peer["operations_per_second"]
    median = ours["latency"]["service"]["p50"]
    return {
        "ratio": ours["operations_per_second"] / rate if rate else None,
        "ratio_p50": peer["latency"]["service"]["p50"] / median if median else None,
    }


class SnapshotSchedule:
    """Takes snapshots while the arena is measured, and deletes all but the newest few."""

    def __init__(self, job: Job, arena: str, marks: SharedNumbers | None) -> None:
        self.plan = job.snapshots
        self.arena = arena
        self.marks = marks
        self.kept: list[tuple[int, list[int], list[int]]] = []
        self.created = Histogram()
        self.deleted = Histogram()
        self.late = 0
        self._stop = threading.Event()
        self._error: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Snapshots are taken inside; an error of one is raised on leaving."""
        if not self.plan.every_ns:
            yield
            return
        self._stop.clear()
        thread = threading.Thread(target=self._run, name="snapshots")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with nova_mp.attach(self.arena) as file_system:
                due = time.monotonic_ns()
                while not self._stop.wait(max(0, due - time.monotonic_ns()) / 1e9):
                    self._take(file_system)
                    due += self.plan.every_ns
                    if due < time.monotonic_ns():
                        # Behind by a whole period: what was missed is reported, not made up for.
                        self.late += 1
                        due = time.monotonic_ns()
        except BaseException as error:
            self._error = error

    def _take(self, file_system: Any) -> None:
        low = self._marks(returned=True)
        before = time.monotonic_ns()
        snapshot = file_system.snapshots.create()
        self.created.record([time.monotonic_ns() - before])
        self.kept.append((snapshot.epoch_id, low, self._marks(returned=False)))
        while len(self.kept) > self.plan.keep:
            before = time.monotonic_ns()
            file_system.snapshots.delete(self.kept.pop(0)[0])
            self.deleted.record([time.monotonic_ns() - before])

    def _marks(self, *, returned: bool) -> list[int]:
        """Of each client: how many writes have returned, or have begun."""
        return self.marks.tolist()[int(returned) :: 2] if self.marks is not None else []

    def result(self) -> dict[str, Any] | None:
        """What was taken; None when the job has no snapshots."""
        if not self.plan.every_ns:
            return None
        return {
            "every_ns": self.plan.every_ns, "created": self.created.count, "kept": len(self.kept),
            "periods_missed": self.late,
            "create_latency": self.created.summary(), "delete_latency": self.deleted.summary(),
        }


def _verify(job: Job, subject: Subject, snapshots: SnapshotSchedule) -> dict[str, Any] | None:
    """All blocks of the live files, and of each kept snapshot; None when the job does not ask."""
    if not job.run.verify:
        return None
    live = sum(subject.pool.call("check_live", timeout=600.0))
    for snapshot, low, high in snapshots.kept:
        for index in range(job.processes):
            subject.pool.post_one(index, "check_snapshot", snapshot, low[index], high[index])
        subject.pool.collect(600.0)
    return {
        "blocks": live, "snapshots": len(snapshots.kept),
        "reads_checked": sum(
            Histogram.unpack(one["by_operation"]["read"]).count
            for repeat in subject.repeats for one in repeat if "read" in one["by_operation"]
        ),
        "errors": 0,
    }

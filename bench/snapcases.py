"""The measurements of the snapshot benchmark, each on arenas of its own.

Two ways to a snapshot stand side by side. "engine" is `fs.snapshots.create()` of an attached
client, as a program calls it: a message to the coordinator, which takes the snapshot, its reply,
and a look at the table. "core" is the same work called in this process, without the message.
"""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

import nova_mp

from .arena import temporary_arena
from .environment import describe
from .job import ArenaSpec
from .pool import Pool
from .snapload import (
    BLOCK,
    NovaSource,
    NovaTaker,
    Writer,
    lay_out,
    percentile,
    spread,
    ticker_main,
    time_creates,
    touch_all,
    writer_main,
)
from .units import parse_duration

LOAD_BYTES = 1 << 20
"""What each writer overwrites while creates are timed."""
SAMPLES = 50
"""Creates around the 10th and the last one whose median is taken."""
FILE_BYTES = 64 << 20
LEAD_NS = 20_000_000
COLD_BYTES = 96 << 20
"""More than the caches of the machines at hand hold."""


@dataclass(frozen=True, slots=True)
class SnapshotPlan:
    """A job file's [snapshot_bench]; docs/BENCHMARKS.md says what the keys mean."""

    seed: int
    cpus: tuple[int, ...]
    creates: int
    create_time_ns: int
    small_bytes: int
    large_bytes: int
    working_sets: tuple[int, ...]
    every: tuple[str, ...]
    window_ns: int
    repeats: int
    keep: int
    count: int
    entries: int
    peer_bytes: int
    peer_creates: int
    peers: tuple[str, ...]


def _both(name: str) -> dict[str, NovaTaker]:
    return {"engine": NovaTaker(name, True), "core": NovaTaker(name, False)}


# ---------------------------------------------------------------------------------- latency


def creates(plan: SnapshotPlan, cpus: int) -> dict[str, Any]:
    """Create and delete latency with so many emulated CPUs: idle, and with writers.

    The load is as many writers as cores (each can run at any time), and one for each CPU (where
    that is more, those that wait for a core in the middle of an operation are waited for).
    """
    cores = len(os.sched_getaffinity(0))
    loads = sorted({0, min(cores, cpus), cpus})
    # Live data, what two snapshots hold of it, and logs; a CPU's share is not less than 16 MiB.
    spec = ArenaSpec(max(64 << 20, cpus * 16 * LOAD_BYTES), cpus)
    rows = []
    with temporary_arena(spec, "create") as arena:
        arguments = [(arena.name, index, LOAD_BYTES) for index in range(cpus)]
        with Pool(writer_main, arguments) as pool:
            pool.collect(120.0)
            takers = _both(arena.name)
            for writers in loads:
                rows.append(_creates_beside(plan, pool, takers, writers))
            for taker in takers.values():
                taker.close()
        deletes = _deletes(arena.name, cpus)
    return {"cpus": cpus, "loads": rows, "deletes": deletes}


def _creates_beside(
    plan: SnapshotPlan, pool: Pool, takers: dict[str, NovaTaker], writers: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"writers": writers}
    began = monotonic_ns()
    if writers:
        pool.call("run", writers)
    for way, taker in takers.items():
        created, dropped = time_creates(taker, plan.creates, plan.create_time_ns)
        row[way] = {"create": spread(created), "delete": spread(dropped)}
    if writers:
        row["writes_per_second"] = sum(pool.call("stop")) * 1e9 / (monotonic_ns() - began)
    return row


def _deletes(name: str, cpus: int) -> dict[str, Any]:
    """Delete latency of snapshots whose lists hold entries of every CPU: few, and many."""
    found = {}
    with ExitStack() as stack:
        handles = [stack.enter_context(nova_mp.attach(name, cpu)) for cpu in range(cpus)]
        files = [
            stack.enter_context(closing(one.open(f"/writer-{cpu}", "r+b")))
            for cpu, one in enumerate(handles)
        ]
        for label, entries, rounds in (("few", 1, 50), ("many", LOAD_BYTES // BLOCK, 10)):
            took: list[int] = []
            for _ in range(rounds):
                epoch_id = handles[0].snapshot_create(None)
                for file in files:
                    for block in range(entries):
                        file.pwrite(b"x" * BLOCK, block * BLOCK)
                start = monotonic_ns()
                handles[0].snapshot_delete(epoch_id)
                took.append(monotonic_ns() - start)
                # The cleaner has its own time; here it must not be in the way of the next round.
                for _ in range(1000):
                    if not handles[0].reclaim():
                        break
            found[label] = {"entries_per_cpu": entries, **spread(took)}
    return found


# ------------------------------------------------------------------------------ amount of data


def fitting_bytes(wanted: int, floor: int) -> int:
    """``wanted`` if twice that much memory is available, else half of what is, in whole files."""
    available = describe(cpus=1)["memory_available_bytes"] or floor * 2
    shm = os.statvfs("/dev/shm")
    limit = min(available // 2, shm.f_bavail * shm.f_frsize * 4 // 5)
    return wanted if wanted <= limit else max(floor, limit // FILE_BYTES * FILE_BYTES)


def _fill(file_system: Any, data_bytes: int) -> Any:
    """Data in files of 64 MiB; returns the first of them, open."""
    first = None
    for at, offset in enumerate(range(0, data_bytes, FILE_BYTES)):
        file = file_system.open(f"/data-{at}", "x+b")
        lay_out(file.pwrite, min(FILE_BYTES, data_bytes - offset))
        if first is None:
            first = file
        else:
            file.close()
    return first


def sizes(plan: SnapshotPlan) -> dict[str, Any]:
    """Create latency of two arenas that differ in the amount of data alone, taking turns."""
    large = fitting_bytes(plan.large_bytes, plan.small_bytes)
    row: dict[str, Any] = {
        "small_bytes": plan.small_bytes, "large_bytes": large, "wanted_bytes": plan.large_bytes
    }
    with ExitStack() as stack:
        subjects = []
        for label, data in (("small", plan.small_bytes), ("large", large)):
            spec = ArenaSpec(data + data // 16 + (64 << 20), 2)
            arena = stack.enter_context(temporary_arena(spec, f"size-{label}"))
            file_system = stack.enter_context(arena.attach())
            file = stack.enter_context(closing(_fill(file_system, data)))
            takers = _both(arena.name)
            for taker in takers.values():
                stack.enter_context(closing(taker))
            subjects.append((label, file, takers))
        for way in ("engine", "core"):
            took: dict[str, list[int]] = {"small": [], "large": []}
            for turn in range(plan.creates + 1):
                for label, file, takers in subjects:
                    # Something to remember for each snapshot, as little on either side.
                    file.pwrite(b"x" * BLOCK, turn % 64 * BLOCK)
                    created, _ = time_creates(takers[way], 1, 0)
                    took[label].append(created[0])
            found = {label: spread(samples[1:]) for label, samples in took.items()}
            row[way] = {**found, "ratio": found["large"]["p50"] / found["small"]["p50"]}
    return row


# ------------------------------------------------------------------------------ cost to a writer


def overwrites(plan: SnapshotPlan, data_bytes: int) -> dict[str, Any]:
    """Rate of 4 KiB overwrites in one process: without snapshots, and with one every so often."""
    held = data_bytes * (plan.keep + 6)
    spec = ArenaSpec(held + COLD_BYTES * 3 // 2 + (64 << 20), 2)
    every = [None, *plan.every]
    windows: dict[Any, list[dict[str, float]]] = {one: [] for one in every}
    with (
        temporary_arena(spec, "overwrite") as arena, arena.attach() as file_system,
        Pool(ticker_main, [(NovaSource(arena.name),)]) as pool,
    ):
        pool.collect(60.0)
        touch_all(file_system)
        cold_ns = _cold_block_ns(file_system)
        with closing(file_system.open("/data", "x+b")) as file:
            lay_out(file.pwrite, data_bytes)
            writer = Writer(file.pwrite, data_bytes, plan.seed)
            writer.run(plan.window_ns // 2)
            for _ in range(plan.repeats):
                for one in every:
                    windows[one].append(_window(plan, file_system, pool, writer, one))
        pool.call("finish")
    base = windows[None]
    return {
        "working_set_bytes": data_bytes, "cold_block_ns": cold_ns,
        "per_second": statistics.median(found["rate"] for found in base),
        "cases": [_overwrite_row(one, windows[one], base, cold_ns) for one in plan.every],
    }


def _cold_block_ns(file_system: Any) -> float:
    """How much longer a 4 KiB write takes whose destination is in no cache; without snapshots.

    The same call, into holes of a file: the hot ones get the blocks again that were given back a
    moment ago, the cold ones go through more free space than a cache holds.
    """
    data = b"y" * BLOCK

    def timed(file: Any, blocks: int) -> int:
        start = monotonic_ns()
        for offset in range(0, blocks * BLOCK, BLOCK):
            file.pwrite(data, offset)
        took = monotonic_ns() - start
        file.truncate(0)
        return took

    hot, cold = [], []
    with closing(file_system.open("/holes", "x+b")) as file:
        for _ in range(5):
            cold.append(timed(file, COLD_BYTES // BLOCK) / (COLD_BYTES // BLOCK))
            hot += [timed(file, 64) / 64 for _ in range(COLD_BYTES // BLOCK // 64)]
    file_system.unlink("/holes")
    return statistics.median(cold) - statistics.median(hot)


def _window(
    plan: SnapshotPlan, file_system: Any, pool: Pool, writer: Writer, every: str | None
) -> dict[str, float]:
    """One measurement; whatever snapshots left to clean is cleaned before the next one."""
    period = parse_duration(every) if every else 0
    # The same start for all: what the window before left in the caches is overwritten first.
    writer.run(plan.window_ns // 10)
    ours, all_of_them = _appends(file_system)
    start = monotonic_ns()
    if period:
        pool.post("tick", start, period, start + plan.window_ns, plan.keep)
    calls, took = writer.run(plan.window_ns)
    found: dict[str, float] = {"rate": calls * 1e9 / took, "calls": calls, "ns": took, "taken": 0}
    found["appends"] = _appends(file_system)[0] - ours
    if period:
        ticked = pool.collect(60.0)[0]
        found["taken"], found["late"] = len(ticked["latencies"]), ticked["late"]
        found["create_p50"] = percentile(ticked["latencies"], 50)
        file_system.snapshots.wait(60.0)
        found["expected"] = (plan.window_ns - 1) // period
        found["moved"] = _appends(file_system)[1] - all_of_them - found["appends"]
    return found


def _appends(file_system: Any) -> tuple[int, int]:
    """Entries put into snapshots' lists: by this process for what it overwrote, and by all.

    The cleaner puts there again what the next snapshot needs as well.
    """
    ours = sum(
        slot["list_appends"] for slot in file_system.slots() if slot["pid"] == os.getpid()
    )
    return ours, file_system.stats()["snapshots"]["appends"]


def _overwrite_row(
    every: str, windows: list[dict[str, float]], base: list[dict[str, float]], cold_ns: float
) -> dict[str, Any]:
    pairs = sorted(a["rate"] / b["rate"] for a, b in zip(windows, base, strict=True))
    # Windows that are neighbours in time: the machine's other work changes meanwhile.
    ratio = statistics.median(pairs)
    without = statistics.median(found["rate"] for found in base)
    calls = sum(found["calls"] for found in windows)
    recorded = sum(found["appends"] for found in windows) / calls
    lost_ns = 1e9 / without * (1 / ratio - 1)
    return {
        "every": every, "per_second": without * ratio, "ratio": ratio,
        "ratio_low": pairs[len(pairs) // 4], "ratio_high": pairs[-1 - len(pairs) // 4],
        "recorded_share": recorded, "lost_ns_per_call": lost_ns,
        "cold_ns_per_call": recorded * cold_ns,
        "cold_share_of_loss": recorded * cold_ns / lost_ns if lost_ns > 0 else None,
        "moved_per_call": sum(found["moved"] for found in windows) / calls,
        "snapshots": sum(int(found["taken"]) for found in windows),
        "snapshots_expected": sum(int(found["expected"]) for found in windows),
        "late": sum(int(found["late"]) for found in windows),
        "create_p50": statistics.median(found["create_p50"] for found in windows),
        "runs_per_second": [found["rate"] for found in windows],
        "runs_without_per_second": [found["rate"] for found in base],
    }


# ---------------------------------------------------------------------------- many snapshots


def many(plan: SnapshotPlan) -> dict[str, Any]:
    """Create latency among 10 snapshots and among ``count``; two overwrites between creates."""
    spec = ArenaSpec((128 << 20) + plan.count * 4 * BLOCK, 2)
    took: list[int] = []
    engine: dict[str, list[int]] = {}
    with temporary_arena(spec, "many") as arena, arena.attach() as file_system:
        takers = _both(arena.name)
        with closing(file_system.open("/data", "x+b")) as file:
            lay_out(file.pwrite, 1 << 20)
            for index in range(plan.count):
                for more in (0, 1):
                    file.pwrite(b"x" * BLOCK, (index * 2 + more) % 256 * BLOCK)
                if index in (10, plan.count - 1):
                    label = "10th" if index == 10 else "last"
                    engine[label] = time_creates(takers["engine"], SAMPLES, 10**9)[0]
                start = monotonic_ns()
                takers["core"].take()
                took.append(monotonic_ns() - start)
        for taker in takers.values():
            taker.close()
    samples = min(SAMPLES, plan.count // 2)
    early, late = spread(took[9 : 9 + samples]), spread(took[-samples:])
    found: dict[str, Any] = {"count": plan.count, "curve": _curve(took)}
    found["core"] = {"early": early, "late": late, "ratio": late["p50"] / early["p50"]}
    early, late = spread(engine["10th"]), spread(engine["last"])
    found["engine"] = {"early": early, "late": late, "ratio": late["p50"] / early["p50"]}
    return found


def _curve(took: list[int]) -> list[tuple[int, float]]:
    """Medians of up to 20 equal parts, for the plot."""
    step = max(1, len(took) // 20)
    return [(at + step, percentile(took[at : at + step], 50)) for at in range(0, len(took), step)]


# ------------------------------------------------------------------------------------ cleaner


def cleaner(plan: SnapshotPlan) -> dict[str, Any]:
    """How fast what a deleted snapshot held is freed, entry by entry; five times.

    Each block is overwritten on its own, in random order, so that each is an entry of its own.
    """
    data = plan.entries * BLOCK
    runs = []
    with (
        temporary_arena(ArenaSpec(data * 5 // 2 + (64 << 20), 2), "clean") as arena,
        arena.attach() as file_system,
        closing(file_system.open("/data", "x+b")) as file,
    ):
        lay_out(file.pwrite, data)
        writer = Writer(file.pwrite, data // (1 << 18) << 18, plan.seed)
        for _ in range(5):
            snapshot = file_system.snapshots.create()
            writer.run_calls(plan.entries)
            before = file_system.stats()["snapshots"]
            start = monotonic_ns()
            file_system.snapshots.delete(snapshot)
            deleted = monotonic_ns()
            file_system.snapshots.wait(60.0)
            elapsed = monotonic_ns() - start
            after = file_system.stats()["snapshots"]
            runs.append({
                "entries": after["cleaned"] - before["cleaned"],
                "clean_ns": after["clean_ns"] - before["clean_ns"],
                "delete_ns": deleted - start, "elapsed_ns": elapsed,
            })
    return {
        "runs": runs, "entries": runs[0]["entries"],
        "per_second": statistics.median(r["entries"] * 1e9 / r["clean_ns"] for r in runs),
        "per_second_elapsed": statistics.median(
            r["entries"] * 1e9 / r["elapsed_ns"] for r in runs
        ),
    }

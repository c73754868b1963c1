"""Stores into mapped files beside snapshots, by a job file with a [mapped_bench] table.

The loops are in `mapcases`, the table in `mapview`. Targets stand beside the figures.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import nova_mp
from nova_mp.config import parse_size
from nova_mp.errors import NovaError

from .arena import temporary_arena
from .environment import describe
from .job import (
    NO_KEYS,
    ArenaSpec,
    Table,
    each,
    number,
    one_of,
    read_tables,
    table,
    whole,
)
from .loadclient import wait_until
from .mapcases import MappedPlan, mapped_main, memory_main, stores_beside
from .peers import scratch_directory
from .pool import Pool
from .snapload import spread
from .units import parse_duration

Progress = Callable[[str, float, float], None]
OUTPUT_VERSION = 1
WAYS = {
    "nova_mp": "snapshots; stores held back by userfaultfd",
    "signal": "the same where only mprotect and SIGSEGV are permitted",
    "fork": "os.fork(); private memory, copied on write",
    "copy": "a copy of everything, by whoever stores",
    "mprotect": "one mprotect of everything; nobody resolves the faults",
    "plain": "shared memory of tmpfs, no snapshots",
}
KINDS = ("signal", "fork", "copy", "mprotect", "plain")
LIMIT_S = 600.0


def is_mapped(path: Path) -> bool:
    """Whether a job file is one for this module."""
    return "mapped_bench" in read_tables(path)


def load_mapped(path: Path) -> tuple[MappedPlan, dict[str, float | None]]:
    """The plan and the [targets] of a job file; raises JobError for the first thing wrong."""
    top = Table(read_tables(path), path.name)
    keys = Table(top.take("mapped_bench", table), "mapped_bench")
    plan = MappedPlan(
        seed=keys.take("seed", whole(0), 1),
        large_bytes=keys.take("large", parse_size, 1 << 30),
        small_bytes=keys.take("small", parse_size, 64 << 20),
        repeats=keys.take("repeats", whole(1, 1000), 7),
        first_stores=keys.take("first_stores", whole(1), 8192),
        snapshots=keys.take("snapshots", whole(3), 100),
        every_ns=keys.take("every", parse_duration, 50_000_000),
        peers=keys.take("peers", each(one_of(*KINDS)), KINDS),
    )
    keys.done()
    wanted = Table(top.take("targets", table, NO_KEYS), "targets")
    targets = {
        name: wanted.take(name, number, 0.0) or None
        for name in ("freeze_ms_per_gib", "first_store_us", "rewrite", "steady")
    }
    wanted.done()
    top.take("title", str, "")
    top.done()
    return plan, targets


def run_mapped(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run it and return the result; raises NovaError or OSError when it cannot be run."""
    plan, targets = load_mapped(path)
    if find_spec("numpy") is None:
        raise NovaError("stores into mapped files are measured with numpy, which is not installed",
                        "pip install nova-mp[numpy]")
    report = progress or (lambda label, done, total: None)
    result: dict[str, Any] = {
        "output_version": OUTPUT_VERSION, "kind": "mapped", "name": path.stem,
        "job": read_tables(path), "environment": describe(cpus=2, processes=2),
        "large_bytes": plan.large_bytes, "small_bytes": plan.small_bytes, "rows": [],
    }
    kinds = ("nova_mp", *plan.peers)
    for at, kind in enumerate(kinds):
        report(WAYS[kind], at, len(kinds))
        with scratch_directory("/dev/shm") as where:
            found = _measure(kind, plan, where)
        result["rows"].append({"kind": kind, "way": WAYS[kind], **found})
    report("done", len(kinds), len(kinds))
    result["targets"] = _judge(result, targets)
    return result


def _measure(kind: str, plan: MappedPlan, where: str) -> dict[str, Any]:
    if kind not in ("nova_mp", "signal"):
        with Pool(memory_main, [(where, kind, plan)]) as pool:
            return dict(pool.collect(LIMIT_S)[0])
    # Two large files one after the other, a small one, and what snapshots keep of them.
    size = 3 * plan.large_bytes + 6 * plan.small_bytes + (64 << 20)
    protection = "signal" if kind == "signal" else ""
    with temporary_arena(ArenaSpec(size, 2), "mapped") as arena:
        with Pool(mapped_main, [(where, arena.name, plan, protection)]) as pool:
            found = dict(pool.collect(LIMIT_S)[0])
            starts: list[int]
            took: list[int]
            with arena.attach() as file_system, stores_beside(pool) as stores:
                starts, took = _snapshots(plan, file_system)
        found["create"] = spread(took)
        found["pause"] = spread(longest(stores, starts))
    return found


def _snapshots(plan: MappedPlan, file_system: nova_mp.FileSystem) -> tuple[list[int], list[int]]:
    """Snapshots at even times, two at once: when each was asked for, and how many ns it took."""
    starts: list[int] = []
    took: list[int] = []
    held: list[int] = []
    due = perf_counter_ns() + plan.every_ns
    for _ in range(plan.snapshots):
        wait_until(due)
        starts.append(perf_counter_ns())
        held.append(file_system.snapshots.create().epoch_id)
        took.append(perf_counter_ns() - starts[-1])
        if len(held) > 1:
            file_system.snapshots.delete(held.pop(0))
        due = max(due + plan.every_ns, perf_counter_ns())
    for epoch_id in held:
        file_system.snapshots.delete(epoch_id)
    return starts, took


def longest(stores: list[tuple[int, int]], starts: list[int]) -> list[int]:
    """For each start the longest of the stores that ended after it, before the next start's."""
    found = [0] * len(starts)
    for start, took in stores:
        at = bisect.bisect_right(starts, start + took) - 1
        if at >= 0:
            found[at] = max(found[at], took)
    return found


def _judge(result: dict[str, Any], wanted: dict[str, float | None]) -> list[dict[str, Any]]:
    row = result["rows"][0]
    per_gib = (1 << 30) / result["large_bytes"]
    values = {
        "freeze_ms_per_gib": ("freeze, ms a GiB", row["freeze"]["p50"] * per_gib / 1e6, True),
        "first_store_us": ("first store after a snapshot, us", row["first"]["p50"] / 1e3, True),
        "rewrite": ("rewrite after a snapshot, of a plain copy", row["rewrite"], False),
        "steady": ("stores without a snapshot, of plain memory", row["steady"], False),
    }
    found = []
    for key, (name, value, low_is_good) in values.items():
        target = wanted[key]
        if target is not None:
            met = value <= target if low_is_good else value >= target
            found.append({"name": name, "value": value, "target": target,
                          "low_is_good": low_is_good, "met": met})
    return found

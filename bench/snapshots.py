"""What snapshots cost, by a job file with a [snapshot_bench] table.

The measurements are in `snapcases`, the kernel's ways in `snappeers`, the tables in `snapview`.
Targets stand beside the figures, met or missed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nova_mp.config import CPUS_MAX, parse_size

from . import snapcases, snappeers
from .environment import describe
from .job import NO_KEYS, JobError, Table, each, number, one_of, read_tables, table, whole
from .snapcases import SnapshotPlan
from .units import parse_duration

Progress = Callable[[str, float, float], None]
OUTPUT_VERSION = 1


def is_snapshots(path: Path) -> bool:
    """Whether a job file is one for this module."""
    return "snapshot_bench" in read_tables(path)


def _duration_name(value: Any) -> str:
    parse_duration(value)
    return str(value)


def load_snapshots(path: Path) -> tuple[SnapshotPlan, dict[str, Any]]:
    """The plan and the [targets] of a job file; raises JobError for the first thing wrong."""
    tables = read_tables(path)
    top = Table(tables, path.name)
    keys = Table(top.take("snapshot_bench", table), "snapshot_bench")
    plan = SnapshotPlan(
        seed=keys.take("seed", whole(0), 1),
        cpus=keys.take("cpus", each(whole(1, CPUS_MAX)), (1, 4, 32)),
        creates=keys.take("creates", whole(3), 300),
        create_time_ns=keys.take("create_time", parse_duration, 1_500_000_000),
        small_bytes=keys.take("small", parse_size, 256 << 20),
        large_bytes=keys.take("large", parse_size, 8 << 30),
        working_sets=keys.take("working_sets", each(parse_size), (256 << 10, 16 << 20, 64 << 20)),
        every=keys.take("every", each(_duration_name), ("100ms", "10ms")),
        window_ns=keys.take("window", parse_duration, 500_000_000),
        repeats=keys.take("repeats", whole(1, 1000), 5),
        keep=keys.take("keep", whole(1), 4),
        count=keys.take("count", whole(20), 10_000),
        entries=keys.take("entries", whole(1000), 100_000),
        peer_bytes=keys.take("peer_data", parse_size, 256 << 20),
        peer_creates=keys.take("peer_creates", whole(1), 20),
        peers=keys.take("peers", each(one_of(*snappeers.KINDS)), snappeers.KINDS),
    )
    keys.done()
    wanted = Table(top.take("targets", table, NO_KEYS), "targets")
    targets = {
        name: wanted.take(name, number, 0.0) or None
        for name in ("size_ratio", "count_ratio", "cleaned_per_second")
    } | {"overwrite": wanted.take("overwrite", table, NO_KEYS)}
    wanted.done()
    top.take("name", str, "")
    top.take("title", str, "")
    top.done()
    unaligned = [size for size in (*plan.working_sets, plan.peer_bytes) if size % (256 << 10)]
    if unaligned:
        raise JobError(f"snapshot_bench: {unaligned[0]} is no multiple of 256 KiB", "make it one")
    return plan, targets


def run_snapshots(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run it and return the result; raises NovaError or OSError when an arena cannot be made."""
    plan, targets = load_snapshots(path)
    report = progress or (lambda label, done, total: None)
    steps: list[tuple[str, str, Callable[[], Any]]] = [
        *((f"create with {cpus} CPUs", "create", lambda cpus=cpus: snapcases.creates(plan, cpus))
          for cpus in plan.cpus),
        ("create with much and little data", "size", lambda: snapcases.sizes(plan)),
        *((f"overwrites, {size >> 10} KiB", "overwrite",
           lambda size=size: snapcases.overwrites(plan, size)) for size in plan.working_sets),
        (f"{plan.count} snapshots", "count", lambda: snapcases.many(plan)),
        ("cleaner", "cleaner", lambda: snapcases.cleaner(plan)),
        *((f"peer {kind}", "peers", lambda kind=kind: snappeers.measure(kind, plan))
          for kind in ("nova_mp", *plan.peers)),
    ]
    result: dict[str, Any] = {
        "output_version": OUTPUT_VERSION, "kind": "snapshots", "name": path.stem,
        "job": read_tables(path),
        "environment": describe(cpus=max(plan.cpus, default=1), processes=1),
        "create": [], "size": [], "overwrite": [], "count": [], "cleaner": [], "peers": [],
    }
    for at, (label, section, run) in enumerate(steps):
        report(label, at, len(steps))
        result[section].append(run())
    report("done", len(steps), len(steps))
    result["targets"] = _judge(result, targets)
    return result


def _judge(result: dict[str, Any], wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows with a target: name, value, target, low_is_good, met."""
    found: list[dict[str, Any]] = []

    def add(name: str, value: float, target: float | None, low_is_good: bool) -> None:
        if target is not None:
            met = value <= target if low_is_good else value >= target
            found.append({"name": name, "value": value, "target": target,
                          "low_is_good": low_is_good, "met": met})

    for row in result["size"]:
        for way in ("engine", "core"):
            # A smaller amount than the job asks for is said in the row's name, not passed over.
            name = f"create, {row['large_bytes'] >> 20} MiB over {row['small_bytes'] >> 20} MiB"
            add(f"{name}, {way}", row[way]["ratio"], wanted["size_ratio"], True)
    for row in result["overwrite"]:
        for case in row["cases"]:
            add(f"overwrites of {row['working_set_bytes'] >> 10} KiB, every {case['every']}",
                case["ratio"], wanted["overwrite"].get(case["every"]), False)
    for row in result["count"]:
        for way in ("engine", "core"):
            add(f"create, {row['count']:,} over 10 snapshots, {way}", row[way]["ratio"],
                wanted["count_ratio"], True)
    for row in result["cleaner"]:
        add("entries freed a second of the cleaner's time", row["per_second"],
            wanted["cleaned_per_second"], False)
        add("the same, from the delete until wait() returns", row["per_second_elapsed"],
            wanted["cleaned_per_second"], False)
    return found

"""Many processes on few cores, by a job file with a [crowd] or a [footprint] table.

- `Footprint`: how long an engine with many workers takes to start and to stop, what each worker
  takes of memory, what the idle engine takes of the processor.
- `Crowd`: what more attached processes than cores get done together, against few of them.

With [[clients]] the file is a load job as well, which is run afterwards.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nova_mp import config
from nova_mp.config import parse_size

from .arena import temporary_arena
from .environment import describe
from .job import (
    NO_KEYS,
    ArenaSpec,
    JobError,
    Table,
    load_job,
    number,
    read_arena,
    read_tables,
    table,
    whole,
)
from .loadclient import Target
from .loadgen import run_load
from .peers import bind_write, scratch_directory
from .pool import Pool
from .snapview import Sheet, target_sheet
from .units import parse_duration, show_bytes, show_ns, show_rate

Progress = Callable[[str, float, float], None]
TABLES = ("crowd", "footprint")
OUTPUT_VERSION = 1
BLOCK = 4096
LEAD_NS = 200_000_000
WAKE_NS = 5_000_000
"""Time for one more process to be told when the window opens."""
GLANCE = 16
"""Calls between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """``processes`` of each round, and the bytes that those of a round overwrite together."""

    processes: tuple[int, ...]
    window_ns: int
    repeats: int
    working_set_bytes: int
    target: float | None


@dataclass(frozen=True, slots=True)
class Footprint:
    """How long the idle engine is watched, and the limits."""

    idle_ns: int
    limits: dict[str, float]


LIMITS = ("start_s", "stop_s", "worker_bytes", "idle_share")


def is_crowd(path: Path) -> bool:
    """Whether a job file is one for this module."""
    return not read_tables(path).keys().isdisjoint(TABLES)


def _counts(value: Any) -> tuple[int, ...]:
    found = tuple(map(whole(1, 1000), value if isinstance(value, list) else [None]))
    if len(found) < 2:
        raise ValueError(f"expected at least two numbers of processes, got {value!r}")
    return found


def load_crowd(path: Path) -> tuple[ArenaSpec, Crowd | None, Footprint | None]:
    """Read a job file; raises JobError with the place of the first thing wrong."""
    tables = read_tables(path)
    top = Table(tables, path.name)
    arena = read_arena(top.take("arena", table, NO_KEYS))
    crowd = footprint = None
    if "crowd" in tables:
        keys = Table(top.take("crowd", table), "crowd")
        crowd = Crowd(
            keys.take("processes", _counts, (2, 8, 32, 128)),
            keys.take("window", parse_duration, 1_000_000_000),
            keys.take("repeats", whole(3, 1001), 5),
            keys.take("working_set", parse_size, 16 << 20),
            keys.take("target", number, 0.0) or None,
        )
        keys.done()
        if crowd.working_set_bytes // max(crowd.processes) < BLOCK:
            raise JobError("crowd: less than 4 KiB for each process", "make working_set larger")
    if "footprint" in tables:
        keys = Table(top.take("footprint", table), "footprint")
        footprint = Footprint(
            keys.take("idle", parse_duration, 10_000_000_000),
            {name: keys.take(name, number, 0.0) for name in LIMITS},
        )
        keys.done()
    for name in ("clients", "run"):
        top.take(name, lambda value: value, NO_KEYS)
    top.take("title", str, "")
    top.done()
    return arena, crowd, footprint


def run_crowd(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run it and return the result.

    ``progress(label, done, total)`` is called as it goes. Raises NovaError or OSError when the
    arena cannot be made, and what a load job raises.
    """
    arena, crowd, footprint = load_crowd(path)
    report = progress or (lambda label, done, total: None)
    tables = read_tables(path)
    processes = max(crowd.processes) if crowd else 0
    result: dict[str, Any] = {
        "output_version": OUTPUT_VERSION, "kind": "crowd", "name": path.stem, "job": tables,
        "environment": describe(cpus=arena.cpus, processes=processes), "targets": [],
    }
    steps = 1 if crowd is None else 2 * crowd.repeats + 2
    if footprint is not None:
        report("start, rest, stop", 0, steps)
        result["footprint"] = measure_footprint(arena, footprint)
        result["targets"] += result["footprint"].pop("targets")
    if crowd is not None:
        result["crowd"] = measure_crowd(arena, crowd, lambda label, at: report(label, at, steps))
        result["targets"] += result["crowd"].pop("targets")
    if "clients" in tables:
        result["load"] = run_load(load_job(path, besides=TABLES), progress)
    report("done", steps, steps)
    return result


# --------------------------------------------------------------------------------- footprint


def measure_footprint(spec: ArenaSpec, footprint: Footprint) -> dict[str, Any]:
    """Start, rest and stop an engine.

    Memory is proportional (PSS): a page that n processes share counts 1/n for each. Processor time
    is a share of one core.
    """
    with temporary_arena(spec, "footprint", start=False) as arena:
        began = time.monotonic()
        arena.start()
        start_s = time.monotonic() - began
        record = config.read_engine_record(arena.name)
        assert record is not None
        pids = {"supervisor": record.pid, **{title: pid for title, pid, _ in record.children}}
        # What a start leaves to do is over when the cleaner and the coordinator have had their say.
        time.sleep(1.0)
        before, began = _cpu_seconds(pids), time.monotonic()
        time.sleep(footprint.idle_ns / 1e9)
        used, took = _cpu_seconds(pids), time.monotonic() - began
        share = sum(used[title] - before[title] for title in pids) / took
        memory = {title: _pss_bytes(pid) for title, pid in pids.items()}
        began = time.monotonic()
        arena.stop()
        stop_s = time.monotonic() - began
    workers = [size for title, size in memory.items() if title.startswith("worker-")]
    found = {
        "start_s": start_s, "stop_s": stop_s, "worker_bytes": max(workers), "idle_share": share,
    }
    return {
        "workers": len(workers), "load_average": os.getloadavg()[0], **found,
        "worker_bytes_median": statistics.median(workers),
        "others_bytes": {t: size for t, size in memory.items() if not t.startswith("worker-")},
        "targets": [
            {"name": _LIMIT_NAMES[name], "value": found[name], "target": limit,
             "low_is_good": True, "met": found[name] <= limit}
            for name, limit in footprint.limits.items() if limit
        ],
    }


_LIMIT_NAMES = {
    "start_s": "start, seconds", "stop_s": "stop, seconds",
    "worker_bytes": "memory of a worker (PSS), bytes", "idle_share": "idle engine, cores",
}


def _cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """Processor time of each process so far, of all its threads."""
    found = {}
    for title, pid in pids.items():
        nanoseconds = 0
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as stream:
                nanoseconds += int(stream.read().split()[0])
        found[title] = nanoseconds / 1e9
    return found


def _pss_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith("Pss:"))


# ------------------------------------------------------------------------------------- crowd


def measure_crowd(
    spec: ArenaSpec, crowd: Crowd, report: Callable[[str, int], None]
) -> dict[str, Any]:
    """Rounds of each number of processes, taking turns, on the arena and on tmpfs."""
    with temporary_arena(spec, "crowd") as arena, scratch_directory("/dev/shm") as where:
        ours = _rounds(Target("attached", arena.name), crowd, lambda at: report("nova_mp", at))
        theirs = _rounds(
            Target("directory", where), crowd, lambda at: report("tmpfs", crowd.repeats + 1 + at)
        )
    few = crowd.processes[0]
    return {
        "working_set_bytes": crowd.working_set_bytes, "nova_mp": ours, "peer": theirs,
        "targets": [] if crowd.target is None else [
            {"name": f"{row['processes']} processes over {few}", "value": row["ratio"],
             "target": crowd.target, "low_is_good": False, "met": row["ratio"] >= crowd.target}
            for row in ours[1:]
        ],
    }


def _rounds(target: Target, crowd: Crowd, report: Callable[[int], None]) -> list[dict[str, Any]]:
    """For each number of processes: rates of all together, and their median against the first's."""
    rates: dict[int, list[float]] = {count: [] for count in crowd.processes}
    ratios: dict[int, list[float]] = {count: [] for count in crowd.processes}
    arguments = [(target, crowd, index) for index in range(max(crowd.processes))]
    with Pool(crowd_main, arguments) as pool:
        pool.collect(300.0)
        for repeat in range(crowd.repeats + 1):
            report(repeat)
            found = {count: _round(pool, crowd, count) for count in crowd.processes}
            # The first round makes the files and warms up, uncounted.
            for count in crowd.processes if repeat else ():
                rates[count].append(found[count])
                ratios[count].append(found[count] / found[crowd.processes[0]])
        pool.call("finish", timeout=120.0)
    return [
        {"processes": count, "per_second": statistics.median(rates[count]),
         "ratio": statistics.median(ratios[count]), "runs": rates[count], "ratios": ratios[count]}
        for count in crowd.processes
    ]


def _round(pool: Pool, crowd: Crowd, count: int) -> float:
    """Operations a second of the first `count` processes, which start at one instant."""
    size = crowd.working_set_bytes // count // BLOCK * BLOCK
    # Waking, and making a file of another size, is over when the window opens.
    pool.post("prepare", *(size, count))
    pool.collect(120.0)
    start = time.monotonic_ns() + LEAD_NS + count * WAKE_NS
    pool.post("run", start, count)
    done = sum(found for found in pool.collect(120.0) if found is not None)
    return done * 1e9 / crowd.window_ns


def crowd_main(pipe: Connection, target: Target, crowd: Crowd, index: int) -> None:
    """One process of `Crowd`, wherever the scheduler puts it."""
    file_system = target.connect()
    file = file_system.open(f"/crowd-{index}", "x+b")
    data = bytearray(random.Random(index).randbytes(BLOCK))
    function, fixed = bind_write(file, data, 0)
    calls: list[tuple[Any, ...]] = []
    gc.disable()
    pipe.send(("ok", None))
    while True:
        try:
            verb, values = pipe.recv()
        except EOFError:
            break
        done = None
        if verb == "prepare" and index < values[1]:
            file.truncate(0)
            file.pwrite(bytes(values[0]), 0)
            offsets = list(range(0, values[0], BLOCK))
            random.Random(index).shuffle(offsets)
            calls = [(*fixed[:-1], offset) for offset in offsets]
        elif verb == "run" and index < values[1]:
            done = _overwrite(function, calls, values[0], values[0] + crowd.window_ns)
        pipe.send(("ok", done))
        if verb == "finish":
            break
    file.close()
    file_system.close()


def _overwrite(function: Any, calls: list[tuple[Any, ...]], start: int, end: int) -> int:
    """Calls that were over before `end`; who is not scheduled then has done none since."""
    clock = time.monotonic_ns
    done, at = 0, 0
    time.sleep(max(0.0, (start - clock()) / 1e9))
    while True:
        for arguments in calls[at : at + GLANCE]:
            function(*arguments)
        if clock() > end:
            return done
        done += len(calls[at : at + GLANCE])
        at = at + GLANCE if at + GLANCE < len(calls) else 0


# ------------------------------------------------------------------------------------ tables


def sheets(result: dict[str, Any]) -> Iterator[Sheet]:
    """The tables of a result, but for its load's."""
    if found := result.get("footprint"):
        yield Sheet(
            f"An engine with {found['workers']} workers",
            f"at a load average of {found['load_average']:.1f}",
            ("start", "stop", "worker", "largest", "supervisor", "coordinator", "idle"),
            [(
                show_ns(found["start_s"] * 1e9), show_ns(found["stop_s"] * 1e9),
                show_bytes(found["worker_bytes_median"]), show_bytes(found["worker_bytes"]),
                show_bytes(found["others_bytes"]["supervisor"]),
                show_bytes(found["others_bytes"]["coordinator"]), f"{found['idle_share']:.2%}",
            )],
        )
    if found := result.get("crowd"):
        yield Sheet(
            "4 KiB overwrites of attached processes together",
            f"{show_bytes(found['working_set_bytes'])} of data, divided among them",
            ("processes", "nova_mp", "ratio", "tmpfs", "ratio"),
            [
                (str(ours["processes"]), show_rate(ours["per_second"]), f"{ours['ratio']:.2f}",
                 show_rate(theirs["per_second"]), f"{theirs['ratio']:.2f}")
                for ours, theirs in zip(found["nova_mp"], found["peer"], strict=True)
            ],
        )
    if result["targets"]:
        yield target_sheet(result)

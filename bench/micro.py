"""One attached process against the same calls of the operating system, on a file system in memory.

A job file with [[cases]] is a micro benchmark. How the loops are made fair is in `timing`; what
else such a file may ask for (two processes against one, memory use, crash mounts) is in
`scenarios`. Targets stand beside the figures, met or missed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova_mp.config import parse_size

from . import scenarios
from .arena import temporary_arena
from .environment import describe
from .job import (
    NO_KEYS,
    ArenaSpec,
    JobError,
    Table,
    number,
    one_of,
    read_arena,
    read_tables,
    rows,
    table,
    whole,
)
from .peers import file_system_of, scratch_directory
from .timing import Case, Subject, compare, take_turns

Progress = Callable[[str, float, float], None]
OUTPUT_VERSION = 1
OPERATIONS = ("pwrite", "preadinto", "create", "stat")
REPEATS_MIN = 7


@dataclass(frozen=True, slots=True)
class MicroJob:
    """A micro benchmark's job file."""

    name: str
    arena: ArenaSpec
    peer: str
    repeats: int
    seed: int
    cases: tuple[Case, ...]
    scaling: scenarios.Scaling | None
    memory: scenarios.Memory | None
    recovery: scenarios.Recovery | None
    tables: dict[str, Any]


def is_micro(path: Path) -> bool:
    """Whether a job file is one for this module."""
    return "cases" in read_tables(path)


def load_micro(path: Path) -> MicroJob:
    """Read a micro benchmark; raises JobError with the place of the first thing wrong."""
    tables = read_tables(path)
    top = Table(tables, path.name)
    run = Table(top.take("run", table, NO_KEYS), "run")
    job = MicroJob(
        name=top.take("name", str, path.stem),
        arena=read_arena(top.take("arena", table, NO_KEYS)),
        peer=run.take("peer", str, "/dev/shm"),
        repeats=run.take("repeats", whole(REPEATS_MIN, 1001), 9),
        seed=run.take("seed", whole(0), 1),
        cases=tuple(_read_case(row, at) for at, row in enumerate(top.take("cases", rows))),
        scaling=scenarios.read_scaling(tables.get("scaling")),
        memory=scenarios.read_memory(tables.get("memory")),
        recovery=scenarios.read_recovery(tables.get("recovery")),
        tables=tables,
    )
    run.done()
    for name in ("scaling", "memory", "recovery"):
        top.take(name, table, NO_KEYS)
    top.take("title", str, "")
    top.done()
    return job


def _read_case(values: Any, index: int) -> Case:
    keys = Table(values, f"cases[{index}]")
    case = Case(
        name=keys.take("name", str),
        operation=keys.take("operation", one_of(*OPERATIONS)),
        operations=keys.take("operations", whole(1)),
        block_bytes=keys.take("block", parse_size, 4096),
        working_set_bytes=keys.take("working_set", parse_size, 4096),
        pattern=keys.take("pattern", one_of("random", "sequential"), "random"),
        target=keys.take("target", number, 0.0) or None,
    )
    keys.done()
    if case.working_set_bytes % case.block_bytes:
        raise JobError(f"{keys.where}: working_set is not a multiple of block", "make it one")
    return case


def run_micro(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run a micro benchmark and return its result.

    ``progress(label, done, total)`` is called as it goes. Raises NovaError or OSError when the
    arena or the peer's files cannot be made.
    """
    job = load_micro(path)
    report = progress or (lambda label, done, total: None)
    parts: list[tuple[str, Any]] = [
        ("scaling", job.scaling), ("memory", job.memory), ("recovery", job.recovery),
    ]
    wanted = [(name, part) for name, part in parts if part is not None]
    total = len(job.cases) + len(wanted)
    processes = job.scaling.processes if job.scaling else 1
    result: dict[str, Any] = {
        "output_version": OUTPUT_VERSION, "kind": "micro", "name": job.name, "job": job.tables,
        "environment": describe(cpus=job.arena.cpus, processes=processes),
        "peer": {"path": job.peer, "file_system": file_system_of(job.peer)},
    }
    result["cases"] = _run_cases(job, report, total)
    for at, (name, part) in enumerate(wanted):
        report(name, len(job.cases) + at, total)
        result[name] = part.run(job.arena, job.peer, job.repeats)
    report("done", total, total)
    met = [row["met"] for row in targets(result)]
    result["targets"] = {"met": met.count(True), "missed": met.count(False)}
    return result


def _run_cases(job: MicroJob, report: Progress, total: int) -> list[dict[str, Any]]:
    found = []
    with (
        temporary_arena(job.arena, "micro") as arena,
        arena.attach() as file_system,
        scratch_directory(job.peer) as where,
    ):
        for index, case in enumerate(job.cases):
            report(case.name, index, total)
            # One path for both: a lookup of more components costs more, on either side.
            path = f"{where}/case-{index}"
            with closing(Subject(case, file_system, path, path, job.seed)) as subject:
                times = take_turns((subject.ours(), subject.theirs()), job.repeats)
            found.append(compare(case, *times))
    return found


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows with a target: name, value, target, whether a low value is good, and met."""
    rows_found = [
        {"name": case["name"], "value": case["ratio"], "unit": "times the peer's rate",
         "target": case["target"], "met": case["met"]}
        for case in result["cases"] if case["target"] is not None
    ]
    for name in ("scaling", "memory", "recovery"):
        rows_found += result.get(name, {}).get("targets", [])
    return rows_found

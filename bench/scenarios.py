"""What a micro benchmark measures besides single calls, each on an arena of its own.

- `Scaling`: several attached processes on files of their own, against one of them.
- `Memory`: how much of the volatile segment the files of a full arena take.
- `Recovery`: how fast the logs are read when an arena is mounted after a crash.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from dataclasses import dataclass
from errno import ENOSPC
from multiprocessing.connection import Connection
from typing import Any

from nova_mp.config import parse_size

from .arena import temporary_arena
from .job import ArenaSpec, Table, number, whole
from .loadclient import Target, wait_until
from .peers import bind_write, scratch_directory
from .pool import Pool
from .timing import Case, collector_off, draw_offsets

BLOCK = 4096
LEAD_NS = 30_000_000
FILES_PER_FOLDER = 1000


# ---------------------------------------------------------------------------- many processes


@dataclass(frozen=True, slots=True)
class Scaling:
    """``processes`` at once, each overwriting 4 KiB pieces of a file of its own."""

    processes: int
    operations: int
    working_set_bytes: int
    target: float | None

    def run(self, arena: ArenaSpec, peer: str, repeats: int) -> dict[str, Any]:
        """Rates of one and of all, taking turns, on the arena and on the peer."""
        with temporary_arena(arena, "scaling") as ours, scratch_directory(peer) as where:
            nova = self._measure(Target("attached", ours.name), repeats)
            other = self._measure(Target("directory", where), repeats)
        ratio = nova["ratio"]
        return {
            "processes": self.processes, "operations": self.operations,
            "pinned": len(os.sched_getaffinity(0)) >= self.processes,
            "nova_mp": nova, "peer": other,
            "targets": [] if self.target is None else [{
                "name": f"{self.processes} processes on files of their own", "value": ratio,
                "unit": "times one process", "target": self.target, "met": ratio >= self.target,
            }],
        }

    def _measure(self, target: Target, repeats: int) -> dict[str, Any]:
        case = Case("scaling", "pwrite", self.operations, BLOCK, self.working_set_bytes)
        arguments = [(target, case, index) for index in range(self.processes)]
        alone: list[float] = []
        together: list[float] = []
        cpu_alone: list[float] = []
        cpu_together: list[float] = []
        with Pool(scaling_main, arguments) as pool:
            pool.collect(60.0)
            for repeat in range(repeats + 1):
                # The first round warms up both, uncounted; then each process has its turn alone.
                one = self._round(pool, [repeat % self.processes])
                both = self._round(pool, range(self.processes))
                if repeat:
                    alone.append(sum(rate for rate, _ in one))
                    together.append(sum(rate for rate, _ in both))
                    cpu_alone += [worked for _, worked in one]
                    cpu_together += [worked for _, worked in both]
            pool.call("finish")
        return {
            "one_cpu_ns": statistics.median(cpu_alone),
            "all_cpu_ns": statistics.median(cpu_together),
            "one_per_second": statistics.median(alone),
            "all_per_second": statistics.median(together),
            "ratio": statistics.median(together) / statistics.median(alone),
            "one_runs": alone, "all_runs": together,
        }

    def _round(self, pool: Pool, chosen: Any) -> list[tuple[float, float]]:
        """Rate and ns of processor time per operation of each chosen process.

        They start at one instant; the others wait.
        """
        start = time.monotonic_ns() + LEAD_NS
        for index in range(self.processes):
            pool.post_one(index, "run" if index in chosen else "rest", start)
        return [found for found in pool.collect(120.0) if found is not None]


def scaling_main(pipe: Connection, target: Target, case: Case, index: int) -> None:
    """One process of `Scaling`, on a core of its own where there are enough."""
    cores = sorted(os.sched_getaffinity(0))
    if index < len(cores):
        os.sched_setaffinity(0, {cores[index]})
    file_system = target.connect()
    file = file_system.open(f"/scaling-{index}", "x+b")
    data = bytearray(random.Random(index).randbytes(case.block_bytes))
    file.pwrite(bytes(case.working_set_bytes), 0)
    offsets = draw_offsets(case, index)
    function, fixed = bind_write(file, data, 0)
    calls = [(*fixed[:-1], offset) for offset in offsets]
    pipe.send(("ok", None))
    while True:
        try:
            verb, values = pipe.recv()
        except EOFError:
            break
        if verb == "finish":
            pipe.send(("ok", None))
            break
        rate = None
        if verb == "run":
            with collector_off():
                wait_until(values[0])
                worked, began = time.process_time_ns(), time.perf_counter_ns()
                for arguments in calls:
                    function(*arguments)
                took, worked = time.perf_counter_ns() - began, time.process_time_ns() - worked
                rate = len(calls) * 1e9 / took, worked / len(calls)
        pipe.send(("ok", rate))
    file.close()
    file_system.close()


# ------------------------------------------------------------------------------------ memory


@dataclass(frozen=True, slots=True)
class Memory:
    """Volatile memory of an arena full of 4 KiB files, and of one large file in random pieces."""

    size_bytes: int
    large_share: float | None

    def run(self, arena: ArenaSpec, peer: str, repeats: int) -> dict[str, Any]:
        """Fill two arenas; nothing is repeated, sizes do not vary."""
        spec = ArenaSpec(self.size_bytes, arena.cpus, arena.backing, arena.media)
        small = self._fill(spec, _fill_with_small_files)
        large = self._fill(spec, _fill_one_large_file)
        share = large["dram_share"]
        return {
            "arena_bytes": self.size_bytes, "small_files": small, "large_file": large,
            "targets": [] if self.large_share is None else [{
                "name": "DRAM of one large file", "value": share, "unit": "of the data",
                "target": self.large_share, "low_is_good": True, "met": share <= self.large_share,
            }],
        }

    def _fill(self, spec: ArenaSpec, fill: Any) -> dict[str, Any]:
        with temporary_arena(spec, "memory") as arena, arena.attach() as file_system:
            before = file_system.stats()["dram"]["bytes_used"]
            files, data = fill(file_system, spec.size_bytes)
            after = file_system.stats()["dram"]["bytes_used"]
        return {
            "files": files, "data_bytes": data, "dram_bytes_before": before,
            "dram_bytes": after, "dram_bytes_for_data": after - before,
            "dram_share": (after - before) / data, "dram_bytes_per_file": (after - before) / files,
        }


def _fill_with_small_files(file_system: Any, size_bytes: int) -> tuple[int, int]:
    """4 KiB files until the arena is full; returns how many, and their bytes."""
    files = 0
    data = random.Random(1).randbytes(BLOCK)
    try:
        while True:
            if files % FILES_PER_FOLDER == 0:
                folder = f"/folder-{files // FILES_PER_FOLDER}"
                file_system.mkdir(folder)
            with file_system.open(f"{folder}/file-{files}", "xb") as file:
                file.pwrite(data, 0)
            files += 1
    except OSError as error:
        if error.errno != ENOSPC:
            raise
    return files, files * BLOCK


def _fill_one_large_file(file_system: Any, size_bytes: int) -> tuple[int, int]:
    """One file of 3/4 of the arena, each of its blocks written once, in random order."""
    size = size_bytes // 4 * 3 // BLOCK * BLOCK
    data = random.Random(1).randbytes(BLOCK)
    with file_system.open("/large", "xb") as file:
        for offset in draw_offsets(Case("large", "pwrite", size // BLOCK, BLOCK, size), 1):
            file.pwrite(data, offset)
    return 1, size


# ---------------------------------------------------------------------------------- recovery


@dataclass(frozen=True, slots=True)
class Recovery:
    """A crash mount of an arena with many files of 4 KiB."""

    size_bytes: int
    files: int
    target: float | None

    def run(self, arena: ArenaSpec, peer: str, repeats: int) -> dict[str, Any]:
        """Make the files, crash, mount three times; the rate is the median."""
        spec = ArenaSpec(self.size_bytes, arena.cpus, arena.backing, arena.media)
        runs = []
        with temporary_arena(spec, "recovery") as subject:
            with subject.attach() as file_system:
                _make_files(file_system, self.files)
            for _ in range(3):
                subject.crash()
                began = time.monotonic()
                subject.start()
                seconds = time.monotonic() - began
                with subject.attach() as file_system:
                    runs.append({"start_seconds": seconds, **file_system.stats()["recovery"]})
        rate = statistics.median(run["entries_per_second"] for run in runs)
        return {
            "files": self.files, "entries_per_second": rate, "runs": runs,
            "targets": [] if self.target is None else [{
                "name": f"crash mount of {self.files:,} files", "value": rate,
                "unit": "log entries per second", "target": self.target,
                "met": rate >= self.target,
            }],
        }


def _make_files(file_system: Any, count: int) -> None:
    data = random.Random(1).randbytes(BLOCK)
    for index in range(count):
        if index % FILES_PER_FOLDER == 0:
            folder = f"/folder-{index // FILES_PER_FOLDER}"
            file_system.mkdir(folder)
        with file_system.open(f"{folder}/file-{index}", "xb") as file:
            file.pwrite(data, 0)


# ------------------------------------------------------------------------------------ tables


def read_scaling(values: Any) -> Scaling | None:
    """The [scaling] table, if there is one."""
    if values is None:
        return None
    keys = Table(values, "scaling")
    found = Scaling(
        keys.take("processes", whole(2, 128), 2),
        keys.take("operations", whole(1), 200_000),
        keys.take("working_set", parse_size, 256 << 10),
        keys.take("target", number, 0.0) or None,
    )
    keys.done()
    return found


def read_memory(values: Any) -> Memory | None:
    """The [memory] table, if there is one."""
    if values is None:
        return None
    keys = Table(values, "memory")
    found = Memory(
        keys.take("size", parse_size, 256 << 20), keys.take("large_share", number, 0.0) or None
    )
    keys.done()
    return found


def read_recovery(values: Any) -> Recovery | None:
    """The [recovery] table, if there is one."""
    if values is None:
        return None
    keys = Table(values, "recovery")
    found = Recovery(
        keys.take("size", parse_size, 2 << 30), keys.take("files", whole(1), 200_000),
        keys.take("target", number, 0.0) or None,
    )
    keys.done()
    return found

"""The engine shown end to end on a real tree, with every snapshot verified.

    python -m nova_mp.bench.demo            (or: make demo)

Four client processes import this machine's Python standard library into an arena, then rewrite,
rename and delete in it while a snapshot is taken twenty times a second. Each client records what it
did and when; afterwards every snapshot is read whole, and `oracle` decides whether it is a moment
of that history. Then the snapshots are deleted, the space they held is counted back to the block,
the arena is crashed, mounted again and verified again. The same work on tmpfs stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nova_mp.config import CPUS_MAX, parse_size
from nova_mp.errors import NovaError
from nova_mp.tools import fsck

from . import democlient
from .arena import Arena, temporary_arena
from .demoplan import Options, folders_of, make_folders, make_plan
from .demoview import View, print_result
from .environment import describe
from .histogram import Histogram, merge
from .job import ArenaSpec
from .loadclient import Target
from .oracle import History, Oracle, Replay, Taken, Violation
from .peers import scratch_directory
from .pool import Pool
from .units import show_bytes

OUTPUT_VERSION = 1
BLOCK_BYTES = 4096
LEAD_NS = 50_000_000


class Demo:
    """One run of the demo; `run` gives the result as JSON would hold it."""

    def __init__(self, options: Options, view: View) -> None:
        self.options = options
        self.view = view
        self.plan = make_plan(options)
        self.checks: list[dict[str, Any]] = []
        self.folders = folders_of([path for _, path in self.plan.items])
        self.taken: list[Taken] = []
        self.late = 0
        self.histories: list[History] = []
        self.before_crash: dict[str, int] = {}

    def run(self) -> dict[str, Any]:
        """All phases in order. Raises NovaError or OSError when something cannot be done at all."""
        began = time.monotonic()
        options = self.options
        environment = describe(cpus=options.cpus, processes=options.clients)
        with scratch_directory("/dev/shm") as where:
            peer = self._work("tmpfs", Target("directory", where), None)
        spec = ArenaSpec(self.plan.arena_bytes, options.cpus)
        with temporary_arena(spec, "demo", start=False) as arena:
            mounted = self._timed("start the engine", arena.start)
            ours = self._on_arena(arena)
            recovery = self._crash_and_verify(arena)
        return {
            "output_version": OUTPUT_VERSION, "kind": "demo", "environment": environment,
            "options": {
                "clients": options.clients, "cpus": options.cpus, "seconds": options.seconds,
                "rate": options.rate, "tree": options.tree, "seed": options.seed,
            },
            "arena_bytes": self.plan.arena_bytes, "files": len(self.plan.items),
            "tree_bytes": self.plan.tree_bytes, "start_seconds": mounted,
            "nova_mp": ours, "tmpfs": peer, "recovery": recovery, "checks": self.checks,
            "passed": all(check["ok"] for check in self.checks),
            "seconds": round(time.monotonic() - began, 3), "phases": self.view.phases,
        }

    def _timed(self, label: str, work: Callable[[], Any]) -> float:
        with self.view.task(label):
            began = time.monotonic()
            work()
            return round(time.monotonic() - began, 4)

    def _check(self, name: str, ok: bool, detail: str) -> None:
        self.checks.append({"name": name, "ok": ok, "detail": detail})

    # --------------------------------------------------------------------------------- work

    def _pool(self, target: Target) -> Pool:
        count, items = self.options.clients, self.plan.items
        # Neighbours in the tree go to different clients, so that they share its folders.
        return Pool(
            democlient.main,
            [
                (target, index, items[index::count], self.plan.window_bytes, self.options.seed)
                for index in range(count)
            ],
            self.view.note,
        )

    def _prepare(self, pool: Pool, file_system: Any) -> None:
        """Clients are there and hold the tree in memory; its folders are made."""
        with self.view.task("start the clients"):
            pool.collect(60.0)
            make_folders(file_system, self.folders)
            pool.call("load")

    def _work(
        self, name: str, target: Target, on_tick: Callable[[], None] | None,
        pool: Pool | None = None,
    ) -> dict[str, Any]:
        """Import, then mutate, with or without snapshots; returns the figures of both."""
        with ExitStack() as stack:
            if pool is None:
                pool = stack.enter_context(self._pool(target))
                with target.connect() as file_system:
                    self._prepare(pool, file_system)
            with self.view.task(f"{name}: import", len(self.plan.items)):
                pool.post("import_tree", time.monotonic_ns() + LEAD_NS)
                imported = figures(pool.collect(300.0))
            self.view.start_clock(f"{name}: rewrite, rename, delete", self.options.seconds)
            start = time.monotonic_ns() + LEAD_NS
            end = start + int(self.options.seconds * 1e9)
            pool.post("mutate", start, end)
            with self.view.clock_running():
                if on_tick is not None:
                    self._take_snapshots(on_tick, start, end)
                mutated = figures(pool.collect(60.0 + self.options.seconds))
            return {"import": imported, "mutate": mutated}

    def _take_snapshots(self, take: Callable[[], None], start: int, end: int) -> None:
        """Call ``take`` on schedule until the clients end."""
        period = int(1e9 / self.options.rate)
        due = start + period
        while due < end:
            time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
            take()
            due += period
            if due < time.monotonic_ns():
                self.late += 1
                due = time.monotonic_ns()

    def _on_arena(self, arena: Arena) -> dict[str, Any]:
        target = Target("attached", arena.name)
        latency = Histogram()
        with arena.attach() as file_system, self._pool(target) as pool:
            self._prepare(pool, file_system)

            def take() -> None:
                before = time.monotonic_ns()
                snapshot = file_system.snapshots.create()
                after = time.monotonic_ns()
                self.taken.append(Taken(snapshot.epoch_id, before, after))
                latency.record([after - before])

            found = self._work("nova_mp", target, take, pool)
            counters = file_system.stats()["counters"]
            self.histories = pool.call("hand_over")
            held = space(file_system)
            self._verify_snapshots(pool)
            deletion = self._delete_snapshots(file_system)
            self.before_crash = space(file_system)
            self._check_space(arena, held, self.before_crash)
            pool.call("finish")
        return {
            **found, "snapshots": {
                "taken": len(self.taken), "rate": self.options.rate, "periods_missed": self.late,
                "create_latency": latency.summary(), **deletion,
            },
            "space": {"with_snapshots": held, "without": self.before_crash},
            "counters": {name: count for name, count in counters.items() if count},
        }

    # ------------------------------------------------------------------------------- verify

    def _verify_snapshots(self, pool: Pool) -> None:
        """Read every snapshot whole, spread over the clients, and judge each."""
        oracle = Oracle(self.histories)
        wrong: list[str] = []
        files = size = 0
        count = len(pool.pipes)
        with self.view.task("verify snapshots", len(self.taken)) as advance:
            for at in range(0, len(self.taken), count):
                batch = self.taken[at : at + count]
                for index in range(count):
                    epoch_id = batch[index].epoch_id if index < len(batch) else None
                    pool.post_one(index, "digest_of", epoch_id)
                for taken, reply in zip(batch, pool.collect(120.0), strict=False):
                    problem = self._judge(oracle, taken, reply)
                    if problem:
                        wrong.append(problem)
                    files += len(reply[0])
                    size += sum(length for length, _ in reply[0].values())
                advance(len(batch))
        self._check(
            "every snapshot is a moment of the clients' work", not wrong and bool(self.taken),
            wrong[0] if wrong else
            f"{len(self.taken)} snapshots, {files} files, {show_bytes(size)} read and checked",
        )

    def _judge(
        self, oracle: Oracle, taken: Taken, reply: tuple[dict[str, tuple[int, int]], set[str]]
    ) -> str:
        """What is wrong with a snapshot, or nothing."""
        try:
            oracle.check(taken, reply[0])
        except Violation as violation:
            return str(violation)
        if reply[1] != set(self.folders):
            odd = min(reply[1] ^ set(self.folders))
            return f"snapshot {taken.epoch_id}: folder {odd} is missing or extra"
        return ""

    def _verify_live(self, file_system: Any, name: str) -> None:
        try:
            files, folders = democlient.digest(file_system)
            Oracle(self.histories).check_final(files)
        except (Violation, OSError, NovaError) as problem:
            self._check(name, False, str(problem))
            return
        size = sum(length for length, _ in files.values())
        self._check(
            name, folders == set(self.folders), f"{len(files)} files, {show_bytes(size)}"
        )

    def _delete_snapshots(self, file_system: Any) -> dict[str, Any]:
        latency = Histogram()
        with self.view.task("delete snapshots", len(self.taken)) as advance:
            for taken in self.taken:
                before = time.monotonic_ns()
                file_system.snapshots.delete(taken.epoch_id)
                latency.record([time.monotonic_ns() - before])
                advance(1)
        began = time.monotonic()
        with self.view.task("wait for the cleaner"):
            file_system.snapshots.wait()
        return {
            "delete_latency": latency.summary(),
            "cleaner_seconds": round(time.monotonic() - began, 4),
        }

    def _check_space(self, arena: Arena, held: dict[str, int], after: dict[str, int]) -> None:
        """Nothing is held, and an independent count of the logs' blocks leaves as many free."""
        with self.view.task("count all blocks again"):
            report = fsck.check(arena.name, free_blocks=after["free"])
        counted = report.statistics["blocks"]
        data = sum(
            -(-length // BLOCK_BYTES) for state in map(final_state, self.histories)
            for length, _ in state.values()
        )
        back = held["used"] - after["used"]
        self._check(
            "deleting the snapshots gave all their space back, to the block",
            after["held"] == 0 and counted["free"] == after["free"] and counted["data"] == data,
            f"{back:,} blocks ({show_bytes(back * BLOCK_BYTES)}) came back, {after['held']} held;"
            f" free: {after['free']:,} by the engine, {counted['free']:,} recounted from the logs;"
            f" data: {counted['data']:,}, {data:,} by the clients' records",
        )
        self._check(
            "fsck finds nothing wrong", report.ok,
            str(report.errors[0]) if report.errors else f"{len(report.warnings)} warnings",
        )

    def _crash_and_verify(self, arena: Arena) -> dict[str, Any]:
        """Power failure, mount, and the same files in the same number of blocks."""
        with self.view.task("crash"):
            arena.crash()
        seconds = self._timed("mount after the crash", arena.start)
        with arena.attach() as file_system:
            with self.view.task("verify again"):
                self._verify_live(file_system, "after crash and mount all files are as they were")
            stats = file_system.stats()
            after = space(file_system)
            self._check(
                "crash and mount find the same blocks in use, to the block",
                after["used"] == self.before_crash["used"],
                f"{self.before_crash['used']} before, {after['used']} after",
            )
        return {"start_seconds": seconds, "space": after, **stats["recovery"]}


def figures(replies: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all clients together."""
    seconds = (max(r["ended"] for r in replies) - min(r["began"] for r in replies)) / 1e9
    operations, size = sum(r["operations"] for r in replies), sum(r["bytes"] for r in replies)
    kinds = sorted({kind for reply in replies for kind in reply["latency"]})
    return {
        "seconds": round(seconds, 4), "operations": operations, "bytes": size,
        "files": sum(r["files"] for r in replies),
        "operations_per_second": operations / seconds, "bytes_per_second": size / seconds,
        "latency": {
            kind: merge(
                Histogram.unpack(r["latency"][kind]) for r in replies if kind in r["latency"]
            ).summary()
            for kind in kinds
        },
    }


def final_state(history: History) -> dict[str, tuple[int, int]]:
    """What a client's files should hold after all it did."""
    replay = Replay(history)
    replay.advance(len(history))
    return replay.state


def space(file_system: Any) -> dict[str, int]:
    """Blocks of the arena: total, free, used, and held by snapshots alone."""
    blocks = file_system.stats()["blocks"]
    total, free = int(blocks["total"]), int(blocks["free"])
    return {"total": total, "free": free, "used": total - free, "held": int(blocks.get("held", 0))}


def parse_arguments(arguments: list[str] | None) -> tuple[Options, argparse.Namespace]:
    """The command line of the demo."""
    parser = argparse.ArgumentParser(prog="nova_mp.bench.demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clients", type=int, default=4, help="client processes")
    parser.add_argument("--cpus", type=int, default=4, help="emulated CPUs of the arena")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long they rewrite")
    parser.add_argument("--rate", type=float, default=20.0, help="snapshots a second")
    parser.add_argument("--tree", default=sysconfig.get_path("stdlib"), help="what to import")
    parser.add_argument("--size", type=_size, default=0, help="arena, such as 1GiB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="the whole result on stdout")
    parser.add_argument("--out", type=Path, help="also write the result as JSON to this file")
    chosen = parser.parse_args(arguments)
    for name, most in (("clients", 128), ("cpus", CPUS_MAX), ("seconds", 86_400), ("rate", 1000)):
        if not 0 < getattr(chosen, name) <= most:
            parser.error(f"--{name} must be more than 0 and at most {most:,}")
    if not Path(chosen.tree).is_dir():
        parser.error(f"--tree: {chosen.tree} is no directory")
    if chosen.out and (chosen.out.is_dir() or not chosen.out.absolute().parent.is_dir()):
        parser.error(f"--out: {chosen.out} is no file in a directory that exists")
    options = Options(
        chosen.clients, chosen.cpus, chosen.seconds, chosen.rate, chosen.tree, chosen.size,
        chosen.seed,
    )
    return options, chosen


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def failed(verb: str, what: str, error: Exception) -> int:
    """Say what could not be done, and why; returns the exit code."""
    reason = error.reason if isinstance(error, NovaError) else str(error)
    hint = getattr(error, "remedy", "") or "see: python -m nova_mp.bench.demo --help"
    print(f"nova-mp: cannot {verb} '{what}': {reason}\n  hint: {hint}", file=sys.stderr)
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 when all checks passed, 1 when not, 130 when interrupted."""
    options, chosen = parse_arguments(arguments)
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        with View(quiet=chosen.json) as view:
            result = Demo(options, view).run()
    except KeyboardInterrupt:
        print("interrupted; the arena and the clients are gone", file=sys.stderr)
        return 130
    except (NovaError, OSError, ValueError) as error:
        return failed("run", "demo", error)
    finally:
        signal.signal(signal.SIGTERM, previous)
    try:
        if chosen.out:
            chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        return failed("write", str(chosen.out), error)
    try:
        if chosen.json:
            print(json.dumps(result))
        else:
            print_result(result)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more is written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return failed("write", "standard output", error)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""What a person sees of the demo: progress bars while it runs (stderr), a table at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from .units import show_bytes, show_ns, show_rate


class View:
    """Progress bars on stderr, nothing when quiet; `phases` holds the seconds of each task."""

    def __init__(self, quiet: bool = False) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]:heavy_check_mark:[/]"),
            TextColumn("{task.description:<38}"), BarColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), console=Console(stderr=True), disable=quiet,
        )
        self._current: TaskID | None = None
        self._notes: dict[int, int] = {}
        self._counting = False
        self._seconds = 0.0
        self.phases: dict[str, float] = {}

    def __enter__(self) -> View:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    @contextmanager
    def task(self, label: str, total: float | None = None) -> Iterator[Callable[[int], None]]:
        """A bar for as long as the body runs; what it yields advances it."""
        task = self._current = self._progress.add_task(label, total=total, note="")
        self._notes.clear()
        self._counting = total is not None
        began = time.monotonic()
        yield lambda steps: self._progress.advance(task, steps)
        self.phases[label] = round(time.monotonic() - began, 3)
        self._current = None
        self._progress.update(task, total=total or 1, completed=total or 1)

    def start_clock(self, label: str, seconds: float) -> None:
        """Add a bar that follows the clock; `clock_running` moves it."""
        self._current = self._progress.add_task(label, total=seconds, note="")
        self._notes.clear()
        self._counting = False
        self._seconds = seconds

    @contextmanager
    def clock_running(self) -> Iterator[None]:
        """The bar of `start_clock` moves on while the body runs."""
        task, began, over = self._current, time.monotonic(), threading.Event()
        assert task is not None

        def move() -> None:
            while not over.wait(0.1):
                passed = min(self._seconds, time.monotonic() - began)
                self._progress.update(task, completed=passed)

        mover = threading.Thread(target=move, daemon=True)
        mover.start()
        try:
            yield
        finally:
            over.set()
            mover.join()
        self._progress.update(task, completed=self._seconds)

    def note(self, client: int, value: Any) -> None:
        """A client says how far it is."""
        task = self._current
        if task is None:
            return
        self._notes[client] = int(value)
        done = sum(self._notes.values())
        if self._counting:
            self._progress.update(task, completed=done)
        self._progress.update(task, note=f"{done:,} {'files' if self._counting else 'operations'}")


def print_result(result: dict[str, Any]) -> None:
    """The table at the end, on stdout."""
    console = Console()
    console.print()
    console.print(_throughput(result))
    console.print(_latency(result))
    snapshots = result["nova_mp"]["snapshots"]
    create = snapshots["create_latency"]
    console.print(
        f"snapshots: {snapshots['taken']} taken at {snapshots['rate']:g}/s while all clients wrote"
        f" ({snapshots['periods_missed']} late); create p50 {show_ns(create['p50'])},"
        f" max {show_ns(create['max'])}; delete p50 {show_ns(snapshots['delete_latency']['p50'])}"
    )
    recovery = result["recovery"]
    console.print(
        f"crash mount: {recovery.get('inodes', 0):,} inodes, {recovery.get('entries', 0):,} log"
        f" entries in {show_ns(recovery.get('seconds', 0) * 1e9)}"
    )
    if result["environment"]["oversubscribed"]:
        environment = result["environment"]
        console.print(
            f"[yellow]{environment['client_processes']} clients share {environment['cores']}"
            " cores: latencies include waiting for a core[/]"
        )
    console.print()
    for check in result["checks"]:
        mark = "[green]passed[/]" if check["ok"] else "[bold red]FAILED[/]"
        console.print(f"{mark}  {check['name']}: {check['detail']}", highlight=False)
    console.print(f"{'done' if result['passed'] else 'FAILED'} in {result['seconds']:.1f} s")


def _throughput(result: dict[str, Any]) -> Table:
    table = Table(title="the same work on an arena (with snapshots) and on tmpfs (which has none)")
    for name in ("", "nova_mp", "tmpfs", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    ours, peer = result["nova_mp"], result["tmpfs"]
    for phase, label in (("import", "import"), ("mutate", "rewrite, rename, delete")):
        mine, other = ours[phase], peer[phase]
        table.add_row(
            f"{label}: operations",
            show_rate(mine["operations_per_second"]), show_rate(other["operations_per_second"]),
            _times(mine["operations_per_second"], other["operations_per_second"]),
        )
        table.add_row(
            f"{label}: data written",
            f"{show_bytes(int(mine['bytes_per_second']))}/s",
            f"{show_bytes(int(other['bytes_per_second']))}/s",
            _times(mine["bytes_per_second"], other["bytes_per_second"]),
        )
    return table


def _latency(result: dict[str, Any]) -> Table:
    table = Table(title="latency of single calls while snapshots were taken")
    for name in ("", "nova_mp p50", "p99", "tmpfs p50", "p99", "ratio p50"):
        table.add_column(name, justify="left" if not name else "right")
    mine = result["nova_mp"]["mutate"]["latency"]
    other = result["tmpfs"]["mutate"]["latency"]
    for kind in mine:
        if kind not in other:
            continue
        a, b = mine[kind], other[kind]
        table.add_row(
            kind, show_ns(a["p50"]), show_ns(a["p99"]), show_ns(b["p50"]), show_ns(b["p99"]),
            _times(b["p50"], a["p50"]),
        )
    return table


def _times(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f} x" if theirs else "-"

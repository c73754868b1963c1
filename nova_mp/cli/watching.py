"""What `nova-mp status --watch` shows: rates of each CPU and process between two looks.

The counters are in the arena's shared memory, one set for each thread of each process. Of every 64
operations of a kind one is timed, from the announcement of its epoch to its end; waiting for locks
comes before that, and is counted apart.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import click

from nova_mp.cli.output import Column, ListStyle, iso_time, table
from nova_mp.cli.report import OUTPUT_VERSION

_FIGURES = (
    Column("OPS/S", number=True),
    Column("READ/S", number=True),
    Column("WRITTEN/S", number=True),
    Column("READ NS", number=True),
    Column("WRITE NS", number=True),
    Column("OTHER NS", number=True),
    Column("LOCK WAITS/S", number=True),
    Column("NS A WAIT", number=True),
    Column("RETRIES/S", number=True),
    Column("REPAIRS", number=True),
)
_CPUS = (Column("CPU"), *_FIGURES)
_PROCESSES = (Column("PROCESS"), Column("PID", number=True), Column("STATE"), *_FIGURES)

Counters = Mapping[str, int]


def watch(name: str, every_s: float, style: ListStyle, as_json: bool) -> None:
    """Look at an arena every so many seconds, until Ctrl-C.

    Draws on a terminal, prints otherwise. Raises what `nova_mp.status` raises.
    """
    import nova_mp

    live: Any = nullcontext()
    if not as_json and style.header and sys.stdout.isatty():
        from rich.live import Live

        live = Live(auto_refresh=False)
    # Nobody sets it; waiting on it can be interrupted at once.
    never = threading.Event()
    before, then = nova_mp.status(name), time.monotonic()
    try:
        with live as screen:
            while True:
                never.wait(every_s)
                now_ns, found, now = time.time_ns(), nova_mp.status(name), time.monotonic()
                view = compare(before, found, now - then) | {"time": iso_time(now_ns)}
                before, then = found, now
                if as_json:
                    click.echo(json.dumps(view))
                elif screen is not None:
                    from rich.text import Text

                    drawn = Text.from_ansi("\n".join(lines(view, style)), no_wrap=True)
                    screen.update(drawn, refresh=True)
                else:
                    click.echo("\n".join([*lines(view, style), ""]))
                sys.stdout.flush()
    except KeyboardInterrupt:
        # That is how it ends.
        return


def compare(before: dict[str, Any], found: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What happened between two looks, `seconds` apart, as the JSON object of one line."""
    suspended = {row["pid"] for row in found.get("suspended", ())}
    cpus, was = _cpus(found), _cpus(before)
    rows = [{"cpu": cpu, **_figures(was.get(cpu, {}), cpus[cpu], seconds)} for cpu in cpus]
    own, other = _processes(found), _processes(before)
    processes = []
    for pid, (title, state, counters) in own.items():
        shown = "suspended" if pid in suspended else state
        figures = _figures(other.get(pid, ("", "", {}))[2], counters, seconds)
        processes.append({"title": title, "pid": pid, "state": shown, **figures})
    return {
        "output_version": OUTPUT_VERSION,
        "command": "status",
        "name": found["name"],
        "state": found["state"],
        "seconds": seconds,
        "cpus": rows,
        "processes": processes,
    }


def _cpus(status: dict[str, Any]) -> dict[int, Counters]:
    found: dict[int, Counters] = {}
    for row in status.get("stats", {}).get("cpus", ()):
        operations = sum(n for key, n in row["counters"].items() if key.startswith("op_"))
        found[row["cpu"]] = {**row["counters"], "operations": operations}
    return found


def _processes(status: dict[str, Any]) -> dict[int, tuple[str, str, Counters]]:
    """Title, state and counters of each process: the engine's, and those that are attached."""
    found = {row["pid"]: (row["title"], row["state"]) for row in status.get("processes", ())}
    found.pop(0, None)
    totals: dict[int, Counter[str]] = {pid: Counter() for pid in found}
    for slot in status.get("slots", ()):
        found.setdefault(slot["pid"], (slot["title"] or slot["role"], "attached"))
        numbers = {key: n for key, n in slot.items() if type(n) is int}
        totals.setdefault(slot["pid"], Counter()).update(numbers)
    return {pid: (*found[pid], totals[pid]) for pid in found}


def _figures(before: Counters, after: Counters, seconds: float) -> dict[str, Any]:
    """Rates a second, and mean times in ns of what was timed; None when nothing was."""

    def more(*names: str) -> int:
        # A thread that ends takes its counters out of its process's sum.
        return max(0, sum(after.get(name, 0) - before.get(name, 0) for name in names))

    def mean(total: str, count: str) -> int | None:
        return round(more(total) / more(count)) if more(count) else None

    return {
        "operations_per_s": more("operations") / seconds,
        "read_bytes_per_s": more("read_bytes") / seconds,
        "written_bytes_per_s": more("write_bytes") / seconds,
        "read_ns": mean("timed_read_ns", "timed_reads"),
        "write_ns": mean("timed_write_ns", "timed_writes"),
        "other_ns": mean("timed_other_ns", "timed_others"),
        "lock_waits_per_s": more("lock_waits") / seconds,
        "lock_wait_ns": mean("lock_wait_ns", "lock_waits"),
        "retries_per_s": more("read_retries", "read_locked", "epoch_retries") / seconds,
        "repairs": more("repairs"),
    }


def lines(view: dict[str, Any], style: ListStyle) -> list[str]:
    """One look as text: the time, then a table of the CPUs and one of the processes."""
    cpus = [(str(row["cpu"]), *_cells(row, style)) for row in view["cpus"]]
    processes = [
        (row["title"], str(row["pid"]), row["state"], *_cells(row, style))
        for row in view["processes"]
    ]
    shown = [f"{view['time']}  {view['name']} is {view['state']}"]
    for columns, rows in ((_CPUS, cpus), (_PROCESSES, processes)):
        if rows:
            shown += [""] * style.header + table(columns, rows, style)
    return shown


def _cells(row: dict[str, Any], style: ListStyle) -> list[str]:
    def time_of(name: str) -> str:
        return "-" if row[name] is None else f"{row[name]:,}"

    return [
        f"{row['operations_per_s']:,.0f}",
        style.size(round(row["read_bytes_per_s"])),
        style.size(round(row["written_bytes_per_s"])),
        time_of("read_ns"),
        time_of("write_ns"),
        time_of("other_ns"),
        f"{row['lock_waits_per_s']:,.0f}",
        time_of("lock_wait_ns"),
        f"{row['retries_per_s']:,.0f}",
        str(row["repairs"]),
    ]

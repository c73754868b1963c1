"""nova-mp status: show the arenas, or one of them in detail."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType, SecondsType
from nova_mp.cli.output import Column, ListStyle, facts, table
from nova_mp.cli.report import Report
from nova_mp.core import segment
from nova_mp.errors import ArenaNotFound

RATE_ENTRIES = 1000

_COLUMNS = (
    Column("NAME"),
    Column("STATE"),
    Column("SIZE", number=True),
    Column("FREE", number=True),
    Column("CPUS", number=True),
    Column("SNAPSHOTS", number=True),
    Column("BACKING"),
)
_PROCESS_COLUMNS = (
    Column("PROCESS"),
    Column("PID", number=True),
    Column("STATE"),
    Column("CPU", number=True),
)


@verb(
    "status",
    "examine",
    lists=True,
    examples="""
        nova-mp status                    all arenas of this machine
        nova-mp status demo               one in detail
        nova-mp status demo --json        everything that is known of it
        nova-mp status demo --watch 2     what its processes do, every two seconds until Ctrl-C
    """,
)
@click.argument("name", type=ArenaType(), required=False, metavar="[NAME]")
@click.option(
    "--watch",
    type=SecondsType(0.05, least_too=True),
    is_flag=False,
    flag_value=1.0,
    metavar="[SECONDS]",
    help="Show what CPUs and processes do, again and again; with --json one object a line.",
)
def command(
    report: Report, name: str | None, watch: float | None, style: ListStyle
) -> dict[str, Any] | None:
    """Show the arenas, or one of them in detail.

    STATE is running, frozen, starting, hanging, stopped, or crashed: then the next start recovers
    it. A suspended process was stopped by a signal. Processes are the engine's, and those that have
    attached the arena.
    """
    import nova_mp

    if watch is not None:
        if name is None:
            raise click.UsageError("--watch needs the NAME of an arena")
        from nova_mp.cli import watching

        with report.attempt(name):
            watching.watch(name, watch, style, report.as_json)
            # Its lines were all that was to be printed.
            report.as_json = False
        return None
    found = []
    for each in [name] if name else segment.arena_names():
        with report.attempt(each):
            try:
                found.append(nova_mp.status(each))
            except ArenaNotFound:
                # One that was removed while the others were looked at is no arena any more.
                if name or segment.registered(each) is not None:
                    raise
    if name:
        for arena in found:
            report.say("\n".join(_details(arena, style)))
        return {"arena": found[0] if found else None}
    if found:
        report.say("\n".join(table(_COLUMNS, [_row(arena, style) for arena in found], style)))
    elif style.header and not report.problems:
        report.say("no arenas; make one: nova-mp mkfs demo --size 256MiB --cpus 2")
    return {"arenas": [_summary(arena) for arena in found]}


def _free_bytes(arena: dict[str, Any]) -> int | None:
    blocks = arena.get("stats", {}).get("blocks")
    return None if blocks is None else int(blocks["free"]) * int(arena["block_bytes"])


def _summary(arena: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": arena["name"],
        "state": arena["state"],
        "size_bytes": arena["size_bytes"],
        "free_bytes": _free_bytes(arena),
        "cpus": arena["cpus"],
        "snapshots": _snapshot_count(arena),
        "backing": arena["backing"],
        "label": arena["label"],
    }


def _row(arena: dict[str, Any], style: ListStyle) -> tuple[str, ...]:
    row = _summary(arena)
    snapshots = row["snapshots"]
    return (
        row["name"],
        row["state"],
        style.size(row["size_bytes"]),
        style.size(row["free_bytes"]),
        str(row["cpus"]),
        "-" if snapshots is None else str(snapshots),
        row["backing"],
    )


def _details(arena: dict[str, Any], style: ListStyle) -> list[str]:
    pairs: list[tuple[str, Any]] = [("arena", arena["name"])]
    if arena["label"]:
        pairs.append(("label", arena["label"]))
    pairs += [("state", _state(arena)), ("size", _size(arena, style))]
    pairs += [("backing", arena["backing"]), ("CPUs", arena["cpus"]), ("epoch", arena["epoch_id"])]
    pairs.append(("made", style.time(arena["create_time_ns"])))
    if "pid" in arena:
        pairs.append(("engine", f"pid {arena['pid']}, medium {arena['media']}"))
        pairs.append(("address", arena["address"]))
        if arena["tcp_address"]:
            pairs.append(("by TCP", arena["tcp_address"]))
    if arena.get("suspended"):
        pairs.append(("suspended", _suspended(arena)))
    if arena.get("not_stopped"):
        pairs.append(("not stopped", _not_stopped(arena)))
    stats = arena.get("stats")
    if stats:
        pairs += _counts(stats, style)
    if mapped := _mapped(arena):
        pairs.append(("mapped files", mapped))
    lines = facts(pairs)
    if "processes" in arena and style.header:
        lines.append("")
    rows = [_process(process) for process in arena.get("processes", ())] + _clients(arena)
    return lines + (table(_PROCESS_COLUMNS, rows, style) if rows else [])


def _process(process: dict[str, Any]) -> tuple[str, ...]:
    """The row of a process of the engine."""
    cpu = process.get("cpu", -1)
    words = (process.get("title", ""), process.get("pid", "-"), process.get("state", ""))
    return (*map(str, words), "-" if cpu < 0 else str(cpu))


def _clients(arena: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the processes that have attached the arena, each with the CPUs it uses."""
    found: dict[int, tuple[set[str], set[int]]] = {}
    for slot in arena.get("slots", ()):
        if slot["role"] == "client":
            titles, cpus = found.setdefault(slot["pid"], (set(), set()))
            titles |= {slot["title"]} - {""}
            cpus.add(slot["cpu"])
    return [
        (", ".join(sorted(titles)) or "client", str(pid), "attached",
         ",".join(map(str, sorted(cpus))))
        for pid, (titles, cpus) in found.items()
    ]


def _state(arena: dict[str, Any]) -> str:
    state = str(arena["state"])
    holder = f"by pid {arena['freeze_holder']}; " if arena.get("freeze_holder") else ""
    hints = {
        "crashed": f"the next start recovers it: nova-mp start {arena['name']}",
        "stopped": f"start it: nova-mp start {arena['name']}",
        "frozen": f"{holder}let it go on: nova-mp unfreeze {arena['name']}",
    }
    return f"{state} ({hints[state]})" if state in hints else state


def _size(arena: dict[str, Any], style: ListStyle) -> str:
    size = style.size(arena["size_bytes"])
    if "stats" not in arena:
        return size
    blocks, block_bytes = arena["stats"]["blocks"], arena["block_bytes"]
    held = f", {style.size(blocks['held'] * block_bytes)} held by snapshots" * (blocks["held"] > 0)
    return f"{size}, {style.size(blocks['free'] * block_bytes)} free{held}"


def _counts(stats: dict[str, Any], style: ListStyle) -> list[tuple[str, Any]]:
    inodes, dram, snapshots = stats["inodes"], stats["dram"], stats["snapshots"]
    limit = f" of {inodes['limit']:,}" if inodes["limit"] else ""
    backlog = snapshots["backlog"]
    left = f", {backlog:,} list entries to be reclaimed" if backlog else ""
    pages = f", list pages: {snapshots['list_pages']:,}" if snapshots["list_pages"] else ""
    pairs: list[tuple[str, Any]] = [
        ("inodes", f"{inodes['used']:,}{limit}"),
        ("snapshots", f"{snapshots['count']}{pages}{left}"),
        ("since mount", _snapshot_work(stats)),
        ("DRAM", f"{style.size(dram['bytes_used'])}, {style.size(dram['bytes_limit'])} at most"),
    ]
    recovery = stats.get("recovery")
    if recovery:
        pairs.append(("mounted", _mounted(recovery)))
    return pairs


def _snapshot_work(stats: dict[str, Any]) -> str:
    """What has been done for snapshots since the arena was mounted, with mean times."""
    work = stats["snapshots"]
    done = []
    for what, count, total_ns in (
        ("taken", work["creates"], work["create_ns"]),
        ("deleted", work["deletes"], work["delete_ns"]),
        # An append is shorter than looking at the clock.
        ("list entries appended", work["appends"], 0),
        ("cleaned", work["cleaned"], work["clean_ns"]),
    ):
        each = f" ({total_ns / count / 1000:,.1f} µs each)" if count and total_ns else ""
        done.append(f"{count:,} {what}{each}")
    return ", ".join(done)


def _not_stopped(arena: dict[str, Any]) -> str:
    """Who is still in an operation, so that a freeze waits for them."""
    return "; ".join(
        f"pid {slot['pid']} ({slot['title'] or slot['role']}) in {slot['op']}"
        for slot in arena["not_stopped"]
    )


def _mapped(arena: dict[str, Any]) -> str:
    """Who has files mapped, and how their stores are kept apart from snapshots."""
    return "; ".join(
        f"{slot['mappings']} by pid {slot['pid']} ({slot['protection'] or 'read-only'})"
        for slot in arena.get("slots", ())
        if slot.get("mappings")
    )


def _suspended(arena: dict[str, Any]) -> str:
    """Who is stopped by a signal, so that others may wait for it."""
    return "; ".join(
        f"{row['title']} (pid {row['pid']}): let it go on with kill -CONT {row['pid']}"
        for row in arena["suspended"]
    )


def _mounted(recovery: dict[str, Any]) -> str:
    how = "clean" if recovery["clean"] else "after a crash"
    # Of a few entries the rate says nothing.
    enough = recovery["entries"] >= RATE_ENTRIES
    rate = f" ({recovery['entries_per_second']:,.0f} entries a second)" if enough else ""
    return (
        f"{how}: {recovery['inodes']:,} inodes from {recovery['entries']:,} log entries"
        f" in {recovery['seconds']:.3f} s{rate}; snapshot lists {recovery['lists']}"
    )


def _snapshot_count(arena: dict[str, Any]) -> int | None:
    snapshots = arena.get("stats", {}).get("snapshots")
    return None if snapshots is None else int(snapshots["count"])

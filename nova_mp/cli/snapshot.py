"""nova-mp snapshot: create, list, show, delete and wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import VerbGroup, verb
from nova_mp.cli.operands import ArenaType, SecondsType
from nova_mp.cli.output import Column, ListStyle, facts, iso_time, table
from nova_mp.cli.report import Report
from nova_mp.errors import NoSuchSnapshot

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem
    from nova_mp.client.snapshots import Snapshot

_COLUMNS = (
    Column("ID", number=True),
    Column("NAME"),
    Column("CREATED"),
    Column("LIST PAGES", number=True),
    Column("EXCLUSIVE", number=True),
    Column("LISTED", number=True),
    Column("OPENS", number=True),
    Column("DEFERRED"),
)
_FREES_COLUMNS = (
    Column("ID", number=True),
    Column("NAME"),
    Column("FREES", number=True),
    Column("OPENS", number=True),
)


@click.group("snapshot", cls=VerbGroup)
def command() -> None:
    """Create, list, show and delete snapshots.

    A snapshot holds everything in an arena as it was at one instant. Look into it with ls, cat, cp
    and the like under NAME@SNAPSHOT:/path.
    """


def _as_dict(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "id": snapshot.epoch_id,
        "name": snapshot.name,
        "created": snapshot.created.isoformat(),
        "list_pages": snapshot.list_pages,
        "exclusive_bytes": snapshot.exclusive_bytes,
        "listed_bytes": snapshot.listed_bytes,
        "opens": snapshot.opens,
        "deferred": snapshot.deferred,
    }


def _time_ns(snapshot: Snapshot) -> int:
    return int(snapshot.created.timestamp() * 1_000_000) * 1000


def _created(snapshot: Snapshot, style: ListStyle) -> str:
    if style.exact:
        return style.time(_time_ns(snapshot))
    return f"{snapshot.created:%Y-%m-%d %H:%M:%S}Z"


def _chosen(fs: FileSystem, operand: str) -> list[Snapshot]:
    """The snapshots that an operand stands for: an id, a name, or a range of ids or names."""
    try:
        return [fs.snapshots.get(operand)]
    except NoSuchSnapshot:
        first, dots, last = operand.partition("..")
        if not (dots and first and last):
            raise
    ends = [
        int(end) if end.isdecimal() else fs.snapshots.get(end).epoch_id for end in (first, last)
    ]
    if ends[0] > ends[1]:
        raise ValueError(f"a range begins with the older one: {last}..{first}")
    found = [snapshot for snapshot in fs.snapshots if ends[0] <= snapshot.epoch_id <= ends[1]]
    if not found:
        raise NoSuchSnapshot(f"there is no snapshot in {operand}", "list those that there are")
    return found


@verb(
    "snapshot create",
    "take a snapshot of",
    subject="name",
    examples="""
        nova-mp snapshot create demo
        nova-mp snapshot create demo --name before-upgrade
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.option("--name", "snapshot_name", metavar="N", help="A name for it, besides its id.")
def create(report: Report, name: str, snapshot_name: str | None) -> dict[str, Any]:
    """Take a snapshot of everything in an arena; writers go on meanwhile."""
    import nova_mp

    with nova_mp.attach(name) as fs:
        snapshot = fs.snapshots.create(snapshot_name)
    called = snapshot.name or snapshot.epoch_id
    report.say(
        f"snapshot {snapshot.epoch_id} of {name}; look into it: nova-mp ls {name}@{called}:/"
    )
    return {"snapshot": _as_dict(snapshot)}


@verb(
    "snapshot list",
    "list the snapshots of",
    subject="name",
    lists=True,
    examples="""
        nova-mp snapshot list demo
        nova-mp snapshot list -H -p demo | cut -f 1     their ids
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
def list_all(report: Report, name: str, style: ListStyle) -> dict[str, Any]:
    """List an arena's snapshots, oldest first.

    CREATED is in UTC. EXCLUSIVE is what deleting that one alone would free, LISTED the data in its
    lists: superseded, and needed by it and perhaps by newer ones. DEFERRED ones are deleted as soon
    as nobody has them open.
    """
    import nova_mp

    with nova_mp.attach(name) as fs:
        found = fs.snapshots.list()
    rows = [
        (
            str(snapshot.epoch_id),
            snapshot.name or "-",
            _created(snapshot, style),
            str(snapshot.list_pages),
            style.size(snapshot.exclusive_bytes),
            style.size(snapshot.listed_bytes),
            str(snapshot.opens),
            "yes" if snapshot.deferred else "-",
        )
        for snapshot in found
    ]
    if rows:
        report.say("\n".join(table(_COLUMNS, rows, style)))
    elif style.header:
        report.say(f"no snapshots; take one: nova-mp snapshot create {name}")
    return {"snapshots": [_as_dict(snapshot) for snapshot in found]}


@verb(
    "snapshot show",
    "show the snapshot of",
    examples="""
        nova-mp snapshot show demo 3
        nova-mp snapshot show demo before-upgrade
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.argument("snapshot_id", metavar="ID")
def show(report: Report, name: str, snapshot_id: str) -> dict[str, Any]:
    """Show one snapshot; ID is its id or its name."""
    import nova_mp

    found: dict[str, Any] = {}
    with report.attempt(f"{name}@{snapshot_id}", verb="show"):
        with nova_mp.attach(name) as fs:
            snapshot = fs.snapshots.get(snapshot_id)
        found = _as_dict(snapshot)
        style = ListStyle()
        pairs = [
            ("snapshot", f"{name}@{snapshot.epoch_id}"),
            ("name", snapshot.name or "-"),
            ("created", f"{style.time(_time_ns(snapshot))} ({iso_time(_time_ns(snapshot))})"),
            ("list pages", snapshot.list_pages),
            ("exclusive", f"{style.size(snapshot.exclusive_bytes)}, freed by deleting it alone"),
            ("listed", f"{style.size(snapshot.listed_bytes)}, superseded since"),
            ("opens", snapshot.opens),
            ("deferred", "deleted once nobody has it open" if snapshot.deferred else "no"),
        ]
        report.say("\n".join(facts(pairs)))
    return {"snapshot": found or None}


@verb(
    "snapshot delete",
    "delete",
    lists=True,
    examples="""
        nova-mp snapshot delete demo 3
        nova-mp snapshot delete demo 3..9 before-upgrade
        nova-mp snapshot delete demo 3..9 --dry-run      what would that free?
        nova-mp snapshot delete demo 3 --defer           once nobody has it open
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.argument("snapshot_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--defer", is_flag=True, help="Delete what is open once nobody has it open any more.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; show what that would free.")
def delete(
    report: Report,
    name: str,
    snapshot_ids: tuple[str, ...],
    style: ListStyle,
    defer: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Delete snapshots; each ID is an id, a name, or a range A..B of those that there are.

    The cleaner frees what they held in the background; `nova-mp snapshot wait` waits for it. One
    that is open is refused (exit code 4, or 3 if others were deleted), unless --defer is given.
    """
    import nova_mp

    chosen: dict[int, Snapshot] = {}
    deleted: list[dict[str, Any]] = []
    deferred: list[dict[str, Any]] = []
    with report.attempt(name, verb="open", counts=False), nova_mp.attach(name) as fs:
        for operand in snapshot_ids:
            with report.attempt(f"{name}@{operand}", counts=False):
                chosen |= {snapshot.epoch_id: snapshot for snapshot in _chosen(fs, operand)}
        if dry_run:
            return _frees(report, fs, list(chosen.values()), style)
        for snapshot in chosen.values():
            with report.attempt(f"{name}@{snapshot.epoch_id}"):
                gone = fs.snapshots.delete(snapshot.epoch_id, defer)
                (deleted if gone else deferred).append(_as_dict(snapshot))
                if not gone:
                    report.say(f"{name}@{snapshot.epoch_id} is open; it is deleted afterwards")
    return {"deleted": deleted, "deferred": deferred}


def _frees(
    report: Report, fs: FileSystem, chosen: list[Snapshot], style: ListStyle
) -> dict[str, Any]:
    """Show what deleting each of the chosen, and all of them together, would free."""
    together = fs.snapshots.frees(chosen)
    rows = [
        (
            str(snapshot.epoch_id),
            snapshot.name or "-",
            style.size(snapshot.exclusive_bytes),
            str(snapshot.opens),
        )
        for snapshot in chosen
    ]
    if rows:
        opens = str(sum(snapshot.opens for snapshot in chosen))
        rows.append(("together", "-", style.size(together), opens))
        report.say("\n".join(table(_FREES_COLUMNS, rows, style)))
    report.done += len(chosen)
    return {"would_delete": [_as_dict(each) for each in chosen], "would_free_bytes": together}


@verb(
    "snapshot wait",
    "wait for the cleaner of",
    subject="name",
    examples="""
        nova-mp snapshot delete demo 3 && nova-mp snapshot wait demo
        nova-mp snapshot wait demo --timeout 10
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.option(
    "--timeout",
    type=SecondsType(least_too=True),
    metavar="SECONDS",
    help="Give up then (exit code 75).",
)
def wait(report: Report, name: str, timeout: float | None) -> dict[str, Any]:
    """Wait until all that deleted snapshots held has been freed."""
    import nova_mp

    show_it = progress.wanted(report.as_json)
    with nova_mp.attach(name) as fs, progress.spinner("waiting for the cleaner", show_it):
        fs.snapshots.wait(timeout)
    return {"name": name}


for _verb in (create, list_all, show, delete, wait):
    command.add_command(_verb)

"""nova-mp snapshot: create, list, show, delete and wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import VerbGroup, verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.output import Column, ListStyle, facts, iso_time, table
from nova_mp.cli.report import Report

if TYPE_CHECKING:
    from nova_mp.client.snapshots import Snapshot

_COLUMNS = (
    Column("ID", number=True),
    Column("NAME"),
    Column("CREATED"),
    Column("LIST PAGES", number=True),
    Column("EXCLUSIVE", number=True),
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
    }


def _time_ns(snapshot: Snapshot) -> int:
    return int(snapshot.created.timestamp() * 1_000_000) * 1000


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

    EXCLUSIVE is what deleting that one alone would free.
    """
    import nova_mp

    with nova_mp.attach(name) as fs:
        found = fs.snapshots.list()
    rows = [
        (
            str(snapshot.epoch_id),
            snapshot.name or "-",
            style.time(_time_ns(snapshot)),
            str(snapshot.list_pages),
            style.size(snapshot.exclusive_bytes),
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
        ]
        report.say("\n".join(facts(pairs)))
    return {"snapshot": found or None}


@verb(
    "snapshot delete",
    "delete",
    examples="""
        nova-mp snapshot delete demo 3
        nova-mp snapshot delete demo 3 4 before-upgrade
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.argument("snapshot_ids", nargs=-1, required=True, metavar="ID...")
def delete(report: Report, name: str, snapshot_ids: tuple[str, ...]) -> dict[str, Any]:
    """Delete snapshots; each ID is an id or a name.

    The cleaner frees what they held in the background; `nova-mp snapshot wait` waits for it.
    """
    import nova_mp

    deleted = []
    with report.attempt(name, verb="open", counts=False), nova_mp.attach(name) as fs:
        for snapshot_id in snapshot_ids:
            with report.attempt(f"{name}@{snapshot_id}"):
                snapshot = fs.snapshots.get(snapshot_id)
                fs.snapshots.delete(snapshot_id)
                deleted.append(_as_dict(snapshot))
    return {"deleted": deleted}


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
    "--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Give up then (exit code 75)."
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

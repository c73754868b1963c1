"""nova-mp stop: stop an arena's engine."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.report import Report


@verb(
    "stop",
    "stop",
    subject="name",
    examples="""
        nova-mp stop demo
        nova-mp stop demo --force     even while processes are attached
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.option("--force", is_flag=True, help="Do not wait for processes that are attached.")
def command(report: Report, name: str, force: bool) -> dict[str, Any]:
    """Stop an arena's engine, leaving the arena clean.

    The next start has nothing to recover. What the arena holds stays until `destroy`. While
    processes are attached it is refused (exit code 4), unless --force is given: then they get a
    moment to leave, and the next start goes on from what those that stay keep in memory.
    """
    import nova_mp

    with progress.spinner(f"stopping {name}", progress.wanted(report.as_json)):
        nova_mp.stop(name, force=force)
    return {"name": name}

"""nova-mp destroy: remove an arena."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.report import Report


@verb(
    "destroy",
    "destroy",
    subject="name",
    examples="""
        nova-mp stop demo && nova-mp destroy demo
        nova-mp destroy demo --force     even while it is in use
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.option("--force", is_flag=True, help="Kill its engine and all attached processes first.")
def command(report: Report, name: str, force: bool) -> dict[str, Any]:
    """Remove an arena and all that it holds.

    An arena whose engine runs, or to which processes are attached, is refused (exit code 4): stop
    it first, or give --force.
    """
    import nova_mp

    nova_mp.destroy(name, force=force)
    return {"name": name}

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
    examples="nova-mp stop demo && nova-mp destroy demo",
)
@click.argument("name", type=ArenaType(), metavar="NAME")
def command(report: Report, name: str) -> dict[str, Any]:
    """Remove an arena and all that it holds.

    An arena whose engine runs is refused (exit code 4): stop it first.
    """
    import nova_mp

    nova_mp.destroy(name)
    return {"name": name}

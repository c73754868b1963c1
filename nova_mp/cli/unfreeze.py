"""nova-mp unfreeze: let changes go on after a freeze."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.report import Report


@verb("unfreeze", "unfreeze", subject="name", examples="nova-mp unfreeze demo")
@click.argument("name", type=ArenaType(), metavar="NAME")
def command(report: Report, name: str) -> dict[str, Any]:
    """Let changes go on after a freeze."""
    from nova_mp.client.control import ControlClient

    with ControlClient(name) as control:
        control.unfreeze()
    return {"name": name}

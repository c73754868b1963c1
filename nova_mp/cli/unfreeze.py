"""nova-mp unfreeze: let operations go on after a freeze."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.report import Report


@verb("unfreeze", "unfreeze", subject="name", examples="nova-mp unfreeze demo")
@click.argument("name", type=ArenaType(), metavar="NAME")
def command(report: Report, name: str) -> dict[str, Any]:
    """Let operations go on after a freeze."""
    import nova_mp

    with nova_mp.attach(name) as fs:
        fs.unfreeze()
    return {"name": name}

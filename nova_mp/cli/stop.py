"""nova-mp stop: stop an arena's engine."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.report import Report


@verb("stop", "stop", subject="name", examples="nova-mp stop demo")
@click.argument("name", type=ArenaType(), metavar="NAME")
def command(report: Report, name: str) -> dict[str, Any]:
    """Stop an arena's engine, leaving the arena clean.

    The next start has nothing to recover. What the arena holds stays until `destroy`.
    """
    import nova_mp

    with progress.spinner(f"stopping {name}", progress.wanted(report.as_json)):
        nova_mp.stop(name)
    return {"name": name}

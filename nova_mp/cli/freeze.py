"""nova-mp freeze: hold all changes until unfreeze."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType, SecondsType
from nova_mp.cli.report import Report


@verb(
    "freeze",
    "freeze",
    subject="name",
    examples="""
        nova-mp freeze demo --timeout 300    at most five minutes
        nova-mp unfreeze demo
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.option(
    "--timeout",
    type=SecondsType(),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for running changes, and when it thaws by itself.",
)
def command(report: Report, name: str, timeout: float) -> dict[str, Any]:
    """Hold all changes until unfreeze.

    Reads go on; whatever would change something waits. Changes that had begun have finished when
    this returns: in a byte copy of the medium there is no journal to be redone and no orphan to be
    reclaimed, though the next start of the copy reads its logs. It stays frozen when the command
    ends, for the time given at most.
    """
    from nova_mp.client.control import ControlClient

    # FileSystem.freeze ends when its process does, which for a command would be at once.
    with ControlClient(name) as control:
        control.freeze(timeout, hold=False)
    report.say(f"{name} is frozen for {timeout:g} s at most; let it go on: nova-mp unfreeze {name}")
    return {"name": name, "timeout_seconds": timeout}

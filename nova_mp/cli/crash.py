"""nova-mp crash: cut an arena's power."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.report import Report


@verb(
    "crash",
    "crash",
    subject="name",
    examples="""
        nova-mp crash demo
        nova-mp fsck demo        sound, without having been mounted
        nova-mp start demo       mounts it from its logs
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
def command(report: Report, name: str) -> dict[str, Any]:
    """Cut an arena's power, as far as software can.

    All processes of the engine are killed and the volatile segment is dropped. What was on the
    medium stays, and the next start recovers from it.
    """
    import nova_mp

    nova_mp.crash(name)
    report.say(f"{name} lost its power; mount it from its logs: nova-mp start {name}")
    return {"name": name}

"""nova-mp crash: cut an arena's power."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.report import Report
from nova_mp.core import segment


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

    All processes of the engine, and all others that are attached to the arena, are killed, and the
    volatile segment is dropped. What was on the medium stays, and the next start recovers from it.
    """
    import nova_mp

    # The segment is there from the mount until the last process has let go of it.
    mounted = segment.dram_exists(name)
    nova_mp.crash(name)
    if mounted:
        report.say(f"{name} lost its power; mount it from its logs: nova-mp start {name}")
    else:
        report.say(f"{name} was not mounted: there was nothing to lose")
    return {"name": name}

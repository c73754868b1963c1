"""nova-mp fsck: check an arena's structure."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.report import CORRUPT, Report


@verb(
    "fsck",
    "check",
    subject="name",
    examples="""
        nova-mp fsck demo            exit code 0: sound; 6: damaged
        nova-mp fsck demo --json
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
def command(report: Report, name: str) -> dict[str, Any]:
    """Check an arena's structure.

    The arena may be running, stopped or crashed; nothing in it is changed. The checker is plain
    Python and reads the medium without the native code.
    """
    from nova_mp.tools import fsck

    with progress.step_bar(f"checking {name}", progress.wanted(report.as_json)) as update:
        found = fsck.check(
            name, progress=lambda stage, done, total: update(stage, done / max(total, 1))
        )
    report.say(fsck.format_report(found))
    if found.ok:
        report.say(f"{name} is sound")
    else:
        report.exit_code = CORRUPT
        report.say(f"{name} is damaged: {sum(found.counts.values())} findings")
    return {"name": name, "report": found.as_dict()}

"""nova-mp dump: print on-media structures."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.report import Refused, Report


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from nova_mp.tools.dump import WHAT

    return [what.removesuffix("N") for what in WHAT if what.startswith(incomplete)]


@verb(
    "dump",
    "dump",
    examples="""
        nova-mp dump demo superblock
        nova-mp dump demo inode:33
        nova-mp dump demo log:33 --json     a file's whole history
        nova-mp dump demo tree
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.argument("what", metavar="WHAT", shell_complete=_complete)
def command(report: Report, name: str, what: str) -> dict[str, Any]:
    """Print on-media structures.

    WHAT is superblock, inodes, inode:N, log:N, journal, tables, snapshots, block:N or tree. The
    arena may be running, stopped or crashed.
    """
    from nova_mp.tools import dump
    from nova_mp.tools.image import ImageError

    found = None
    with report.attempt(f"{name} {what}"):
        try:
            found = dump.dump(name, what)
        except ImageError as error:
            raise Refused(str(error), f"check it: nova-mp fsck {name}") from error
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="WHAT") from error
        report.say(dump.format_dump(found))
    return {"name": name, "what": what, "dump": found}

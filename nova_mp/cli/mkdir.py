"""nova-mp mkdir: make directories."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.report import Report


@verb(
    "mkdir",
    "make",
    examples="""
        nova-mp mkdir demo:/data
        nova-mp mkdir -p demo:/data/2031/05    with the directories above it
    """,
)
@click.argument("operands", type=OperandType(), nargs=-1, required=True, metavar="NAME:/PATH...")
@click.option(
    "-p", "--parents", is_flag=True, help="Missing directories above too; existing ones are fine."
)
@click.option("-m", "--mode", default="755", metavar="OCTAL", help="Permission bits, such as 700.")
def command(
    report: Report, operands: tuple[Operand, ...], parents: bool, mode: str
) -> dict[str, Any]:
    """Make directories."""
    try:
        bits = int(mode, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o7777:
        raise click.BadParameter(f"'{mode}' is no mode: write octal digits such as 755")
    made = []
    with Arenas() as arenas:
        for operand in operands:
            with report.attempt(str(operand)):
                fs = arenas.open(operand)
                fs.mkdir(operand.path, bits, parents=parents, exist_ok=parents)
                made.append(str(operand))
    return {"made": made}

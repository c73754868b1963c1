"""nova-mp rm: remove files and trees."""

from __future__ import annotations

import stat
from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.report import Refused, Report, problem_of


@verb(
    "rm",
    "remove",
    examples="""
        nova-mp rm demo:/notes.txt
        nova-mp rm -r demo:/data        a directory with all that it holds
        nova-mp rm -f demo:/maybe       no complaint if there is no such file
    """,
)
@click.argument("operands", type=OperandType(), nargs=-1, required=True, metavar="NAME:/PATH...")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories, with all they hold.")
@click.option("-f", "--force", is_flag=True, help="What is not there is no problem.")
def command(
    report: Report, operands: tuple[Operand, ...], recursive: bool, force: bool
) -> dict[str, Any]:
    """Remove files, with -r trees.

    Space that a snapshot still needs comes back when that snapshot is deleted.
    """
    removed = []
    with Arenas() as arenas:
        for operand in operands:
            before = len(report.problems)
            with report.attempt(str(operand)):
                try:
                    _remove(report, arenas, operand, recursive)
                except FileNotFoundError:
                    if not force:
                        raise
                    continue
            if len(report.problems) == before:
                removed.append(str(operand))
    return {"removed": removed}


def _remove(report: Report, arenas: Arenas, operand: Operand, recursive: bool) -> None:
    fs = arenas.open(operand)
    if not stat.S_ISDIR(fs.lstat(operand.path).st_mode):
        fs.unlink(operand.path)
        return
    if not recursive:
        raise Refused("it is a directory", f"remove it with all that it holds: rm -r {operand}")
    if operand.path == "/":
        raise Refused(
            "it is the root of the arena",
            f"name what is in it, or remove the arena: nova-mp destroy {operand.arena}",
        )

    def complain(function: Any, path: str, error: OSError) -> None:
        where = Operand(operand.arena, operand.snapshot, path)
        report.problem(problem_of(error, report.verb, str(where)))

    fs.rmtree(operand.path, onexc=complain)

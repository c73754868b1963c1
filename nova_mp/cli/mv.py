"""nova-mp mv: rename files, or move them between places."""

from __future__ import annotations

import stat
from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.copying import Copier, place_of, targets
from nova_mp.cli.cp import copy
from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.report import Refused, Report


@verb(
    "mv",
    "move",
    examples="""
        nova-mp mv demo:/draft demo:/final       rename, atomically
        nova-mp mv demo:/a demo:/b demo:/folder  into a directory
        nova-mp mv demo:/result.csv .            out of the arena: a copy, then a removal
    """,
)
@click.argument(
    "sources", type=OperandType(local=True), nargs=-1, required=True, metavar="SOURCE..."
)
@click.argument("target", type=OperandType(local=True), metavar="TARGET")
@click.option("-n", "--no-clobber", is_flag=True, help="Replace nothing that is there.")
def command(
    report: Report, sources: tuple[Operand, ...], target: Operand, no_clobber: bool
) -> dict[str, Any]:
    """Rename files, or move them between places.

    Inside one arena a move is a rename: one step, whatever is moved. Between places it is a copy,
    followed by the removal of what was copied whole.
    """
    moved = []
    with Arenas() as arenas:
        into = None
        with report.attempt(str(target), verb="move to", counts=False):
            into = targets(arenas, list(sources), target)
        for source, goal in zip(sources, into or (), strict=False):
            before = len(report.problems)
            with report.attempt(str(source)):
                _check(source, goal)
                if source.arena == goal.arena and source.arena is not None:
                    fs = arenas.open(source)
                    fs.rename(source.path, goal.path, noreplace=no_clobber)
                else:
                    _carry(report, arenas, source, goal, no_clobber)
            if len(report.problems) == before:
                moved.append({"source": str(source), "target": str(goal)})
    return {"moved": moved}


def _check(source: Operand, target: Operand) -> None:
    if source.snapshot is not None:
        raise Refused("a snapshot never changes", "copy from it with: nova-mp cp")
    if source.arena is not None and source.path == "/":
        raise Refused("it is the root of the arena")


def _carry(
    report: Report, arenas: Arenas, source: Operand, target: Operand, no_clobber: bool
) -> None:
    copier = Copier(report, arenas, recursive=True, no_clobber=no_clobber)
    before = len(report.problems)
    done = report.done
    copy(copier, [source], target)
    report.done = done
    if len(report.problems) > before:
        raise Refused("not all of it could be copied", "the source was left as it is")
    if copier.totals.skipped:
        raise FileExistsError(17, "File exists", target.path)
    place = place_of(arenas, source)
    if stat.S_ISDIR(place.lstat(source.path).st_mode):
        place.rmtree(source.path)
    else:
        place.unlink(source.path)

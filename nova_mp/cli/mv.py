"""nova-mp mv: rename files, or move them between places."""

from __future__ import annotations

import errno
from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.copying import STANDARD, Copier, TargetType, exists, place_of, same_arena, targets
from nova_mp.cli.cp import copy
from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.report import USAGE, Refused, Report, problem_of
from nova_mp.client.entries import os_error


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
@click.argument("target", type=TargetType(local=True), metavar="TARGET")
@click.option("-n", "--no-clobber", is_flag=True, help="Replace nothing that is there.")
def command(
    report: Report, sources: tuple[Operand, ...], target: Operand, no_clobber: bool
) -> dict[str, Any]:
    """Rename files, or move them between places.

    Inside one arena a move is a rename: one step, whatever is moved. Between places it is a copy,
    followed by the removal of what was copied whole; what changes or comes meanwhile stays.
    """
    moved: list[dict[str, str]] = []
    made: set[Operand] = set()
    if STANDARD in (*sources, target):
        refused = Refused("`-` can only be copied", "a file of this name is ./-", USAGE)
        report.problem(problem_of(refused, "move", "-"))
        return {"moved": moved}
    with Arenas() as arenas:
        into: list[Operand] = []
        with report.attempt(str(target), verb="move to", counts=False):
            into = targets(arenas, list(sources), target)
        for source, goal in zip(sources, into, strict=False):
            before = len(report.problems)
            with report.attempt(str(source)):
                _check(source)
                if goal in made:
                    raise Refused(f"will not overwrite just-created '{goal}'")
                if source.arena is not None and same_arena(arenas, source, goal):
                    _rename(arenas.open(source), source, goal, no_clobber)
                else:
                    _carry(report, arenas, source, goal, no_clobber)
                made.add(goal)
            if len(report.problems) == before:
                moved.append({"source": str(source), "target": str(goal)})
    return {"moved": moved}


def _check(source: Operand) -> None:
    if source.snapshot is not None:
        raise Refused("a snapshot never changes", "copy from it with: nova-mp cp")
    if source.arena is not None and source.path == "/":
        raise Refused("it is the root of the arena")
    if source.name in ("", ".", ".."):
        raise Refused("it has no name of its own", "move what it holds")


def _rename(fs: Any, source: Operand, target: Operand, no_clobber: bool) -> None:
    try:
        fs.rename(source.path, target.path, noreplace=no_clobber)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise _not_empty(target) from None
        raise


def _carry(
    report: Report, arenas: Arenas, source: Operand, target: Operand, no_clobber: bool
) -> None:
    """Copy, then remove what was copied whole."""
    place = place_of(arenas, target)
    if no_clobber and exists(place, target.path):
        raise os_error(errno.EEXIST, target.path)
    if place.isdir(target.path) and place.entries(target.path):
        # A rename would not replace it either.
        raise _not_empty(target)
    copier = Copier(report, arenas, recursive=True, no_clobber=no_clobber, moves=True)
    before, done = len(report.problems), report.done
    items = copy(copier, [(source, target)])
    report.done = done
    if len(report.problems) > before:
        raise Refused("not all of it could be copied", "the source was left as it is")
    if copier.totals.skipped:
        raise os_error(errno.EEXIST, target.path)
    copier.remove(items)


def _not_empty(target: Operand) -> Refused:
    return Refused(f"'{target}' is a directory that is not empty")

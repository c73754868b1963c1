"""nova-mp cp: copy files and trees."""

from __future__ import annotations

import sys
from typing import Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import verb
from nova_mp.cli.copying import STANDARD, Copier, Item, TargetType, exists, place_of, targets
from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.report import USAGE, Refused, Report
from nova_mp.client.places import write_all
from nova_mp.client.transfer import CHUNK_BYTES
from nova_mp.core.segment import format_size


@verb(
    "cp",
    "copy",
    examples="""
        nova-mp cp notes.txt demo:/                a file of this machine into an arena
        nova-mp cp -r ./data demo:/data            a tree
        nova-mp cp -r demo@first:/data ./restored  a tree of a snapshot out of the arena
        nova-mp cp demo:/a other:/b                from one arena to another
        date | nova-mp cp - demo:/date             what comes from a pipe
        nova-mp cp demo:/date - | wc               what goes into one
    """,
)
@click.argument(
    "sources", type=OperandType(local=True), nargs=-1, required=True, metavar="SOURCE..."
)
@click.argument("target", type=TargetType(local=True), metavar="TARGET")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories, with all they hold.")
@click.option("-n", "--no-clobber", is_flag=True, help="Leave what is there already as it is.")
@click.option("-v", "--verbose", is_flag=True, help="Print each file that was copied.")
def command(
    report: Report,
    sources: tuple[Operand, ...],
    target: Operand,
    recursive: bool,
    no_clobber: bool,
    verbose: bool,
) -> dict[str, Any]:
    """Copy files and trees, into, out of and between arenas.

    Modes, times, links of both kinds and holes are kept. A target that is a directory receives the
    sources; otherwise the one source becomes the target. A source `-` is standard input, a target
    `-` standard output. Several problems do not stop the rest; exit code 3 says that a part was
    copied.
    """
    with Arenas() as arenas:
        copier = Copier(report, arenas, recursive=recursive, no_clobber=no_clobber)
        if verbose:
            # Not among the contents, if those go to standard output.
            copier.verbose = lambda item: _say(report, item, target == STANDARD)
        with report.attempt(str(target), verb="copy to", counts=False):
            if target == STANDARD and report.as_json:
                raise Refused("with --json it gets the JSON object", "leave out --json", USAGE)
            copy(copier, list(zip(sources, targets(arenas, list(sources), target), strict=True)))
    return copier.totals.as_dict()


def copy(copier: Copier, pairs: list[tuple[Operand, Operand]]) -> list[Item]:
    """Copy each source to its target with a progress bar, and say what was copied."""
    report = copier.report
    items: list[Item] = []
    for source, goal in pairs:
        if source == STANDARD:
            with report.attempt(str(goal), verb="write"):
                _copy_stdin(copier, goal)
        else:
            items += copier.plan(source, goal)
    show = progress.wanted(report.as_json)
    with progress.byte_bar("copying", copier.totals.bytes_total, show) as advance:
        copier.advance = advance
        copier.run(items)
    if show and copier.recursive:
        totals = copier.totals
        click.echo(
            f"copied {totals.files} files, {totals.directories} directories, {totals.links} links:"
            f" {format_size(totals.bytes)} in {totals.seconds:.1f} s",
            err=True,
        )
    return items


def _copy_stdin(copier: Copier, target: Operand) -> None:
    stdin: Any = sys.stdin.buffer
    buffer = memoryview(bytearray(CHUNK_BYTES))
    written = 0
    place = place_of(copier.arenas, target)
    if copier.no_clobber and exists(place, target.path):
        copier.totals.skipped += 1
        return
    with place.writing(target.path) as file:
        while count := stdin.readinto(buffer):
            write_all(file, buffer[:count], written)
            written += count
    copier.totals.bytes += written
    copier.totals.files += 1


def _say(report: Report, item: Item, on_stderr: bool) -> None:
    line = f"{item.source} -> {item.target}"
    if on_stderr:
        click.echo(line, err=True)
    else:
        report.say(line)

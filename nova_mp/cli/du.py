"""nova-mp du: show what files and directories take."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.output import Column, ListStyle, name_for_output, table
from nova_mp.cli.report import Report

_COLUMNS = (Column("ALLOCATED", number=True), Column("SIZE", number=True), Column("NAME"))


@verb(
    "du",
    "measure",
    lists=True,
    examples="""
        nova-mp du demo:/                   each directory, and all of it
        nova-mp du -s demo:/data demo:/tmp  one line each
        nova-mp du -s -H -p demo:/data      for scripts: exact bytes, tabs
    """,
)
@click.argument("operands", type=OperandType(), nargs=-1, required=True, metavar="NAME:/PATH...")
@click.option("-s", "--summarize", is_flag=True, help="One line for each operand.")
@click.option("-d", "--depth", type=click.IntRange(0), metavar="N", help="At most N levels deep.")
def command(
    report: Report,
    operands: tuple[Operand, ...],
    summarize: bool,
    depth: int | None,
    style: ListStyle,
) -> dict[str, Any]:
    """Show what files and directories take.

    ALLOCATED is what their blocks take, SIZE what they hold. A file with several names counts once.
    Blocks that only snapshots hold are not in it; see nova-mp snapshot list.
    """
    found: list[dict[str, Any]] = []
    depth = 0 if summarize else depth
    with Arenas() as arenas:
        for operand in operands:
            with report.attempt(str(operand)):
                fs = arenas.open(operand)
                for path, level, allocated, size in _measure(fs, operand.path):
                    if depth is None or level <= depth:
                        where = str(Operand(operand.arena, operand.snapshot, path))
                        row = {"path": where, "allocated_bytes": allocated, "size_bytes": size}
                        found.append(row)
    rows = [
        (
            style.size(row["allocated_bytes"]),
            style.size(row["size_bytes"]),
            name_for_output(row["path"]),
        )
        for row in found
    ]
    if rows:
        report.say("\n".join(table(_COLUMNS, rows, style)))
    return {"usage": found}


def _measure(fs: Any, top: str) -> Iterator[tuple[str, int, int, int]]:
    """(path, level below `top`, allocated bytes, bytes) of each directory, children first."""
    status = fs.lstat(top)
    if not stat.S_ISDIR(status.st_mode):
        yield top, 0, status.st_blocks * 512, status.st_size
        return
    seen: set[int] = set()
    sums: dict[str, list[int]] = {}
    # A directory is met twice: to be read, and when all below it has been counted.
    stack: list[tuple[str, int, bool]] = [(top, 0, False)]
    while stack:
        path, level, counted = stack.pop()
        if counted:
            allocated, size = sums.pop(path)
            yield path, level, allocated, size
            if level:
                above = sums[os.path.dirname(path)]
                above[0] += allocated
                above[1] += size
            continue
        own = fs.lstat(path)
        sums[path] = [own.st_blocks * 512, 0]
        stack.append((path, level, True))
        for name, ino, kind in sorted(fs.scan(path), reverse=True):
            below = os.path.join(path, name)
            if kind == 4:
                stack.append((below, level + 1, False))
            elif ino not in seen:
                seen.add(ino)
                status = fs.lstat(below)
                sums[path][0] += status.st_blocks * 512
                sums[path][1] += status.st_size

"""nova-mp tree: show a directory tree."""

from __future__ import annotations

import os
from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.output import counted, name_for_output
from nova_mp.cli.report import Report

_DIRECTORY, _LINK = 4, 10
_KINDS = {_DIRECTORY: "directory", _LINK: "symbolic link"}


@verb(
    "tree",
    "show",
    examples="""
        nova-mp tree demo:/
        nova-mp tree -L 2 -d demo:/       directories only, two levels of them
        nova-mp tree demo@first:/data     as it was in snapshot `first`
    """,
)
@click.argument("operands", type=OperandType(), nargs=-1, required=True, metavar="NAME:/PATH...")
@click.option("-L", "--level", type=click.IntRange(1), metavar="N", help="At most N levels deep.")
@click.option("-d", "--directories", is_flag=True, help="Directories only.")
def command(
    report: Report, operands: tuple[Operand, ...], level: int | None, directories: bool
) -> dict[str, Any]:
    """Show a directory tree."""
    trees = []
    counts = {"directories": 0, "files": 0}
    with Arenas() as arenas:
        for operand in operands:
            with report.attempt(str(operand)):
                fs = arenas.open(operand)
                fs.scan(operand.path)
                report.say(name_for_output(str(operand)))
                branch = _Branch(report, fs, level, directories, counts)
                trees.append({"name": str(operand), "children": branch.grow(operand.path, "", 1)})
    report.say()
    directories_found = counted(counts["directories"], "directory", "directories")
    report.say(f"{directories_found}, {counted(counts['files'], 'file')}")
    return {"trees": trees, **counts}


class _Branch:
    """Prints a tree as it is read, so that a large one starts at once."""

    def __init__(
        self,
        report: Report,
        fs: Any,
        level: int | None,
        directories: bool,
        counts: dict[str, int],
    ) -> None:
        self._report = report
        self._fs = fs
        self._level = level
        self._directories = directories
        self._counts = counts

    def grow(self, path: str, indent: str, depth: int) -> list[dict[str, Any]]:
        """Print what is in `path`; returns it. Its depth is bounded by that of the tree."""
        rows = sorted(self._fs.scan(path))
        if self._directories:
            rows = [row for row in rows if row[2] == _DIRECTORY]
        children = []
        for at, (name, _ino, kind) in enumerate(rows, 1):
            below = os.path.join(path, name)
            self._counts["directories" if kind == _DIRECTORY else "files"] += 1
            child: dict[str, Any] = {"name": name, "kind": _KINDS.get(kind, "file")}
            label = name
            if kind == _LINK:
                child["target"] = self._fs.readlink(below)
                label = f"{name} -> {child['target']}"
            corner, bar = ("└── ", "    ") if at == len(rows) else ("├── ", "│   ")
            self._report.say(f"{indent}{corner}{name_for_output(label)}")
            if kind == _DIRECTORY and (self._level is None or depth < self._level):
                child["children"] = self.grow(below, indent + bar, depth + 1)
            children.append(child)
        return children

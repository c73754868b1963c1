"""nova-mp ls: list directories and files."""

from __future__ import annotations

import stat
from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import Arenas, Operand, OperandType, walk_rows
from nova_mp.cli.output import Column, ListStyle, iso_time, name_for_output, table
from nova_mp.cli.report import Report

_COLUMNS = (
    Column("MODE"),
    Column("LINKS", number=True),
    Column("UID", number=True),
    Column("GID", number=True),
    Column("SIZE", number=True),
    Column("MODIFIED"),
    Column("NAME"),
)


@verb(
    "ls",
    "list",
    lists=True,
    examples="""
        nova-mp ls demo:/                  names, one a line
        nova-mp ls -l demo:/data           with modes, sizes and times
        nova-mp ls -lR demo@first:/        a whole tree, as it was in snapshot `first`
        nova-mp ls -l -H -p demo:/data     for scripts: no header, tabs, exact numbers
    """,
)
@click.argument("operands", type=OperandType(), nargs=-1, required=True, metavar="NAME:/PATH...")
@click.option("-l", "long", is_flag=True, help="Modes, links, owners, sizes and times too.")
@click.option("-d", "itself", is_flag=True, help="Directories themselves, not what they hold.")
@click.option("-R", "recursive", is_flag=True, help="Directories below as well.")
def command(
    report: Report,
    operands: tuple[Operand, ...],
    long: bool,
    itself: bool,
    recursive: bool,
    style: ListStyle,
) -> dict[str, Any]:
    """List directories and files.

    Every name is shown: a leading dot hides nothing in an arena.
    """
    listings: list[dict[str, Any]] = []
    # Attributes take a look at each file, which plain names do not need.
    attributes = long or report.as_json
    with Arenas() as arenas:
        for operand in operands:
            with report.attempt(str(operand)):
                fs = arenas.open(operand)
                status = fs.lstat(operand.path)
                if itself or not stat.S_ISDIR(status.st_mode):
                    row = _row(fs, operand.path, operand.path, attributes)
                    listings.append({"directory": None, "entries": [row]})
                    _print(report, listings[-1], long, style)
                    continue
                for folder, found in walk_rows(fs, operand.path):
                    where = Operand(operand.arena, operand.snapshot, folder)
                    rows = [
                        _row(fs, where.child(name).path, name, attributes) for name, _, _ in found
                    ]
                    listings.append({"directory": str(where), "entries": rows})
                    title = recursive or len(operands) > 1
                    _print(report, listings[-1], long, style, title, len(listings) > 1)
                    if not recursive:
                        break
    return {"listings": listings}


def _row(fs: Any, path: str, name: str, attributes: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name}
    if not attributes:
        return row
    status = fs.lstat(path)
    row |= {
        "mode": stat.filemode(status.st_mode),
        "links": status.st_nlink,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "modified": iso_time(status.st_mtime_ns),
        "ino": status.st_ino,
    }
    if stat.S_ISLNK(status.st_mode):
        row["target"] = fs.readlink(path)
    return row


def _print(
    report: Report,
    listing: dict[str, Any],
    long: bool,
    style: ListStyle,
    title: bool = False,
    apart: bool = False,
) -> None:
    if report.as_json:
        return
    if title:
        report.say(("\n" if apart else "") + name_for_output(listing["directory"]) + ":")
    if not long:
        for row in listing["entries"]:
            report.say(name_for_output(row["name"]))
        return
    cells = [
        (
            row["mode"],
            str(row["links"]),
            str(row["uid"]),
            str(row["gid"]),
            style.size(row["size_bytes"]),
            style.time(row["modified_ns"]),
            name_for_output(row["name"] + (f" -> {row['target']}" if "target" in row else "")),
        )
        for row in listing["entries"]
    ]
    if cells:
        report.say("\n".join(table(_COLUMNS, cells, style)))

"""nova-mp stat: show the attributes of files."""

from __future__ import annotations

import stat
from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import Arenas, Operand, OperandType
from nova_mp.cli.output import ListStyle, facts, iso_time, name_for_output
from nova_mp.cli.report import Report

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link"}


@verb(
    "stat",
    "examine",
    examples="""
        nova-mp stat demo:/notes.txt
        nova-mp stat demo:/notes.txt demo@first:/notes.txt   now, and in a snapshot
        nova-mp stat -L demo:/link                           what a link leads to
    """,
)
@click.argument("operands", type=OperandType(), nargs=-1, required=True, metavar="NAME:/PATH...")
@click.option("-L", "--dereference", is_flag=True, help="Follow symbolic links.")
def command(report: Report, operands: tuple[Operand, ...], dereference: bool) -> dict[str, Any]:
    """Show the attributes of files."""
    files: list[dict[str, Any]] = []
    with Arenas() as arenas:
        for operand in operands:
            with report.attempt(str(operand)):
                found = _examine(arenas, operand, dereference)
                if files:
                    report.say()
                files.append(found)
                report.say("\n".join(_lines(found)))
    return {"files": files}


def _examine(arenas: Arenas, operand: Operand, follow: bool) -> dict[str, Any]:
    fs = arenas.open(operand)
    status = fs.stat(operand.path, follow_symlinks=follow)
    found: dict[str, Any] = {
        "path": str(operand),
        "kind": _KINDS.get(stat.S_IFMT(status.st_mode), "other"),
        "ino": status.st_ino,
        "mode": stat.filemode(status.st_mode),
        "permissions": f"{stat.S_IMODE(status.st_mode):04o}",
        "links": status.st_nlink,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size_bytes": status.st_size,
        "allocated_bytes": status.st_blocks * 512,
    }
    for name in ("birth", "mtime", "ctime", "atime"):
        time_ns = getattr(status, "st_birthtime_ns" if name == "birth" else f"st_{name}_ns", 0)
        found[f"{name}_ns"] = time_ns
        found[name] = iso_time(time_ns) if time_ns else None
    if found["kind"] == "symbolic link":
        found["target"] = fs.readlink(operand.path)
    found["xattrs"] = sorted(fs.listxattr(operand.path, follow_symlinks=follow))
    return found


def _lines(found: dict[str, Any]) -> list[str]:
    style = ListStyle()
    kind = found["kind"] + (f" to {found['target']}" if "target" in found else "")
    pairs = [
        ("path", name_for_output(found["path"])),
        ("kind", f"{name_for_output(kind)}, inode {found['ino']}, {found['links']} links"),
        ("size", f"{style.size(found['size_bytes'])} ({found['size_bytes']} bytes)"),
        ("allocated", style.size(found["allocated_bytes"])),
        ("mode", f"{found['mode']} ({found['permissions']})"),
        ("owner", f"uid {found['uid']}, gid {found['gid']}"),
        ("modified", style.time(found["mtime_ns"])),
        ("changed", style.time(found["ctime_ns"])),
        ("accessed", style.time(found["atime_ns"])),
        ("created", style.time(found["birth_ns"])),
    ]
    if found["xattrs"]:
        pairs.append(("xattrs", ", ".join(found["xattrs"])))
    return facts(pairs)

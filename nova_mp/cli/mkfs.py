"""nova-mp mkfs: make an arena."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType, SizeType
from nova_mp.cli.output import counted
from nova_mp.cli.report import Report
from nova_mp.core.segment import format_size


@verb(
    "mkfs",
    "make",
    subject="name",
    examples="""
        nova-mp mkfs demo --size 1GiB --cpus 4
        nova-mp mkfs kept --size 10GiB --backing file:/var/lib/kept.arena   survives a reboot
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.option(
    "--size",
    type=SizeType(),
    default="1GiB",
    show_default=True,
    metavar="SIZE",
    help="Size of the medium: bytes, or with KiB, MiB, GiB, TiB.",
)
@click.option(
    "--cpus",
    type=click.IntRange(1, 128),
    default=2,
    show_default=True,
    metavar="N",
    help="Emulated CPUs, each with a worker, a journal and free lists of its own.",
)
@click.option(
    "--backing",
    default="shm",
    show_default=True,
    metavar="shm|file:PATH",
    help="Shared memory, or a file (a DAX file too).",
)
@click.option(
    "--inodes",
    "inode_limit",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Most files and directories; as many as fit unless given.",
)
@click.option("--label", default="", metavar="TEXT", help="A note for people, kept in the arena.")
def command(
    report: Report,
    name: str,
    size: int,
    cpus: int,
    backing: str,
    inode_limit: int,
    label: str,
) -> dict[str, Any]:
    """Make an arena.

    Its memory is reserved at once. An arena of shared memory stays until `destroy` or a reboot.
    """
    import nova_mp

    nova_mp.mkfs(name, size=size, cpus=cpus, backing=backing, inode_limit=inode_limit, label=label)
    made = f"made {name}: {format_size(size)}, {counted(cpus, 'CPU')}"
    report.say(f"{made}; start it: nova-mp start {name}")
    return {"name": name, "size_bytes": size, "cpus": cpus, "backing": backing, "label": label}

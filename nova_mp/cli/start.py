"""nova-mp start: start an arena's engine."""

from __future__ import annotations

from typing import Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.output import counted
from nova_mp.cli.report import Refused, Report


@verb(
    "start",
    "start",
    subject="name",
    examples="""
        nova-mp start demo
        nova-mp start demo --foreground                        until Ctrl-C
        nova-mp start demo --media pmem                        with a persistent medium's timing
        nova-mp start demo --tcp 127.0.0.1:7000                for other users and machines, too
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
@click.option("--foreground", is_flag=True, help="Stay, and stop the engine at Ctrl-C.")
@click.option(
    "--media",
    type=click.Choice(["dram", "pmem", "real"]),
    default="dram",
    show_default=True,
    help="Plain memory; emulated persistent memory; flush instructions, for a real one.",
)
@click.option(
    "--tcp",
    metavar="HOST:PORT",
    help="Let in clients with keys there, and on the following ports. See nova-mp keygen.",
)
@click.option("--keys", metavar="FOLDER", help="The folder of the keys, if not the default one.")
def command(
    report: Report, name: str, foreground: bool, media: str, tcp: str | None, keys: str | None
) -> dict[str, Any]:
    """Start an arena's engine.

    An arena that was not stopped is recovered from its logs first. The engine is a supervisor, a
    coordinator, a cleaner and a worker for each emulated CPU.
    """
    import nova_mp

    if foreground:
        from nova_mp.cluster.launcher import run_foreground

        report.say(f"starting {name}; Ctrl-C stops it")
        status = run_foreground(name, media=media, tcp=tcp, keys=keys)
        if status:
            raise Refused(f"its engine ended with status {status}", "see its engine.log")
        report.say(f"{name} has stopped, clean")
        return {"name": name}
    with progress.spinner(f"starting {name}", progress.wanted(report.as_json)):
        engine = nova_mp.start(name, media=media, tcp=tcp, keys=keys)
        try:
            found = engine.status()
        except KeyboardInterrupt:
            # Whoever interrupts a start wants no engine.
            engine.stop()
            raise
    recovery = found.get("stats", {}).get("recovery", {})
    workers = counted(engine.cpus, "worker")
    report.say(f"{name} runs: {workers}, pid {engine.pid}{recovered(recovery)}")
    return {
        "name": name,
        "pid": engine.pid,
        "cpus": engine.cpus,
        "media": engine.media,
        "address": engine.address,
        "tcp_address": engine.tcp_address,
        "recovery": recovery,
    }


def recovered(recovery: dict[str, Any]) -> str:
    """What a mount had to do, as the end of a sentence."""
    if not recovery or recovery.get("clean"):
        return ""
    return (
        f"; recovered {recovery.get('inodes', 0):,} inodes from {recovery.get('entries', 0):,}"
        f" log entries in {recovery.get('seconds', 0.0):.2f} s"
    )

"""nova-mp fsck: check an arena's structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import verb
from nova_mp.cli.operands import ArenaType
from nova_mp.cli.output import counted
from nova_mp.cli.report import CORRUPT, Report

if TYPE_CHECKING:
    from nova_mp.tools.findings import Report as Findings

FROZEN = "frozen"
ASK_S = 5.0
"""How long the coordinator may take to say whether the arena is frozen."""


class _Thawed(Exception):
    """The freeze that was to keep the arena still has ended."""


def _state(name: str) -> str:
    """State of an arena's engine; empty if there is none, or if it does not say."""
    from nova_mp.client.control import ControlClient
    from nova_mp.errors import NovaError

    try:
        with ControlClient(name, ASK_S) as control:
            return control.status().state
    except NovaError:
        return ""


@contextmanager
def _still(name: str) -> Iterator[None]:
    """While somebody else's freeze holds; raises _Thawed when that has ended before the block."""
    yield
    if _state(name) != FROZEN:
        raise _Thawed


def _check(name: str, progress: Callable[[str, int, int], None]) -> Findings:
    from nova_mp.tools import fsck

    if _state(name) == FROZEN:
        try:
            return fsck.check(name, progress=progress, frozen=partial(_still, name))
        except _Thawed:
            # As for any other arena that is in use.
            return fsck.check(name, progress=progress)
    return fsck.check(name, progress=progress)


@verb(
    "fsck",
    "check",
    subject="name",
    examples="""
        nova-mp fsck demo            exit code 0: sound; 6: damaged
        nova-mp fsck demo --json
    """,
)
@click.argument("name", type=ArenaType(), metavar="NAME")
def command(report: Report, name: str) -> dict[str, Any]:
    """Check an arena's structure.

    The arena may be running, stopped or crashed; nothing in it is changed. The checker is plain
    Python and reads the medium without the native code. While an arena is in use, findings may be
    operations in flight; freeze it first (nova-mp freeze) to be certain.
    """
    from nova_mp.tools import fsck

    with progress.step_bar(f"checking {name}", progress.wanted(report.as_json)) as update:
        found = _check(name, lambda stage, done, total: update(stage, done / max(total, 1)))
    report.say(fsck.format_report(found))
    if found.ok:
        report.say(f"{name} is sound")
    else:
        report.exit_code = CORRUPT
        report.say(f"{name} is damaged: {counted(sum(found.counts.values()), 'finding')}")
    return {"name": name, "report": found.as_dict()}

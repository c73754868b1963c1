"""Progress bars for long work: on stderr, and only if somebody is looking at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nova_mp.cli.report import printable

# From this width on there is room for the name of what is being copied.
WIDE_COLUMNS = 110

Advance = Callable[[str, float], None]


def wanted(as_json: bool) -> bool:
    """Whether progress should be drawn."""
    return not as_json and sys.stderr.isatty()


@contextmanager
def byte_bar(what: str, total_bytes: int, show: bool) -> Iterator[Advance]:
    """A bar over `total_bytes`; yields advance(current name, bytes)."""
    if not show:
        yield lambda name, count: None
        return
    from rich import progress
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    columns = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(None if console.width < WIDE_COLUMNS else 40),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    ]
    if console.width >= WIDE_COLUMNS:
        columns.append(progress.TextColumn("[dim]{task.fields[current]}"))
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=max(total_bytes, 1), current="")

        def advance(name: str, count: float) -> None:
            bar.update(task, advance=count, current=escape(printable(name[-40:])))

        yield advance


@contextmanager
def step_bar(what: str, show: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar for work in steps; yields update(what is being done, fraction done 0..1)."""
    if not show:
        yield lambda name, fraction: None
        return
    from rich import progress
    from rich.console import Console
    from rich.markup import escape

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("[dim]{task.fields[current]}"),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0, current="")

        def update(name: str, fraction: float) -> None:
            bar.update(task, completed=fraction, current=escape(printable(name)))

        yield update


@contextmanager
def spinner(what: str, show: bool) -> Iterator[None]:
    """A sign of life for work of unknown length."""
    if not show:
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield

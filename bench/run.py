"""One entry point for every kind of job file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .crowd import is_crowd, run_crowd
from .echo import is_echo, run_echo
from .job import load_job
from .loadgen import run_load
from .mapped import is_mapped, run_mapped
from .micro import is_micro, run_micro
from .report import write_html, write_json
from .snapshots import is_snapshots, run_snapshots

Progress = Callable[[str, float, float], None]


def run_job(
    path: str | Path, *, out: str | Path | None = None, html: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a job file and return its result (docs/BENCHMARKS.md has the fields).

    A file with [[cases]] is a micro benchmark, one with [snapshot_bench] measures snapshots, one
    with [crowd] or [footprint] many processes, one with [echo] messages, one with
    [mapped_bench] mapped files, any other is a load job. ``out`` gets the result as JSON, ``html``
    as a page. ``progress(label, done, total)`` is called as it goes.

    Raises JobError (a NovaError and a ValueError) for a file that does not fit, FileNotFoundError
    when there is none, and NovaError or OSError when it cannot be run.
    """
    where = Path(path)
    if is_micro(where):
        result = run_micro(where, progress)
    elif is_snapshots(where):
        result = run_snapshots(where, progress)
    elif is_crowd(where):
        result = run_crowd(where, progress)
    elif is_echo(where):
        result = run_echo(where, progress)
    elif is_mapped(where):
        result = run_mapped(where, progress)
    else:
        result = run_load(load_job(where), progress)
    if out is not None:
        write_json(result, Path(out))
    if html is not None:
        write_html(result, Path(html))
    return result

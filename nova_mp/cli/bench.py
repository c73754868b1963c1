"""nova-mp bench: run benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import VerbGroup, verb
from nova_mp.cli.report import OUTPUT_VERSION, Refused, Report


@click.group("bench", cls=VerbGroup)
def command() -> None:
    """Run benchmarks.

    A job file says what to run; see config/ for those that come with the package.
    """


@verb(
    "bench run",
    "run",
    json_option=False,
    examples="""
        nova-mp bench run micro.toml                      one that comes with the package
        nova-mp bench run my.toml --json out.json         results for machines, into a file
        nova-mp bench run my.toml --html out.html         and a page with plots for people
    """,
)
@click.argument("job", metavar="JOB.toml")
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write one JSON object to FILE; without FILE print it instead of text.",
)
@click.option("--html", "html_path", metavar="FILE", help="Write a page with plots.")
def run(
    report: Report, job: str, json_path: str | None, html_path: str | None
) -> dict[str, Any] | None:
    """Run a job file: load on an arena, and peers such as tmpfs in the same call."""
    report.as_json = json_path == "-"
    result: dict[str, Any] = {}
    with report.attempt(job):
        path = find_job(job)
        from nova_mp.bench.run import run_job

        show = progress.wanted(report.as_json)
        with progress.step_bar("measuring", show) as update:
            result = run_job(path, html=html_path, progress=update)
        if json_path not in (None, "-"):
            _write(Path(str(json_path)), result)
    if result and not report.as_json:
        from nova_mp.bench.report import format_text

        report.say(format_text(result))
        for written in (json_path, html_path):
            if written:
                report.say(f"written: {written}")
    return {"result": result}


def find_job(job: str) -> Path:
    """The job file: as it is written, or one of those that come with the package."""
    path = Path(job)
    if path.exists():
        return path
    from importlib import resources

    presets = resources.files("nova_mp.presets")
    for name in (job, f"{job}.toml", path.name):
        candidate = presets / name
        if candidate.is_file():
            return Path(str(candidate))
    names = sorted(entry.name for entry in presets.iterdir() if entry.name.endswith(".toml"))
    raise Refused("no such job file", f"those that come with the package: {', '.join(names)}")


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps({"output_version": OUTPUT_VERSION, **result}, indent=2) + "\n")


command.add_command(run)

"""nova-mp bench: run benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from nova_mp.cli import progress
from nova_mp.cli.command import VerbGroup, verb
from nova_mp.cli.output import Column, ListStyle, table
from nova_mp.cli.report import USAGE, Refused, Report


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
    out = None if report.as_json else json_path
    result: dict[str, Any] = {}
    with ExitStack() as stack, report.attempt(job):
        path = find_job(job)
        for place in filter(None, (out, html_path)):
            stack.enter_context(_writable(place))
        from nova_mp.bench.run import run_job

        with progress.step_bar("measuring", progress.wanted(report.as_json)) as update:
            result = run_job(
                path,
                out=out,
                html=html_path,
                progress=lambda label, done, total: update(label, done / max(total, 1)),
            )
    if result:
        report.say("\n".join(summary(result)))
    for written in (out, html_path):
        if result and written:
            report.say(f"written: {written}")
    return result


@contextmanager
def _writable(place: str) -> Iterator[None]:
    """Find out before the run, not after it, that a result cannot be written.

    No empty file is left where there was none, if the run fails.
    """
    path = Path(place)
    if path.is_dir():
        raise Refused(f"{place} is a directory", "name a file in it for the result", USAGE)
    was_there = path.exists()
    with open(path, "a"):
        pass
    try:
        yield
    finally:
        if not was_there and path.is_file() and not path.stat().st_size:
            path.unlink()


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
    names = sorted(entry.name for entry in presets.iterdir() if _is_job(entry.name))
    raise Refused("no such job file", f"those that come with the package: {', '.join(names)}")


def _is_job(name: str) -> bool:
    # The others are parts, for jobs to include.
    return name.endswith(".toml") and not name.startswith(("engine-", "media-"))


def summary(result: dict[str, Any]) -> list[str]:
    """A result as lines of text."""
    if result["kind"] == "micro":
        return _micro(result)
    if result["kind"] == "snapshots":
        from nova_mp.bench.snapview import sheets

        return _sheets(sheets(result))
    if result["kind"] == "echo":
        from nova_mp.bench import echo

        return _sheets(echo.sheets(result))
    if result["kind"] == "mapped":
        from nova_mp.bench import mapview

        return _sheets(mapview.sheets(result))
    if result["kind"] == "crowd":
        from nova_mp.bench import crowd

        load = ["", *_load(result["load"])] if "load" in result else []
        return _sheets(crowd.sheets(result)) + load
    return _load(result)


def _micro(result: dict[str, Any]) -> list[str]:
    from nova_mp.bench import micro
    from nova_mp.bench.units import show_ns

    peer = result["peer"]["file_system"]
    columns = [Column("CASE")]
    columns += [Column(title, number=True) for title in ("NOVA_MP", peer, "RATIO", "QUARTILES")]
    rows = [
        (
            case["name"],
            show_ns(case["nova_mp_ns"]),
            show_ns(case["peer_ns"]),
            f"{case['ratio']:.2f}",
            f"{case['ratio_low']:.2f} to {case['ratio_high']:.2f}",
        )
        for case in result["cases"]
    ]
    lines = table(columns, rows, ListStyle()) if rows else []
    targets = micro.targets(result)
    if targets:
        columns = [Column("TARGET"), Column("MEASURED", True), Column("WANTED", True)]
        columns += [Column("UNIT"), Column("")]
        rows = [
            (
                row["name"],
                f"{row['value']:,.4g}",
                f"{row['target']:,.4g}",
                row["unit"],
                "met" if row["met"] else "missed",
            )
            for row in targets
        ]
        lines += ["", *table(columns, rows, ListStyle())]
    return lines


def _sheets(found: Iterable[Any]) -> list[str]:
    lines: list[str] = []
    for sheet in found:
        columns = [Column(title.upper(), 0 < at < len(sheet.head) - 1)
                   for at, title in enumerate(sheet.head)]
        lines += ["", f"{sheet.title}{': ' if sheet.note else ''}{sheet.note}"]
        lines += table(columns, sheet.rows, ListStyle())
    return lines[1:]


def _load(result: dict[str, Any]) -> list[str]:
    from nova_mp.bench.units import show_bytes, show_ns, show_rate

    titles = ("OPERATIONS", "DATA", "SERVICE P50", "P99", "P99.9", "RESPONSE P99", "NOVA_MP/PEER")
    columns = [Column("CLIENTS"), *(Column(title, number=True) for title in titles)]
    rows = []
    for subject in (result, *result["peers"]):
        groups = list(subject["groups"])
        if len(groups) > 1:
            groups.append({"name": "total", **subject["total"]})
        for group in groups:
            service, response = group["latency"]["service"], group["latency"]["response"]
            ratio = subject.get("ratio") if group is groups[-1] else None
            rows.append(
                (
                    f"{subject['subject']}: {group['name']}",
                    show_rate(group["operations_per_second"]),
                    f"{show_bytes(group['bytes_per_second'])}/s",
                    show_ns(service["p50"]),
                    show_ns(service["p99"]),
                    show_ns(service["p99_9"]),
                    show_ns(response["p99"]),
                    f"{ratio:.2f}" if ratio else "",
                )
            )
    return table(columns, rows, ListStyle())


command.add_command(run)

"""A result as one self-contained HTML page: tables, plots, and the environment. No script, no net.

`render` takes any result of `run.run_job` (or of the demo), also one read back from JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import crowd, echo, mapview, micro
from .histogram import CURVE
from .snapview import Sheet, sheets
from .svg import Axis, Bar, Line, bars, lines
from .units import show_bytes, show_ns, show_rate

_STYLE = """
:root{--ink:#1b1f24;--soft:#59636e;--ground:#fff;--rule:#d8dee4;--good:#1a7f37;--bad:#c62828;
--c0:#2563c9;--c1:#9aa4b2;--c2:#0f8a7e;--c3:#b7791f;--c4:#8b5cf6;--c5:#d9467a}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--ground:#0d1117;
--rule:#30363d;--good:#3fb950;--bad:#f85149;--c0:#589bff;--c1:#6e7681;--c2:#2fb7a8;--c3:#d9a441;
--c4:#a78bfa;--c5:#f472a6}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:60rem;
margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
p.note{color:var(--soft)}table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid var(--rule);
font-variant-numeric:tabular-nums}th:first-child,td:first-child{text-align:left}
th{color:var(--soft);font-weight:500}.met{color:var(--good)}.missed{color:var(--bad);
font-weight:600}div.wide{overflow-x:auto}svg{width:100%;height:auto;max-width:760px;display:block}
svg text{font:13px system-ui,sans-serif;fill:var(--ink)}svg .tick{fill:var(--soft);font-size:12px}
.s0{fill:var(--c0)}.s1{fill:var(--c1)}.s2{fill:var(--c2)}.s3{fill:var(--c3)}.s4{fill:var(--c4)}
.s5{fill:var(--c5)}rect.bad{fill:var(--bad)}.grid{stroke:var(--rule);fill:none}
.mark{stroke:var(--ink);stroke-width:2}.whisker{stroke:var(--ink);opacity:.55}
.line{fill:none;stroke-width:2}.dashed{stroke-dasharray:5 4}.l0{stroke:var(--c0)}
.l1{stroke:var(--c1)}.l2{stroke:var(--c2)}.l3{stroke:var(--c3)}.l4{stroke:var(--c4)}
.l5{stroke:var(--c5)}
"""
# Where the x axis of a percentile plot has its ticks.
_PERCENT_TICKS = (50.0, 90.0, 99.0, 99.9, 99.99)


def write_html(result: dict[str, Any], path: Path) -> None:
    """Write the page of a result; raises OSError."""
    path.write_text(render(result), encoding="utf-8")


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write the result for machines; raises OSError."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def render(result: dict[str, Any]) -> str:
    """The whole page."""
    bodies = {"micro": _micro, "load": _load, "snapshots": _snapshots, "crowd": _crowd,
              "echo": _echo, "mapped": _mapped}
    kind = result["kind"]
    if kind not in bodies:
        raise ValueError(f"no page for results of kind {kind!r}")
    title = f"{result['name']}: nova_mp benchmark"
    return "".join([
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>", _setting(result["environment"]),
        *bodies[kind](result), _environment(result["environment"]), "</body></html>\n",
    ])


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table. Cells are escaped, but for (text, class) pairs, whose class is set too."""
    parts = ['<div class="wide"><table><tr>']
    parts += [f"<th>{escape(name)}</th>" for name in head]
    parts.append("</tr>")
    for row in rows:
        parts.append("<tr>")
        for cell in row:
            content, css = cell if isinstance(cell, tuple) else (cell, "")
            parts.append(f'<td class="{css}">{escape(str(content))}</td>')
        parts.append("</tr>")
    return "".join([*parts, "</table></div>"])


def _setting(environment: dict[str, Any]) -> str:
    crowded = (
        " There were more emulated CPUs or processes than cores: throughput and tail latencies"
        " include waiting for a core." if environment["oversubscribed"] else ""
    )
    return (
        f'<p class="note">{escape(str(environment["processor"]))}, {environment["cores"]} cores,'
        f" Linux {escape(environment['kernel'])}, Python {environment['python']},"
        f" {environment['time']}.{crowded}</p>"
    )


def _environment(environment: dict[str, Any]) -> str:
    def show(key: str, value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {found}" for name, found in value.items() if found)
        return show_bytes(value) if key.endswith("_bytes") else str(value)

    return "<h2>Environment</h2>" + table(("", ""), (
        (key.removesuffix("_bytes").replace("_", " "), show(key, value))
        for key, value in environment.items()
    ))


def _verdict(met: bool | None) -> tuple[str, str]:
    return {True: ("met", "met"), False: ("missed", "missed"), None: ("", "")}[met]


# ---------------------------------------------------------------------------------- micro


def _micro(result: dict[str, Any]) -> list[str]:
    cases = result["cases"]
    peer = result["peer"]["file_system"]
    return [
        "<h2>How many times the rate of the operating system's call</h2>",
        f'<p class="note">The same loop in one process on an arena and on {escape(peer)}'
        f" ({escape(result['peer']['path'])}), taking turns; medians of"
        f" {cases[0]['repeats'] if cases else 0} runs. Whiskers are the quartiles of neighbouring"
        " runs, the upright line is the target.</p>",
        bars([
            Bar(
                case["name"], case["ratio"], f"{case['ratio']:.2f} x", case["target"],
                whisker=(case["ratio_low"], case["ratio_high"]), bad=case["met"] is False,
            )
            for case in cases
        ], "rate of nova_mp over the peer's"),
        table(
            ("", "nova_mp", peer, "ratio", "quartiles", "target", ""),
            (
                (
                    case["name"], show_ns(case["nova_mp_ns"]), show_ns(case["peer_ns"]),
                    f"{case['ratio']:.2f}", f"{case['ratio_low']:.2f} to {case['ratio_high']:.2f}",
                    case["target"] or "", _verdict(case["met"]),
                )
                for case in cases
            ),
        ),
        "<h2>Each run</h2>",
        lines(
            [
                Line(
                    f"{case['name']}: {name}",
                    list(enumerate(case[f"{side}_runs_ns"], 1)), index, side == "peer",
                )
                for index, case in enumerate(cases)
                for side, name in (("nova_mp", "nova_mp"), ("peer", peer))
            ],
            Axis("run", ticks=range(1, 1 + (cases[0]["repeats"] if cases else 1))),
            Axis("per operation", show_ns, logarithmic=True),
            "time per operation of each run", height=360,
        ),
        *_micro_scenarios(result, peer),
    ]


def _micro_scenarios(result: dict[str, Any], peer: str) -> list[str]:
    parts: list[str] = []
    if scaling := result.get("scaling"):
        parts += ["<h2>Several processes on files of their own</h2>", table(
            (
                "", "one", f"{scaling['processes']} together", "ratio",
                "processor time of one", "together",
            ),
            (
                (
                    name, show_rate(found["one_per_second"]), show_rate(found["all_per_second"]),
                    f"{found['ratio']:.2f}", show_ns(found["one_cpu_ns"]),
                    show_ns(found["all_cpu_ns"]),
                )
                for name, found in (("nova_mp", scaling["nova_mp"]), (peer, scaling["peer"]))
            ),
        )]
    if memory := result.get("memory"):
        parts += ["<h2>Volatile memory of a full arena</h2>", table(
            ("", "files", "data", "DRAM for it", "share", "bytes a file"),
            (
                (
                    name, f"{found['files']:,}", show_bytes(found["data_bytes"]),
                    show_bytes(found["dram_bytes_for_data"]), f"{found['dram_share']:.2%}",
                    f"{found['dram_bytes_per_file']:,.0f}",
                )
                for name, found in (
                    ("4 KiB files", memory["small_files"]),
                    ("one file in random 4 KiB pieces", memory["large_file"]),
                )
            ),
        )]
    if recovery := result.get("recovery"):
        parts += ["<h2>Mount after a crash</h2>", table(
            ("run", "files", "log entries", "reading logs", "entries a second", "start in all"),
            (
                (
                    index, f"{recovery['files']:,}", f"{run['entries']:,}",
                    show_ns(run["seconds"] * 1e9), show_rate(run["entries_per_second"]),
                    show_ns(run["start_seconds"] * 1e9),
                )
                for index, run in enumerate(recovery["runs"], 1)
            ),
        )]
    parts += ["<h2>Targets</h2>", table(
        ("", "measured", "target", "unit", ""),
        (
            (row["name"], f"{row['value']:.4g}", f"{row['target']:.4g}", row["unit"],
             _verdict(row["met"]))
            for row in micro.targets(result)
        ),
    )]
    return parts


# --------------------------------------------------------------------- snapshots, messages


def _sheets(found: Iterable[Sheet]) -> list[str]:
    parts: list[str] = []
    for sheet in found:
        parts += [f"<h2>{escape(sheet.title)}</h2>", f'<p class="note">{escape(sheet.note)}</p>']
        parts.append(table(sheet.head, (
            [(cell, cell if cell in ("met", "missed") else "") for cell in row]
            for row in sheet.rows
        )))
    return parts


def _crowd(result: dict[str, Any]) -> list[str]:
    return _sheets(crowd.sheets(result)) + (_load(result["load"]) if "load" in result else [])


def _snapshots(result: dict[str, Any]) -> list[str]:
    parts = _sheets(sheets(result))
    if any(row["curve"] for row in result["count"]):
        parts.append(lines(
            [Line(f"{row['count']:,} snapshots", row["curve"], 0) for row in result["count"]],
            Axis("snapshots there are"), Axis("create", show_ns, logarithmic=True),
            "create against number of snapshots, without the message",
        ))
    return parts


def _echo(result: dict[str, Any]) -> list[str]:
    return _sheets(echo.sheets(result))


def _mapped(result: dict[str, Any]) -> list[str]:
    return _sheets(mapview.sheets(result))


# ----------------------------------------------------------------------------------- load


def _load(result: dict[str, Any]) -> list[str]:
    subjects = [result, *result["peers"]]
    parts = ["<h2>Throughput</h2>", bars(
        [
            Bar(
                f"{group['name']} on {subject['subject']}", group["operations_per_second"],
                show_rate(group["operations_per_second"]), series=0 if index == 0 else 1,
            )
            for position in range(len(result["groups"]))
            for index, subject in enumerate(subjects)
            for group in (subject["groups"][position],)
        ],
        "operations per second of each client group",
    )]
    rows = []
    for subject in subjects:
        for group in [*subject["groups"], {"name": "total", **subject["total"]}]:
            service, response = group["latency"]["service"], group["latency"]["response"]
            rows.append((
                f"{subject['subject']}: {group['name']}", show_rate(group["operations_per_second"]),
                f"{show_bytes(group['bytes_per_second'])}/s", show_ns(service["p50"]),
                show_ns(service["p99"]), show_ns(service["p99_9"]), show_ns(response["p99"]),
                show_ns(service["max"]),
            ))
    parts.append(table(
        ("", "operations", "data", "service p50", "p99", "p99.9", "response p99", "max"), rows
    ))
    parts += ["<h2>Latency</h2>", '<p class="note">Service is from the call to its return;'
              " response counts from when the operation should have begun.</p>"]
    parts += [_latency_plot(subjects, position) for position in range(len(result["groups"]))]
    parts += _load_details(result)
    return parts


def _latency_plot(subjects: list[dict[str, Any]], position: int) -> str:
    drawn = []
    for index, subject in enumerate(subjects):
        group = subject["groups"][position]
        for name in ("service", "response") if group["loop"] == "open" else ("service",):
            points = [
                (_nines(percent), max(1.0, value))
                for percent, value in group["latency"][name]["curve"] if percent < CURVE[-1]
            ]
            label = f"{group['name']}: {subject['subject']} {name}"
            drawn.append(Line(label, points, index, name == "response"))
    return lines(
        drawn,
        Axis("percent of operations", _show_nines, ticks=[_nines(p) for p in _PERCENT_TICKS]),
        Axis("latency", show_ns, logarithmic=True), "latency by percentile",
    )


def _nines(percent: float) -> float:
    """Percentiles on a scale where each further nine takes the same room."""
    return -math.log10(1 - min(percent, 99.9999) / 100)


def _show_nines(value: float) -> str:
    return f"{(1 - 10**-value) * 100:.6g}"


def _load_details(result: dict[str, Any]) -> list[str]:
    parts = ["<h2>By operation</h2>", table(
        ("", "count", "p50", "p90", "p99", "p99.9", "max"),
        (
            (
                f"{group['name']}: {name}", f"{found['count']:,}", show_ns(found["p50"]),
                show_ns(found["p90"]), show_ns(found["p99"]), show_ns(found["p99_9"]),
                show_ns(found["max"]),
            )
            for group in result["groups"] for name, found in group["by_operation"].items()
        ),
    )]
    if snapshots := result["snapshots"]:
        create, delete = snapshots["create_latency"], snapshots["delete_latency"]
        parts += ["<h2>Snapshots</h2>", table(
            ("", "count", "p50", "p99", "max"),
            (
                (name, found["count"], show_ns(found["p50"]), show_ns(found["p99"]),
                 show_ns(found["max"]))
                for name, found in (("create", create), ("delete", delete))
            ),
        )]
    if verified := result["verify"]:
        parts.append(
            f"<p>Verified: {verified['blocks']:,} blocks of the live files,"
            f" {verified['snapshots']} snapshots whole, {verified['reads_checked']:,} reads;"
            f" {verified['errors']} errors.</p>"
        )
    return parts

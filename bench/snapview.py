"""The result of the snapshot benchmark as tables, the same for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .units import show_bytes, show_ns, show_rate


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table with a title, and a sentence that says what was measured."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def sheets(result: dict[str, Any]) -> Iterator[Sheet]:
    """All tables of a result that hold anything; targets last."""
    for build in (_create, _delete, _size, _overwrite, _count, _cleaner, _peers, target_sheet):
        sheet = build(result)
        if sheet.rows:
            yield sheet


def _ns(found: dict[str, float], *keys: str) -> tuple[str, ...]:
    return tuple(show_ns(found[key]) if found["count"] else "-" for key in keys)


def _create(result: dict[str, Any]) -> Sheet:
    rows: list[tuple[str, ...]] = [
        (
            str(row["cpus"]), str(load["writers"]),
            *_ns(load["engine"]["create"], "p50", "p99"),
            *_ns(load["core"]["create"], "p50", "p99"),
            show_rate(load["writes_per_second"]) if load["writers"] else "",
        )
        for row in result["create"] for load in row["loads"]
    ]
    return Sheet(
        "Create latency", "engine: fs.snapshots.create(); core: the call itself, in process",
        ("cpus", "writers", "engine p50", "p99", "core p50", "p99", "writes"), rows,
    )


def _delete(result: dict[str, Any]) -> Sheet:
    rows: list[tuple[str, ...]] = []
    for row in result["create"]:
        few, many = row["deletes"]["few"], row["deletes"]["many"]
        rows.append((
            str(row["cpus"]), *_ns(row["loads"][0]["engine"]["delete"], "p50"),
            *_ns(few, "p50", "p99"), *_ns(many, "p50", "p99"), f"{many['entries_per_cpu']}",
        ))
    return Sheet(
        "Delete latency, idle", "core: with one entry in each CPU's list, and with many",
        ("cpus", "engine p50", "core p50", "p99", "many p50", "p99", "many"), rows,
    )


def _size(result: dict[str, Any]) -> Sheet:
    rows: list[tuple[str, ...]] = []
    for row in result["size"]:
        for way in ("engine", "core"):
            small, large = row[way]["small"], row[way]["large"]
            rows.append((
                way, *_ns(small, "p50", "p99"), *_ns(large, "p50", "p99"),
                f"{row[way]['ratio']:.2f}", show_bytes(row["large_bytes"]),
            ))
    note = "".join(
        f"with {show_bytes(row['small_bytes'])} and with {show_bytes(row['large_bytes'])}"
        + (f" (memory is short of {show_bytes(2 * row['wanted_bytes'])})"
           if row["large_bytes"] < row["wanted_bytes"] else "")
        for row in result["size"]
    )
    head = ("create", "small p50", "p99", "large p50", "p99", "ratio", "large")
    return Sheet("Create against amount of data", note, head, rows)


def _overwrite(result: dict[str, Any]) -> Sheet:
    rows: list[tuple[str, ...]] = []
    for row in result["overwrite"]:
        for case in row["cases"]:
            cold = case["cold_share_of_loss"]
            rows.append((
                show_bytes(row["working_set_bytes"]), case["every"],
                show_rate(row["per_second"]), show_rate(case["per_second"]),
                f"{case['ratio']:.2f}", f"{case['ratio_low']:.2f} to {case['ratio_high']:.2f}",
                f"{case['snapshots']} of {case['snapshots_expected']}",
                f"{case['recorded_share']:.1%}", f"{case['lost_ns_per_call']:.0f} ns",
                f"{case['cold_ns_per_call']:.0f} ns", "" if cold is None else f"{cold:.0%}",
            ))
    return Sheet(
        "Overwrites of 4 KiB beside snapshots",
        "recorded: writes whose old block a snapshot keeps; cold: their share times what a write"
        " into a block that is in no cache costs more, measured without snapshots (too much where"
        " the data alone does not fit in the caches)",
        ("data", "every", "without", "with", "ratio", "quartiles", "snapshots", "recorded",
         "lost a call", "cold", "of the loss"), rows,
    )


def _count(result: dict[str, Any]) -> Sheet:
    rows: list[tuple[str, ...]] = [
        (way, *_ns(row[way]["early"], "p50", "p99"), *_ns(row[way]["late"], "p50", "p99"),
         f"{row[way]['ratio']:.2f}", f"{row['count']:,}")
        for row in result["count"] for way in ("engine", "core")
    ]
    head = ("create", "10th p50", "p99", "last p50", "p99", "ratio", "snapshots")
    return Sheet("Create against number of snapshots", "medians of 50 around each", head, rows)


def _cleaner(result: dict[str, Any]) -> Sheet:
    rows: list[tuple[str, ...]] = [
        (f"{run['entries']:,}", show_ns(run["delete_ns"]), show_ns(run["clean_ns"]),
         show_rate(run["entries"] * 1e9 / run["clean_ns"]), show_ns(run["elapsed_ns"]),
         show_rate(run["entries"] * 1e9 / run["elapsed_ns"]))
        for row in result["cleaner"] for run in row["runs"]
    ]
    head = ("entries", "delete", "cleaner's time", "rate", "delete and wait()", "rate")
    return Sheet("Cleaner", "what one deleted snapshot held, entry by entry", head, rows)


def _peers(result: dict[str, Any]) -> Sheet:
    rows: list[tuple[str, ...]] = []
    for row in result["peers"]:
        if row["missing"]:
            rows.append((row["kind"], *("" for _ in range(6)), f"missing: {row['missing']}"))
            continue
        rows.append((
            row["kind"], *_ns(row["create"], "p50", "p99"),
            *_ns(row["create_beside"], "p50", "max"), show_rate(row["writes_per_second"]),
            f"{row['ratio']:.2f}", row["way"],
        ))
    sizes = {show_bytes(row["data_bytes"]) for row in result["peers"]}
    return Sheet(
        f"Side by side, {', '.join(sizes)} of data",
        "beside: while one writer overwrites 4 KiB blocks, ten times a second; ratio: its rate then"
        " over its rate without",
        ("", "idle p50", "p99", "beside p50", "max", "writes", "ratio", "how"), rows,
    )


def target_sheet(result: dict[str, Any]) -> Sheet:
    """What was wanted, and whether it was met."""
    rows: list[tuple[str, ...]] = [
        (
            row["name"], f"{row['value']:,.4g}",
            f"{'at most' if row['low_is_good'] else 'at least'} {row['target']:,.4g}",
            "met" if row["met"] else "missed",
        )
        for row in result["targets"]
    ]
    return Sheet("Targets", "", ("target", "measured", "wanted", ""), rows)

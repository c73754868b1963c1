"""The result of the mapped-file benchmark as tables, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .snapview import Sheet, target_sheet
from .units import show_bytes, show_ns


def sheets(result: dict[str, Any]) -> Iterator[Sheet]:
    """All tables of a result."""
    yield _freeze(result)
    yield _stores(result)
    targets = target_sheet(result)
    if targets.rows:
        yield targets


def _ns(row: dict[str, Any], name: str, *keys: str) -> tuple[str, ...]:
    return tuple(show_ns(row[name][key]) if name in row else "" for key in keys)


def _freeze(result: dict[str, Any]) -> Sheet:
    rows: list[tuple[str, ...]] = [
        (row["kind"], *_ns(row, "freeze", "p50", "max"), *_ns(row, "pause", "p50", "p99", "max"),
         *_ns(row, "create", "p50"), row["way"])
        for row in result["rows"] if row["kind"] != "plain"
    ]
    return Sheet(
        f"A snapshot of {show_bytes(result['large_bytes'])} of memory",
        "freeze: taking it, all pages stored to before; pause: the longest store around it, while"
        " one process stores to pages in random order",
        ("", "freeze p50", "max", "pause p50", "p99", "max", "create p50", "how"), rows,
    )


def _stores(result: dict[str, Any]) -> Sheet:
    rows: list[tuple[str, ...]] = [
        (row["kind"], *_ns(row, "first", "p50", "p99"), *_ns(row, "idle", "p50"),
         f"{row['rewrite']:.2f}", f"{row['steady']:.3f}",
         f"{show_bytes(row['plain_bytes_per_second'])}/s", row["way"])
        for row in result["rows"] if "rewrite" in row
    ]
    return Sheet(
        f"Stores to {show_bytes(result['small_bytes'])} of memory",
        "first: one store to each page after a snapshot, in random order; again: the next one,"
        " clock included; rewrite: everything copied over after a snapshot, and steady: without"
        " one, over the rate of a copy to plain shared memory",
        ("", "first p50", "p99", "again p50", "rewrite", "steady", "plain copy", "how"), rows,
    )

"""How results look: columns, sizes, times, modes. Plain text, so that it can be piped anywhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from nova_mp.cli.report import printable
from nova_mp.core.segment import format_size


@dataclass(frozen=True)
class ListStyle:
    """How a list is printed: with a header and aligned, or bare with tabs; for people or exact."""

    header: bool = True
    exact: bool = False

    def size(self, size_bytes: int | None) -> str:
        """A number of bytes; a dash when it is not known."""
        if size_bytes is None:
            return "-"
        return str(size_bytes) if self.exact else format_size(size_bytes)

    def time(self, time_ns: int | None) -> str:
        """A time since the Unix epoch: local date and time, or exact seconds."""
        if not time_ns:
            return "-"
        if self.exact:
            return f"{time_ns // 10**9}.{time_ns % 10**9:09d}"
        return datetime.fromtimestamp(time_ns // 10**9).strftime("%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True)
class Column:
    """A column of a list: its title, and whether it holds numbers (then it is set to the right)."""

    title: str
    number: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], style: ListStyle) -> list[str]:
    """The lines of a list."""
    if not style.header:
        return ["\t".join(row) for row in rows]
    titles = [column.title for column in columns]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    lines = []
    for row in [titles, *rows]:
        cells = [
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines[0] = click.style(lines[0], bold=True)
    return lines


def facts(pairs: Sequence[tuple[str, Any]]) -> list[str]:
    """Lines of `name: value`, the values below each other."""
    width = max(len(name) for name, _ in pairs) + 1
    return [f"{name + ':':<{width}} {value}" for name, value in pairs]


def counted(number: int, one: str, many: str = "") -> str:
    """A number and what it counts: `1 file`, `2 files`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def name_for_output(name: str) -> str:
    """A file name as it is printed: as it is into a pipe, harmless on a terminal."""
    return printable(name) if sys.stdout.isatty() else name


def iso_time(time_ns: int) -> str:
    """A time for JSON: ISO 8601 in UTC, to the microsecond."""
    seconds, rest = divmod(time_ns, 10**9)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000).isoformat()

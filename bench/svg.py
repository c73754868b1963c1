"""Plots as inline SVG: bars and lines, enough for a benchmark's page and nothing to install.

Colours come from the page's style sheet (classes ``s0`` to ``s5``), so that a plot follows the
reader's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 760
ROW = 34
LABEL_WIDTH = 250
SERIES_CLASSES = 6
LETTER = 7.4  # the width of a letter at the style sheet's 13 px, on average


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its value, the text at its end, and a mark (a target) across it."""

    label: str
    value: float
    text: str
    mark: float | None = None
    series: int = 0
    whisker: tuple[float, float] | None = None
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a line plot."""

    label: str
    points: Sequence[tuple[float, float]]
    series: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """How an axis shows its values; logarithmic ones need values above 0."""

    title: str
    show: Callable[[float], str] = field(default=lambda value: f"{value:g}")
    logarithmic: bool = False
    ticks: Sequence[float] | None = None


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    """A text element; the content is escaped."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">'
        f"{escape(content)}</text>"
    )


def bars(rows: Sequence[Bar], title: str) -> str:
    """Horizontal bars from zero, one a row, each with its own text."""
    if not rows:
        return ""
    height = ROW * len(rows) + 16
    highest = max(max(row.value, row.mark or 0, (row.whisker or (0, 0))[1]) for row in rows) or 1.0
    scale = (WIDTH - LABEL_WIDTH - 150) / highest
    parts = [_open(height, title)]
    for index, row in enumerate(rows):
        top = 8 + index * ROW
        width = max(1.0, row.value * scale)
        css = "bad" if row.bad else f"s{row.series % SERIES_CLASSES}"
        parts.append(text(LABEL_WIDTH - 10, top + 17, row.label, "label", "end"))
        parts.append(
            f'<rect x="{LABEL_WIDTH}" y="{top}" width="{width:.1f}" height="{ROW - 12}" rx="3"'
            f' class="{css}"/>'
        )
        reach = width
        if row.whisker is not None:
            low, high = (LABEL_WIDTH + end * scale for end in row.whisker)
            middle = top + (ROW - 12) / 2
            parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}" class="whisker"/>')
            reach = max(reach, high - LABEL_WIDTH)
        if row.mark is not None:
            at = LABEL_WIDTH + row.mark * scale
            parts.append(f'<path d="M{at:.1f} {top - 4}V{top + ROW - 8}" class="mark"/>')
            reach = max(reach, at - LABEL_WIDTH)
        parts.append(text(LABEL_WIDTH + reach + 8, top + 17, row.text, "value"))
    return "".join([*parts, "</svg>"])


def lines(rows: Sequence[Line], x: Axis, y: Axis, title: str, height: int = 300) -> str:
    """Lines on common axes, with a legend below."""
    rows = [row for row in rows if row.points]
    if not rows:
        return ""
    left, right, top, bottom = 84, 16, 30, 48
    xs = [point[0] for row in rows for point in row.points]
    ys = [point[1] for row in rows for point in row.points]
    place_x = _scale(x, xs, left, WIDTH - right)
    place_y = _scale(y, ys, height - bottom, top)
    column = 50 + LETTER * max(len(row.label) for row in rows)
    columns = max(1, int((WIDTH - left) / column))
    legend = 22 * -(-len(rows) // columns)
    parts = [_open(height + legend, title)]
    for value in _ticks(y, ys):
        at = place_y(value)
        parts.append(f'<path d="M{left} {at:.1f}H{WIDTH - right}" class="grid"/>')
        parts.append(text(left - 8, at + 4, y.show(value), "tick", "end"))
    for value in _ticks(x, xs):
        at = place_x(value)
        parts.append(f'<path d="M{at:.1f} {top}V{height - bottom}" class="grid"/>')
        parts.append(text(at, height - bottom + 18, x.show(value), "tick", "middle"))
    parts.append(text((left + WIDTH - right) / 2, height - 8, x.title, "tick", "middle"))
    parts.append(text(6, 13, y.title, "tick"))
    for index, row in enumerate(rows):
        way = " ".join(f"{place_x(px):.1f},{place_y(py):.1f}" for px, py in row.points)
        css = f"line l{row.series % SERIES_CLASSES}" + (" dashed" if row.dashed else "")
        parts.append(f'<polyline points="{way}" class="{css}"/>')
        lx, ly = left + index % columns * column, height + 14 + index // columns * 22
        parts.append(f'<path d="M{lx} {ly - 4}h22" class="{css}"/>')
        parts.append(text(lx + 28, ly, row.label, "label"))
    return "".join([*parts, "</svg>"])


def _open(height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>"
    )


def _bounds(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if axis.ticks:
        low, high = min(low, *axis.ticks), max(high, *axis.ticks)
    if axis.logarithmic:
        low = 10.0 ** math.floor(math.log10(max(low, 1e-9)))
        high = 10.0 ** math.ceil(math.log10(max(high, 1e-9)))
        return low, high if high > low else low * 10
    low = min(low, 0.0)
    return low, high if high > low else low + 1.0


def _scale(
    axis: Axis, values: Sequence[float], start: float, end: float
) -> Callable[[float], float]:
    low, high = _bounds(axis, values)
    if axis.logarithmic:
        span = math.log10(high / low)
        return lambda value: start + (end - start) * math.log10(max(value, low) / low) / span
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _ticks(axis: Axis, values: Sequence[float]) -> Sequence[float]:
    if axis.ticks is not None:
        return axis.ticks
    low, high = _bounds(axis, values)
    if axis.logarithmic:
        first, last = round(math.log10(low)), round(math.log10(high))
        return [10.0**power for power in range(first, last + 1)]
    raw = (high - low) / 5
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= raw)
    return [low + index * step for index in range(int((high - low) / step) + 1)]

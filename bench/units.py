"""Durations as people write them in job files, and figures as they read them in tables.

Sizes are `nova_mp.config`'s: one reading of "4KiB" for the whole package.
"""

from __future__ import annotations

import math
import re

_DURATIONS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*")


def parse_duration(value: float | str) -> int:
    """Return a duration in nanoseconds: ``"100ms"``, ``"2s"``, ``"50us"``, or a number of seconds.

    Raises ValueError for anything else, negative numbers included.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a duration such as \"100ms\", got {value!r}")
    if isinstance(value, int | float):
        if value < 0:
            raise ValueError(f"a duration cannot be negative: {value!r}")
        if not value < math.inf:
            raise ValueError(f"a duration has an end: {value!r}")
        return int(value * 1e9)
    match = _NUMBER.fullmatch(value)
    if match is None or (match[2] or "s") not in _DURATIONS:
        raise ValueError(f"expected a duration such as \"100ms\", got {value!r}")
    return int(float(match[1]) * _DURATIONS[match[2] or "s"])


def show_bytes(count: float) -> str:
    """Bytes with a binary unit and three digits: ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def show_ns(ns: float) -> str:
    """Nanoseconds with the unit that keeps the number readable: ``"3.42 us"``."""
    for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if abs(ns) >= scale:
            return f"{ns / scale:.3g} {unit}"
    return f"{ns:.0f} ns"


def show_rate(per_second: float) -> str:
    """Operations per second with a decimal prefix: ``"1.25 M/s"``."""
    for scale, unit in ((1e6, " M/s"), (1e3, " k/s")):
        if per_second >= scale:
            return f"{per_second / scale:.3g}{unit}"
    return f"{per_second:.3g} /s"

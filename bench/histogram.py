"""HDR latency histograms that travel between processes and into JSON.

A thin shell around the ``hdrhistogram`` package: one range (1 ns to 1 hour) and one precision
(3 significant digits) for the whole laboratory, so that any two histograms can be added. Samples
are collected raw, in ``array('q')``, while the clock runs, and folded in here afterwards: a call
per sample would cost more than many of the operations it measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from hdrh.histogram import HdrHistogram

HIGHEST_NS = 3_600_000_000_000
DIGITS = 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
# The points of a percentile curve; the x axis of the plot is log10(1 / (1 - q)).
CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999, 100.0)


class Histogram:
    """Latencies in nanoseconds with 3 significant digits, from 0 to 1 hour (longer is clipped).

    Zero is kept apart: HDR buckets start at 1 ns, and a lag of nothing is the common case of a
    closed loop.
    """

    def __init__(self) -> None:
        self._hdr = HdrHistogram(1, HIGHEST_NS, DIGITS)
        self.zeros = 0
        self.sum_ns = 0

    def record(self, samples: Iterable[int]) -> None:
        """Fold raw samples (ns) in. Negative ones raise ValueError: a clock went backwards."""
        for value, count in Counter(samples).items():
            if value < 0:
                raise ValueError(f"negative latency: {value} ns")
            self.sum_ns += value * count
            if value == 0:
                self.zeros += count
            else:
                self._hdr.record_value(min(value, HIGHEST_NS), count)

    def add(self, other: Histogram) -> None:
        """Add another histogram's samples to this one's."""
        self._hdr.add(other._hdr)
        self.zeros += other.zeros
        self.sum_ns += other.sum_ns

    @property
    def count(self) -> int:
        """How many samples were recorded."""
        return int(self._hdr.get_total_count()) + self.zeros

    @property
    def mean(self) -> float:
        """The exact mean of the raw samples, in ns; 0 when there are none."""
        return self.sum_ns / self.count if self.count else 0.0

    @property
    def max(self) -> int:
        """The largest sample in ns, to 3 digits."""
        return int(self._hdr.get_max_value()) if self._hdr.get_total_count() else 0

    @property
    def min(self) -> int:
        """The smallest sample in ns, to 3 digits."""
        if self.zeros or not self._hdr.get_total_count():
            return 0
        return int(self._hdr.get_min_value())

    def percentile(self, percent: float) -> int:
        """The latency in ns that ``percent`` of all samples do not exceed, to 3 digits."""
        total = self.count
        rank = min(total, max(1, round(percent / 100 * total + 0.499999))) if total else 0
        if rank <= self.zeros:
            return 0
        of_hdr = (rank - self.zeros) / self._hdr.get_total_count() * 100
        return int(self._hdr.get_value_at_percentile(of_hdr))

    def curve(self) -> Iterator[tuple[float, int]]:
        """Points (percent, ns) of the percentile curve."""
        return ((percent, self.percentile(percent)) for percent in CURVE)

    def summary(self) -> dict[str, Any]:
        """The JSON form: figures for people, the encoded histogram for tools.

        ``hdr`` is HdrHistogram's own V2 encoding (base64, compressed), readable by its tools in
        any language; it leaves out samples of zero, which ``zeros`` counts.
        """
        found: dict[str, Any] = {"unit": "ns", "count": self.count, "zeros": self.zeros}
        found |= {"min": self.min, "mean": round(self.mean, 1)}
        for percent in PERCENTILES:
            found["p" + f"{percent:g}".replace(".", "_")] = self.percentile(percent)
        found |= {"max": self.max, "sum": self.sum_ns}
        found["curve"] = [list(point) for point in self.curve()]
        found["hdr"] = self.encode()
        return found

    def encode(self) -> str:
        """HdrHistogram V2, compressed, base64."""
        encoded = self._hdr.encode()
        return encoded.decode("ascii") if isinstance(encoded, bytes) else str(encoded)

    def pack(self) -> tuple[str, int, int]:
        """What `unpack` makes an equal histogram of, in another process."""
        return self.encode(), self.zeros, self.sum_ns

    @classmethod
    def unpack(cls, packed: tuple[str, int, int]) -> Histogram:
        """The inverse of `pack`."""
        made = cls()
        encoded, made.zeros, made.sum_ns = packed
        made._hdr.decode_and_add(encoded)
        return made

    @classmethod
    def from_summary(cls, summary: dict[str, Any]) -> Histogram:
        """Rebuild a histogram from its JSON form."""
        return cls.unpack((summary["hdr"], summary["zeros"], summary["sum"]))


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """A new histogram of all samples of the given ones."""
    total = Histogram()
    for histogram in histograms:
        total.add(histogram)
    return total

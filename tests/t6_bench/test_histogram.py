"""Latency histograms: percentiles against sorted samples, and the ways they travel."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_mp.bench.histogram import HIGHEST_NS, Histogram, merge


def of(samples: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.record(samples)
    return histogram


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=300), st.floats(0.1, 100))
@settings(max_examples=200, deadline=None)
def test_percentiles_are_those_of_the_samples(samples: list[int], percent: float) -> None:
    samples.sort()
    rank = max(1, -(-len(samples) * percent // 100))
    near = [samples[min(len(samples) - 1, max(0, int(rank) - 1 + step))] for step in (-1, 0, 1)]
    found = of(samples).percentile(percent)
    assert min(near) * 0.998 - 1 <= found <= max(near) * 1.002 + 1


def test_extremes_and_mean() -> None:
    histogram = of([0, 0, 5, 1_000_000])
    assert (histogram.count, histogram.zeros, histogram.min) == (4, 2, 0)
    assert histogram.max == pytest.approx(1_000_000, rel=0.002)
    assert histogram.mean == (5 + 1_000_000) / 4
    assert histogram.percentile(50) == 0
    assert histogram.percentile(75) == 5


def test_an_empty_one_is_all_zero() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.min, histogram.max, histogram.mean) == (0, 0, 0, 0.0)
    assert histogram.percentile(99) == 0
    assert Histogram.from_summary(histogram.summary()).count == 0


def test_merging_equals_recording_together() -> None:
    rng = random.Random(1)
    parts = [[rng.randrange(10**6) for _ in range(500)] for _ in range(4)]
    together = of([sample for part in parts for sample in part])
    merged = merge(of(part) for part in parts)
    assert merged.summary() == together.summary()


@pytest.mark.parametrize("samples", [[], [0], [1, 0, 7], [HIGHEST_NS], [10**k for k in range(12)]])
def test_the_journey_there_and_back(samples: list[int]) -> None:
    histogram = of(samples)
    assert Histogram.unpack(histogram.pack()).summary() == histogram.summary()
    assert Histogram.from_summary(histogram.summary()).summary() == histogram.summary()


def test_longer_than_an_hour_is_clipped() -> None:
    assert of([HIGHEST_NS * 5]).max == pytest.approx(HIGHEST_NS, rel=0.002)


def test_a_clock_that_goes_backwards_is_an_error() -> None:
    with pytest.raises(ValueError, match="negative"):
        of([-1])

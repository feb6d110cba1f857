"""Latencies as a histogram: small enough to keep in the results, and histograms of several slices pool exactly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

DIGITS = 3


class Histogram(BaseModel):
    """`(microseconds, count)` by ascending latency, each latency rounded to three digits."""

    model_config = ConfigDict(frozen=True)

    counts: tuple[tuple[float, int], ...] = ()

    @classmethod
    def of_counts(cls, counts: Iterable[Sequence[float]]) -> Self:
        """Of pairs of a latency in microseconds and how many requests had it."""
        found: Counter[float] = Counter()
        for latency, count in counts:
            found[_rounded(latency)] += int(count)
        return cls(counts=tuple(sorted(found.items())))

    @classmethod
    def of_seconds(cls, latencies: Iterable[float]) -> Self:
        return cls.of_counts((latency * 1e6, 1) for latency in latencies)

    @classmethod
    def pooled(cls, histograms: Iterable[Histogram]) -> Self:
        return cls.of_counts(pair for histogram in histograms for pair in histogram.counts)

    def __len__(self) -> int:
        return sum(count for _, count in self.counts)

    def percentile_ms(self, percent: float) -> float:
        """The latency that `percent` of the requests do not exceed (nearest rank), in milliseconds; NaN of none."""
        rank, seen = math.ceil(percent / 100 * len(self)), 0
        for latency, count in self.counts:
            seen += count
            if seen >= rank:
                return latency / 1e3
        return math.nan


def _rounded(latency: float) -> float:
    return float(f"{latency:.{DIGITS}g}")

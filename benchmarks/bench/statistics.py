"""What rounds say together: a median with an interval that holds whatever the distribution, and pooled percentiles."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.bench.histograms import Histogram

CONFIDENCE = 0.95
RESAMPLES = 500


class Estimate(BaseModel):
    """A value and the interval that it lies in with the probability `confidence`, of so many `rounds`."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    confidence: float
    rounds: int


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The median of `values`, and the narrowest pair of order statistics around it that reaches `confidence`.

    The number of rounds below the true median is binomial, so the k-th smallest and k-th largest of n values enclose it
    with probability 1 - 2 P(B(n, 1/2) < k). Fewer than six rounds reach no 95 %: then the interval is their whole
    range, and its confidence is what that reaches.
    """
    ordered, count = sorted(values), len(values)
    if not count:
        return Estimate(value=math.nan, low=math.nan, high=math.nan, confidence=0.0, rounds=0)
    rank = max((k for k in range(1, count // 2 + 1) if _coverage(count, k) >= confidence), default=1)
    return Estimate(
        value=_median(ordered),
        low=ordered[rank - 1],
        high=ordered[count - rank],
        confidence=_coverage(count, rank),
        rounds=count,
    )


def ratio_of_rounds(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """`one` over `other`, round by round: what the machine did in a round happened to both."""
    return median_interval([one[number] / other[number] for number in sorted(one.keys() & other.keys())])


def pooled_ratio(
    one: Mapping[int, Histogram], other: Mapping[int, Histogram], percent: float, *, seed: int = 0
) -> Estimate:
    """The ratio of a percentile of all latencies of `one` to that of `other`; a single round has too few for it.

    The interval is a bootstrap of rounds: both are taken from the same resampled rounds.
    """
    numbers = sorted(one.keys() & other.keys())
    first, second = _Pool(one, numbers), _Pool(other, numbers)
    return _bootstrap(
        len(numbers), lambda rows: first.percentile_ms(rows, percent) / second.percentile_ms(rows, percent), seed
    )


def pooled_percentile(histograms: Mapping[int, Histogram], percent: float, *, seed: int = 0) -> Estimate:
    """A percentile in milliseconds of the latencies of all rounds together, with a bootstrap interval of rounds."""
    pool = _Pool(histograms, sorted(histograms))
    return _bootstrap(len(histograms), lambda rows: pool.percentile_ms(rows, percent), seed)


class _Pool:
    """Histograms of several rounds as one table of counts `[rounds, latencies]`, for percentiles of any of them."""

    def __init__(self, histograms: Mapping[int, Histogram], numbers: Sequence[int]) -> None:
        pairs = [dict(histograms[number].counts) for number in numbers]
        self._latencies = np.array(sorted({latency for pair in pairs for latency in pair}))
        self._counts = np.array([[pair.get(latency, 0) for latency in self._latencies.tolist()] for pair in pairs])

    def percentile_ms(self, rows: Sequence[int], percent: float) -> float:
        """Nearest rank, as `Histogram.percentile_ms`; NaN of no requests."""
        seen = self._counts[list(rows)].sum(axis=0).cumsum()
        if not seen.size or not seen[-1]:
            return math.nan
        return float(self._latencies[np.searchsorted(seen, math.ceil(percent / 100 * seen[-1]))] / 1e3)


def _bootstrap(rounds: int, statistic: Callable[[Sequence[int]], float], seed: int) -> Estimate:
    if not rounds:
        return median_interval([])
    chance, numbers = random.Random(seed), range(rounds)
    samples = sorted(statistic(chance.choices(numbers, k=rounds)) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return Estimate(
        value=statistic(numbers),
        low=samples[math.floor(tail * RESAMPLES)],
        high=samples[math.ceil((1 - tail) * RESAMPLES) - 1],
        confidence=CONFIDENCE,
        rounds=rounds,
    )


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _coverage(count: int, rank: int) -> float:
    return 1 - 2 * sum(math.comb(count, below) for below in range(rank)) / (1 << count)

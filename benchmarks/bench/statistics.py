"""What rounds say together: a median with an interval that holds whatever the distribution, and pooled percentiles."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

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
    return _bootstrap(
        numbers, lambda chosen: _percentile(one, chosen, percent) / _percentile(other, chosen, percent), seed
    )


def pooled_percentile(histograms: Mapping[int, Histogram], percent: float, *, seed: int = 0) -> Estimate:
    """A percentile in milliseconds of the latencies of all rounds together, with a bootstrap interval of rounds."""
    return _bootstrap(sorted(histograms), lambda chosen: _percentile(histograms, chosen, percent), seed)


def _bootstrap(numbers: Sequence[int], statistic: Callable[[Sequence[int]], float], seed: int) -> Estimate:
    if not numbers:
        return median_interval([])
    chance = random.Random(seed)
    samples = sorted(statistic(chance.choices(numbers, k=len(numbers))) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return Estimate(
        value=statistic(numbers),
        low=samples[math.floor(tail * RESAMPLES)],
        high=samples[math.ceil((1 - tail) * RESAMPLES) - 1],
        confidence=CONFIDENCE,
        rounds=len(numbers),
    )


def _percentile(histograms: Mapping[int, Histogram], chosen: Sequence[int], percent: float) -> float:
    return Histogram.pooled(histograms[number] for number in chosen).percentile_ms(percent)


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _coverage(count: int, rank: int) -> float:
    return 1 - 2 * sum(math.comb(count, below) for below in range(rank)) / (1 << count)

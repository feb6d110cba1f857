"""Does a version drive worse than another one? Both drove the same seeds, so their differences are what is looked at.

Returns: the one-sided test of non-inferiority on paired differences `d`, at 95 %. The version is not worse if the lower
confidence bound of the mean of `d` is at or above `-margin`. Returns are skewed, since an episode that ends early costs
much and none gains as much; a paired t-test then finds a version not worse too often, 11 times in 100 instead of 5
with 20 episodes of exponential losses. So the bound is the lower one of two: that of the paired t-test, and that of
the t-test after Hall's transformation, which takes out the skewness of the differences (P. Hall, On the removal of
skewness by transformation, Journal of the Royal Statistical Society B 54 (1992), 221-228); it then is 7 in 100. With
normal differences both are the same but for chance. Differences that are all alike have no spread: the bound is their
mean.

Fewer than five episodes decide nothing: below that even a version that is better in every one could be so by chance (a
sign test's least p, 1/2^n, is then above 5 %). What `n` episodes do not show, no test can see: a misfortune that
happens in a share `q` of all episodes happens in none of them with probability `(1 - q)^n`, see `unseen_share`.

Failures, which are episodes that end in a collision or off the road: a simple rule, stricter than a test. There may not
be more of them than the other version has on the same seeds. How probable an excess is by chance alone says the exact
one-sided sign test on the episodes that only one of both failed (McNemar's), which is told and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
"""Of the number of episodes that is advised where so few were driven that they do not decide."""
MIN_EPISODES = 5
NOT_WORSE, WORSE, UNDECIDED = "not worse", "worse", "undecided"


@dataclass(frozen=True)
class Margin:
    """By how much a mean return may be lower: a return, or a `share` of the other version's mean |return|."""

    value: float
    share: bool = False

    @classmethod
    def parse(cls, text: str) -> Margin:
        """`2%` or `8.5`; `ValueError` for what is neither, negative or not finite."""
        number, share = text.strip(), text.strip().endswith("%")
        try:
            value = float(number.removesuffix("%")) / (100.0 if share else 1.0)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"margin {text!r}: expected a share such as 2%, or a return such as 8.5, from 0 on")
        return cls(value, share)

    def of(self, returns: Sequence[float]) -> float:
        """As a return, beside a version with these `returns`."""
        return self.value * float(np.mean(np.abs(returns))) if self.share else self.value


@dataclass(frozen=True)
class ReturnTest:
    """What became of the test; `needed` are the episodes that would decide, `None` if it does or none would.

    `difference` is the mean of the paired differences, `deviation` their standard deviation, `bound` the lower bound of
    their mean, and `p` the probability of such differences or better ones from a version that is worse by `margin`.
    """

    episodes: int
    mean: float
    other_mean: float
    difference: float
    deviation: float
    bound: float | None
    margin: float
    p: float | None
    verdict: str
    needed: int | None


def compare_returns(returns: Sequence[float], others: Sequence[float], margin: float) -> ReturnTest:
    """Test `returns` for being at most `margin` lower than `others`, of the same seeds in the same order.

    Raises `ValueError` for returns that are not finite, or not as many on both sides.
    """
    own, other = np.asarray(returns, np.float64), np.asarray(others, np.float64)
    if own.shape != other.shape or own.ndim != 1 or not len(own):
        raise ValueError(f"expected as many returns on both sides, got {own.size} and {other.size}")
    if not (np.isfinite(own).all() and np.isfinite(other).all()):
        raise ValueError("expected finite returns; the environment's rewards are not")
    differences = own - other
    n, difference = len(own), float(differences.mean())
    deviation = float(differences.std(ddof=1)) if n > 1 else 0.0
    bound: float | None = None
    p: float | None = None
    verdict = UNDECIDED
    if n >= MIN_EPISODES:
        bound, p = _lower_bound(differences), _p(differences, margin)
        upper = -_lower_bound(-differences)
        verdict = NOT_WORSE if bound >= -margin else WORSE if upper < -margin else UNDECIDED
    needed = _needed(difference, deviation, margin) if verdict == UNDECIDED else None
    return ReturnTest(
        episodes=n,
        mean=float(own.mean()),
        other_mean=float(other.mean()),
        difference=difference,
        deviation=deviation,
        bound=bound,
        margin=margin,
        p=p,
        verdict=verdict,
        needed=None if needed is None else max(n + 1, needed),
    )


@dataclass(frozen=True)
class FailureTest:
    """Episodes that ended in a collision or off the road: `failures` of the version, `others` of the other one.

    `only` the version failed so many that the other one did not, and the other way round `only_other`.
    """

    episodes: int
    failures: int
    others: int
    only: int
    only_other: int
    p: float

    @property
    def passed(self) -> bool:
        return self.failures <= self.others


def compare_failures(failed: Sequence[bool], others: Sequence[bool]) -> FailureTest:
    """Count failures of the same seeds in the same order."""
    only = sum(own and not other for own, other in zip(failed, others, strict=True))
    only_other = sum(other and not own for own, other in zip(failed, others, strict=True))
    discordant = only + only_other
    p = float(stats.binomtest(only, discordant, alternative="greater").pvalue) if discordant else 1.0
    return FailureTest(len(failed), sum(failed), sum(others), only, only_other, p)


def unseen_share(episodes: int) -> float:
    """The largest share of all episodes that something may happen in, and yet in none of so many, at 95 %."""
    return float(1.0 - (1.0 - CONFIDENCE) ** (1.0 / episodes))


def _lower_bound(differences: NDArray[np.float64]) -> float:
    """Of the mean, at 95 %."""
    n, mean, deviation, skewness = _moments(differences)
    if deviation == 0.0:
        return mean
    quantile = float(stats.t.ppf(CONFIDENCE, n - 1))
    corrected = quantile
    if abs(skewness) > 1e-9:
        root = float(np.cbrt(1.0 + skewness / math.sqrt(n) * (quantile - skewness / (6.0 * math.sqrt(n)))))
        corrected = 3.0 * math.sqrt(n) / skewness * (root - 1.0)
    return mean - max(quantile, corrected) * deviation / math.sqrt(n)


def _p(differences: NDArray[np.float64], margin: float) -> float:
    """Of the hypothesis that the mean is `-margin`, against a larger one."""
    n, mean, deviation, skewness = _moments(differences)
    if deviation == 0.0:
        return 0.0 if mean >= -margin else 1.0
    t = (mean + margin) / deviation * math.sqrt(n)
    a = skewness / math.sqrt(n)
    corrected = t + a * t**2 / 3.0 + a**2 * t**3 / 27.0 + a / 6.0
    return float(stats.t.sf(min(t, corrected), n - 1))


def _moments(values: NDArray[np.float64]) -> tuple[int, float, float, float]:
    """How many, mean, standard deviation and skewness; what differs by rounding alone has no spread."""
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return len(values), mean, 0.0, 0.0
    return len(values), mean, deviation, float(stats.skew(values))


def _needed(mean: float, deviation: float, margin: float) -> int | None:
    """After how many it passes in four cases of five, if mean and spread stay as they are; `None` if never."""
    room = mean + margin
    if room <= 0.0:
        return None
    z = float(stats.norm.ppf(CONFIDENCE) + stats.norm.ppf(POWER))
    return max(MIN_EPISODES, math.ceil((z * deviation / room) ** 2))

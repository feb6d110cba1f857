"""Is a canary worse than its baseline? Tests that stay valid however often one looks.

Six measures, each tested one-sided, for the canary being worse:

- errors (status 500 and above, or no answer): Fisher's exact test on requests; a server's faults are taken as
  independent from request to request;
- latency of what was answered: Mann-Whitney U test, and the canary's 95th percentile beyond 1.25 times the baseline's;
- refusals (status 400 to 499), interventions, fallbacks, out-of-distribution observations: what one episode meets, all
  its requests meet, so episodes (or vehicles) are compared, not requests. An episode counts where its rate lies above
  the upper quartile of all; Fisher's exact test on these counts is a quantile test (Mood's median test, for the
  quartile). Whether an episode drives with the canary was left to chance, so it is exact. Requests without an
  episode or vehicle stand for themselves.

The watch as a whole raises a false alarm with a probability of at most `alpha`: each measure has a sixth of it
(Bonferroni), and look k, k = 1, 2, ..., spends 1/(k(k+1)) of that, which adds up to 1. Looks come when the canary has
answered 50 requests, and half as many again each time. Spending a level over looks in fixed portions: Lan and DeMets,
Discrete sequential boundaries for clinical trials, Biometrika 70 (1983), 659-663; that portions which add up to alpha
suffice, whatever the dependence between looks, is Boole's inequality.

Beside the tests, a canary that fails ten times in a row is caught at once, unless the baseline fails too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import fisher_exact, mannwhitneyu

from carla_policy_tools.routing.traffic import Exchange

ALPHA = 0.01
FAILURES_IN_A_ROW = 10
FIRST_LOOK, LOOK_GROWTH = 50, 1.5
MIN_LATENCIES = 20
LATENCY_FACTOR, LATENCY_QUANTILE = 1.25, 0.95
UPPER_QUARTILE = 0.75
MAX_LATENCIES = 200_000
FALLBACK_KINDS = frozenset({"fallback", "circuit_open", "ood"})

RATES: dict[str, Callable[[Exchange], bool]] = {
    "refusals": lambda exchange: exchange.refused,
    "interventions": lambda exchange: bool(exchange.interventions),
    "fallbacks": lambda exchange: not FALLBACK_KINDS.isdisjoint(exchange.interventions),
    "out of distribution": lambda exchange: exchange.ood > 0,
}
MEASURES = ("errors", "latency", *RATES)


@dataclass(frozen=True)
class Finding:
    """The canary is worse than its baseline in one measure."""

    canary: str
    measure: str
    evidence: str
    """The numbers, in words."""
    p: float | None = None
    """Of the test, where it was one."""
    alpha: float | None = None
    """What this test was allowed."""

    def __str__(self) -> str:
        test = "" if self.p is None else f", p = {self.p:.2g}, spent alpha {self.alpha:.2g}"
        return f"{self.canary}: {self.measure} {self.evidence}{test}"


@dataclass
class Arm:
    """What one version's traffic has shown so far."""

    requests: int = 0
    errors: int = 0
    failures_in_a_row: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_LATENCIES))
    drivers: dict[str, list[int]] = field(default_factory=dict)
    """By episode, vehicle or lone request: how many requests, then how many of them for each of `RATES`."""

    def add(self, exchange: Exchange) -> None:
        self.requests += 1
        self.errors += exchange.failed
        self.failures_in_a_row = self.failures_in_a_row + 1 if exchange.failed else 0
        if 200 <= exchange.status < 300 and exchange.response_ms is not None:
            self.latencies_ms.append(exchange.response_ms)
        counts = self.drivers.setdefault(exchange.key or f"request:{self.requests}", [0] * (1 + len(RATES)))
        counts[0] += 1
        for place, met in enumerate(RATES.values(), start=1):
            counts[place] += met(exchange)


class Watch:
    """Compares one canary to its baseline while exchanges arrive; `alpha` is for this watch as a whole."""

    def __init__(
        self, baseline: str, canary: str, *, alpha: float = ALPHA, failures_in_a_row: int = FAILURES_IN_A_ROW
    ) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected a probability between 0 and 1, got {alpha}")
        self.arms = {baseline: Arm(), canary: Arm()}
        self.baseline, self.canary = baseline, canary
        self.looks = 0
        self._alpha = alpha
        self._failures_in_a_row = failures_in_a_row

    def add(self, exchange: Exchange) -> list[Finding]:
        """Take one exchange in, of whatever version; what it shows about the canary."""
        if exchange.version not in self.arms:
            return []
        self.arms[exchange.version].add(exchange)
        if exchange.version != self.canary:
            return []
        baseline, canary = self.arms[self.baseline], self.arms[self.canary]
        if canary.failures_in_a_row >= self._failures_in_a_row and not baseline.failures_in_a_row:
            return [Finding(self.canary, "errors", f"{canary.failures_in_a_row} in a row")]
        if canary.requests < self.next_look or not baseline.requests:
            return []
        self.looks += 1
        return self.look(self._alpha / len(MEASURES) / (self.looks * (self.looks + 1)))

    @property
    def next_look(self) -> int:
        """How many of the canary's requests the next look waits for."""
        return math.ceil(FIRST_LOOK * LOOK_GROWTH**self.looks)

    def look(self, alpha: float) -> list[Finding]:
        """Test every measure at level `alpha`."""
        baseline, canary = self.arms[self.baseline], self.arms[self.canary]
        findings = [_compare_errors(canary, baseline), _compare_latency(canary, baseline)]
        findings += [_compare_rate(name, place, canary, baseline) for place, name in enumerate(RATES, start=1)]
        return [
            Finding(self.canary, measure, evidence, p, alpha)
            for measure, evidence, p in filter(None, findings)
            if p <= alpha
        ]

    def summary(self) -> dict[str, dict[str, float | int | None]]:
        """By version: requests, and rates of what was counted."""
        return {version: _summary(arm) for version, arm in self.arms.items()}


_Test = tuple[str, str, float]


def _compare_errors(canary: Arm, baseline: Arm) -> _Test:
    evidence = f"{canary.errors:,}/{canary.requests:,} against {baseline.errors:,}/{baseline.requests:,}"
    return "errors", evidence, _fisher(canary.errors, canary.requests, baseline.errors, baseline.requests)


def _compare_latency(canary: Arm, baseline: Arm) -> _Test | None:
    if min(len(canary.latencies_ms), len(baseline.latencies_ms)) < MIN_LATENCIES:
        return None
    slow, usual = (float(np.quantile(arm.latencies_ms, LATENCY_QUANTILE)) for arm in (canary, baseline))
    if slow <= LATENCY_FACTOR * usual:
        return None
    p = mannwhitneyu(canary.latencies_ms, baseline.latencies_ms, alternative="greater", method="asymptotic").pvalue
    return "latency", f"P95 {slow:.2f} ms against {usual:.2f} ms", float(p)


def _compare_rate(measure: str, place: int, canary: Arm, baseline: Arm) -> _Test:
    rates = [[counts[place] / counts[0] for counts in arm.drivers.values()] for arm in (canary, baseline)]
    usual = float(np.quantile([*rates[0], *rates[1]], UPPER_QUARTILE, method="higher"))
    usual = usual if usual < 1.0 else math.nextafter(1.0, 0.0)
    above = [sum(rate > usual for rate in arm) for arm in rates]
    totals = [sum(counts[place] for counts in arm.drivers.values()) for arm in (canary, baseline)]
    evidence = (
        f"{totals[0]:,}/{canary.requests:,} against {totals[1]:,}/{baseline.requests:,} requests; above {usual:.1%} in "
        f"{above[0]:,}/{len(rates[0]):,} against {above[1]:,}/{len(rates[1]):,} episodes, vehicles or lone requests"
    )
    return measure, evidence, _fisher(above[0], len(rates[0]), above[1], len(rates[1]))


def _fisher(canary: int, of_canary: int, baseline: int, of_baseline: int) -> float:
    """Probability that at least so many of the canary's count, if both count equally often."""
    table = [[canary, of_canary - canary], [baseline, of_baseline - baseline]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def _summary(arm: Arm) -> dict[str, float | int | None]:
    p95 = float(np.quantile(arm.latencies_ms, LATENCY_QUANTILE)) if arm.latencies_ms else None
    totals = {name: sum(counts[place] for counts in arm.drivers.values()) for place, name in enumerate(RATES, start=1)}
    return {"requests": arm.requests, "errors": arm.errors, "latency_p95_ms": p95, **totals}

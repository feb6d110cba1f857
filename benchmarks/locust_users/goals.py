"""What a load test must reach, and whether it did: goals in the format of `benchmarks/slo.yaml`, Locust's figures.

A goal's `figure` is `p50_ms`, `p95_ms`, `p99_ms`, `p999_ms` or `per_second` `@locust`, `of` a class of users or one
name below it, such as `Evaluator` or `Evaluator npy`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.bench.figures import PERCENTILES, unit
from benchmarks.bench.histograms import Histogram
from benchmarks.bench.slo import Objective, load_objectives

SLO_FILE = Path(__file__).parents[1] / "slo-locust.yaml"
LOAD = "locust"
FIGURES = frozenset(f"{quantity}@{LOAD}" for quantity in (*PERCENTILES, "per_second"))
DIGITS = 3

Outcome = Literal["met", "missed", "not measured"]


@dataclass(frozen=True)
class Judged:
    """What became of a goal."""

    goal: Objective
    measured: float | None

    @property
    def outcome(self) -> Outcome:
        if self.measured is None:
            return "not measured"
        return "met" if self.goal.holds(self.measured) else "missed"

    @property
    def told(self) -> str:
        name = f"{self.goal.of}, {self.goal.name}"
        if self.measured is None:
            return f"{name}, expected {self.goal.limit}"
        return f"{name}: {self.measured:,.3g} {unit(self.goal.figure)}, expected {self.goal.limit} ({self.goal.source})"


def load_goals(path: Path) -> list[Objective]:
    """The goals in a file; `ValueError` names one that a load test cannot judge."""
    goals = load_objectives(path)
    for goal in goals:
        if goal.figure not in FIGURES:
            raise ValueError(f"{path.name}: {goal.figure}: a load test has {', '.join(sorted(FIGURES))}")
        if goal.against is not None:
            raise ValueError(f"{path.name}: {goal.figure}: against: a load test compares nobody")
    return goals


def judge(stats: Any, goals: list[Objective]) -> list[Judged]:
    """The goals held against Locust's statistics of a run."""
    return [Judged(goal, _measured(stats, goal)) for goal in goals]


def problems(stats: Any, errors: int, judged: list[Judged], max_failures: float) -> list[str]:
    """Why a run has failed; none where it reached everything. `errors` of its own count as well."""
    total = stats.total
    found = [one.told for one in judged if one.outcome == "missed"]
    if not total.num_requests:
        found.insert(0, "no request was answered")
    elif total.num_failures * 100 > max_failures * total.num_requests:
        share = 100 * total.num_failures / total.num_requests
        found.insert(0, f"{total.num_failures:,} requests failed, {share:.3g} %, expected ≤ {max_failures:g} %")
    if errors:
        found.insert(0, f"{errors} errors of the load test itself; its log has them")
    return found


def bucket(latency_ms: float) -> float:
    """Three digits of a latency; Locust's own buckets are of whole milliseconds below 100."""
    return float(f"{latency_ms:.{DIGITS}g}")


def _measured(stats: Any, goal: Objective) -> float | None:
    entries = [entry for (name, _), entry in stats.entries.items() if name == goal.of or name.startswith(f"{goal.of} ")]
    requests = sum(entry.num_requests for entry in entries)
    if not requests:
        return None
    quantity = goal.figure.partition("@")[0]
    if quantity == "per_second":
        seconds = (stats.total.last_request_timestamp or 0.0) - stats.total.start_time
        answered = requests - sum(entry.num_failures for entry in entries)
        return answered / seconds if seconds > 0 else None
    latencies: Counter[float] = Counter()
    for entry in entries:
        latencies.update(entry.response_times)
    counts = tuple(sorted((milliseconds * 1e3, count) for milliseconds, count in latencies.items()))
    return Histogram(counts=counts).percentile_ms(PERCENTILES[quantity])

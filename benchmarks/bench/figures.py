"""Named figures of a run, such as `p99_ms@closed-64`: a quantity, and the load that it was seen under.

| load | what it is |
| --- | --- |
| `closed-N` | N connections, each with one request at a time |
| `client` | one client, each latency taken by itself |
| `constant`, `share` | arrivals at a fixed rate: one for all, or a share of each one's own capacity |
| `start-N` | from the launch with N versions, and the first requests after it |
| `bulk-N` | one request of N rows |
| `run` | over everything |
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.bench.histograms import Histogram
from benchmarks.bench.results import FreshStart, Results, Slice
from benchmarks.bench.statistics import Estimate, median_interval, pooled_percentile, pooled_ratio, ratio_of_rounds

PERCENTILES = {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0, "p999_ms": 99.9}
POOLED = frozenset({"p95_ms", "p99_ms", "p999_ms"})
"""Percentiles that a single round has too few requests for."""
HIGHER_IS_BETTER = frozenset({"per_second", "rows_per_second"})
ROLES = {"cpu_us": None, "frontend_cpu_us": "frontend", "worker_cpu_us": "worker"}
UNITS = {"per_second": "req/s", "rows_per_second": "rows/s", "pss_mib": "MiB", "first_answer_s": "s", "ready_s": "s"}


def unit(figure: str) -> str:
    """Of a figure's values."""
    quantity = figure.partition("@")[0]
    return UNITS.get(quantity) or ("ms" if quantity.endswith("_ms") else "µs" if quantity.endswith("_us") else "")


def is_lower_better(figure: str) -> bool:
    return figure.partition("@")[0] not in HIGHER_IS_BETTER


def estimate(results: Results, figure: str, of: str, against: str | None = None) -> Estimate | None:
    """The figure of contender `of`, or its ratio to that of `against`; `None` where it was not measured.

    `ValueError` for a figure that there is not.
    """
    quantity, _, load = figure.partition("@")
    if quantity in POOLED:
        percent = PERCENTILES[quantity]
        one = _histograms(results, load, of)
        if against is None:
            return pooled_percentile(one, percent) if one else None
        other = _histograms(results, load, against)
        return pooled_ratio(one, other, percent) if one.keys() & other.keys() else None
    values = _values(results, quantity, load, of)
    if against is None:
        return median_interval(list(values.values())) if values else None
    others = _values(results, quantity, load, against)
    return ratio_of_rounds(values, others) if values.keys() & others.keys() else None


def _histograms(results: Results, load: str, name: str) -> Mapping[int, Histogram]:
    if load.startswith("start-"):
        return {start.repeat: start.latencies for start in results.starts if _is_start(start, load, name)}
    return {part.round: part.latencies for part in _slices(results, load, name)}


def _values(results: Results, quantity: str, load: str, name: str) -> Mapping[int, float]:
    if load == "run" and quantity == "pss_mib":
        memory = results.memory.get(name)
        return {0: sum(role.pss_mib for role in memory.values())} if memory else {}
    if load.startswith("bulk-") and quantity == "rows_per_second":
        own = [part for part in results.bulk if part.subject == name and f"bulk-{part.rows}" == load]
        return {part.round: part.rows / part.seconds for part in own}
    if load.startswith("start-") and quantity in ("first_answer_s", "ready_s"):
        return {start.repeat: getattr(start, quantity) for start in results.starts if _is_start(start, load, name)}
    parts = _slices(results, load, name)
    if quantity in PERCENTILES:
        return {part.round: part.latencies.percentile_ms(PERCENTILES[quantity]) for part in parts}
    if quantity == "per_second":
        return {part.round: part.per_second for part in parts}
    if quantity in ROLES:
        return {part.round: part.cpu_us(ROLES[quantity]) for part in parts}
    raise ValueError(f"{quantity}@{load}: there is no such figure")


def _slices(results: Results, load: str, name: str) -> list[Slice]:
    """Slices with an answer that was not right are no figures."""
    kind, _, connections = load.partition("-")
    return [
        part
        for part in results.slices
        if part.valid
        and part.contender == name
        and part.load == kind
        and (not connections or part.connections == int(connections))
    ]


def _is_start(start: FreshStart, load: str, name: str) -> bool:
    return start.contender == name and load == f"start-{start.versions}"

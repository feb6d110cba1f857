"""Results as one HTML page that needs nothing else: plots, ratios, goals, and how it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from benchmarks.bench.comparison import FIGURES, REFERENCES, THRESHOLD_PERCENT, Change
from benchmarks.bench.correctness import TOLERANCE
from benchmarks.bench.figures import estimate, unit
from benchmarks.bench.plots import plots
from benchmarks.bench.results import Results
from benchmarks.bench.slo import Verdict
from benchmarks.bench.statistics import CONFIDENCE, Estimate
from benchmarks.contenders.workload import ROWS

TEMPLATE = Path(__file__).with_name("report.html.jinja")
COLUMNS = (
    *("p50_ms@closed-1", "p95_ms@closed-1", "p99_ms@closed-1", "p999_ms@closed-1", "p50_ms@client", "p99_ms@client"),
    *("per_second@closed-1", "per_second@closed-16", "per_second@closed-64", "p99_ms@closed-64"),
    *("p50_ms@constant", "p99_ms@constant", "p50_ms@share", "p99_ms@share", "cpu_us@closed-64", "pss_mib@run"),
)


@dataclass(frozen=True)
class Ratio:
    """A figure of ours and its ratio to another contender's."""

    figure: str
    unit: str
    of: str
    against: str
    ratio: Estimate
    own: Estimate


def render(
    results: Results,
    verdicts: Sequence[Verdict],
    changes: Sequence[Change] = (),
    threshold: float = THRESHOLD_PERCENT,
) -> str:
    """The page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    names = [one.name for one in results.participants if one.refused is None]
    rows = {name: [estimate(results, figure, name) for figure in COLUMNS] for name in names}
    shown = [index for index in range(len(COLUMNS)) if any(row[index] for row in rows.values())]
    return environment.from_string(TEMPLATE.read_text()).render(
        results=results,
        verdicts=verdicts,
        changes=changes,
        threshold=threshold,
        ratios=list_ratios(results),
        contenders={name: [row[index] for index in shown] for name, row in rows.items()} if shown else {},
        bulk=_bulk(results),
        columns=[COLUMNS[index] for index in shown],
        plots=plots(results),
        rows=ROWS,
        tolerance=f"{TOLERANCE:g}",
        total=sum(part.requests for part in results.slices) + sum(len(start.latencies) for start in results.starts),
        number=number,
        interval=interval,
    )


def _bulk(results: Results) -> list[tuple[str, int, Estimate, float | None]]:
    """Who, how many rows, rows a second, and the largest resident set of a worker meanwhile."""
    found = []
    for subject, rows in dict.fromkeys((part.subject, part.rows) for part in results.bulk):
        speed = estimate(results, f"rows_per_second@bulk-{rows}", subject)
        peaks = [
            part.peak_mib for part in results.bulk if (part.subject, part.rows) == (subject, rows) and part.peak_mib
        ]
        if speed is not None:
            found.append((subject, rows, speed, max(peaks, default=None)))
    return found


def list_ratios(results: Results) -> list[Ratio]:
    """Every figure of ours that was measured, against every contender that it is compared with."""
    found = []
    for figure in FIGURES:
        for of, references in REFERENCES.items():
            for against in references:
                ratio, own = estimate(results, figure, of, against), estimate(results, figure, of)
                if ratio is not None and own is not None:
                    found.append(Ratio(figure, unit(figure), of, against, ratio, own))
    return found


def number(value: float) -> str:
    """Three digits, thousands grouped."""
    if not math.isfinite(value):
        return "none"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interval(found: Estimate) -> str:
    """Both ends, and the confidence where it is less than usual."""
    less = f" ({found.confidence:.0%})" if found.confidence < CONFIDENCE else ""
    return f"{number(found.low)} to {number(found.high)}{less}" if found.rounds > 1 else "one round"

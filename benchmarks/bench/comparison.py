"""This run against an earlier one: which figures of ours have become worse.

Compared are ratios to the other contenders of the same run, which another machine's load or speed changes far less
than the figures themselves; those are compared only when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from benchmarks.bench.figures import estimate, is_lower_better
from benchmarks.bench.results import Results
from benchmarks.bench.statistics import Estimate

THRESHOLD_PERCENT = 10.0
REFERENCES = {
    "ours-realtime": ("noop-realtime", "fastapi-2", "handwritten"),
    "ours-throughput": ("noop-throughput", "fastapi-2", "handwritten"),
    "ours-json": ("bare",),
    "ours-npy": ("bare",),
}
FIGURES = (
    *("p50_ms@closed-1", "p99_ms@closed-1", "p50_ms@client", "per_second@closed-16", "per_second@closed-64"),
    *("p99_ms@closed-64", "cpu_us@closed-64", "p99_ms@constant", "p99_ms@start-1", "first_answer_s@start-2"),
    *("rows_per_second@bulk-1024", "pss_mib@run"),
)


class Change(BaseModel):
    """A figure, or a ratio to `against`, in both runs; `percent` is positive where it has become worse."""

    figure: str
    of: str
    against: str | None
    before: Estimate
    now: Estimate
    percent: float
    certain: bool
    """The intervals of the two runs do not overlap."""

    def is_worse(self, threshold: float) -> bool:
        """By more than `threshold` percent, and not within what rounds differ by anyway."""
        return self.percent > threshold and self.certain


def compare(before: Results, now: Results, *, absolute: bool = False) -> list[Change]:
    """All figures that both runs have."""
    return list(_changes(before, now, absolute))


def _changes(before: Results, now: Results, absolute: bool) -> Iterator[Change]:
    for of, references in REFERENCES.items():
        for figure in FIGURES:
            for against in (None,) if absolute else references:
                old, new = (estimate(results, figure, of, against) for results in (before, now))
                if old is not None and new is not None and old.value and new.value:
                    yield _change(figure, of, against, old, new)


def _change(figure: str, of: str, against: str | None, old: Estimate, new: Estimate) -> Change:
    worse = new.value / old.value if is_lower_better(figure) else old.value / new.value
    return Change(
        figure=figure,
        of=of,
        against=against,
        before=old,
        now=new,
        percent=100 * (worse - 1),
        certain=new.low > old.high or new.high < old.low,
    )

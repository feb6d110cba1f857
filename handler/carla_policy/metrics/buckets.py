"""Values sorted into buckets and bins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.actions import CONTROLS

SECONDS = (
    1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
)  # fmt: skip
"""Upper bounds for a request, in seconds; fine where a policy of two small layers takes its time."""
STAGE_SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 0.01, 0.1, 1.0)
REQUESTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

CONTROL_EDGES = {
    name: np.linspace(low, 1.0, round((1.0 - low) * 10) + 1, dtype=np.float64)[1:]
    for name, low in zip(CONTROLS, (0.0, 0.0, -1.0), strict=True)
}
"""Upper edges of each control's bins, a tenth wide; a bin has its upper edge, the first also the lowest value."""


def bucket_labels(bounds: Sequence[float]) -> list[str]:
    """Values of `le` for buckets up to each of `bounds`, and the one for all."""
    return [*(f"{bound:g}" for bound in bounds), "+Inf"]


class Histogram:
    """Weights of values by bucket, and the sum of the values."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._labels = bucket_labels(bounds)
        self._bounds = np.array(bounds)
        self._weights = np.zeros(len(bounds) + 1)
        self._sum = 0.0

    def add(self, values: NDArray[np.float64], weights: NDArray[Any]) -> None:
        """Count each of `values` `[n]` as many times as `weights` `[n]` says."""
        places = np.searchsorted(self._bounds, values, side="left")
        self._weights += np.bincount(places, weights, len(self._weights))
        self._sum += float(values @ weights)

    def take(self) -> Iterator[tuple[str, str, float]]:
        """`("bucket", le, weight up to le)` for each bound, the sum and the count; then it is empty."""
        for label, weight in zip(self._labels, self._weights.cumsum(), strict=True):
            yield "bucket", label, float(weight)
        yield "sum", "", self._sum
        yield "count", "", float(self._weights.sum())
        self._weights[:] = self._sum = 0.0


@cache
def bin_labels(control: str) -> list[str]:
    """Names of the bins of `control`, their upper edges."""
    return [f"{round(edge, 1) + 0.0:g}" for edge in CONTROL_EDGES[control]]


def bin_counts(control: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """How many of `values` `[n]` lie in each bin of `control`."""
    edges = CONTROL_EDGES[control]
    # A control is float32, and 0.1 as one is a little above 0.1: it belongs to the bin that is named after it.
    places = np.searchsorted(edges[:-1], values.astype(np.float64) - 1e-6, side="left")
    return np.bincount(places, minlength=len(edges))

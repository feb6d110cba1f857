"""Learn what training observations look like, and measure how often held-out ones are taken for something else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from carla_policy.golden import FloatArray
from carla_policy.ood import NoveltyDetector, widened

RANGE_MARGIN = 0.1
THRESHOLD_QUANTILE = 0.999
HELD_OUT_SHARE = 0.2
SMALLEST_VARIANCE = 1e-8
"""Of a direction in which training features do not vary, relative to the largest."""


@dataclass(frozen=True)
class FittedNovelty:
    """The detector, the ranges `[columns, 2]` that it knows, and how often one without the held-out rows was wrong."""

    detector: NoveltyDetector
    seen: NDArray[np.float32]
    false_positive_rate: float
    held_out_rows: int


def hold_out(episode: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows are held out: whole episodes where there are several, else every fifth stretch of rows."""
    rng = np.random.default_rng(2026)
    numbers = np.unique(episode)
    groups = episode if len(numbers) >= 5 else np.arange(len(episode)) // max(1, len(episode) // 50)
    numbers = np.unique(groups)
    chosen = rng.choice(numbers, max(1, round(len(numbers) * HELD_OUT_SHARE)), replace=False)
    return np.isin(groups, chosen)


def fit(observations: FloatArray, features: FloatArray, held_out: NDArray[np.bool_]) -> FittedNovelty:
    """Learn from all rows, `[rows, columns]` and `[rows, features]`, and tell how well that works.

    The rate is that of a detector which has not seen the `held_out` rows `[rows]`; the one that is used has.
    """
    before, _ = _learn(observations[~held_out], features[~held_out])
    verdict = before(observations[held_out], features[held_out])
    detector, seen = _learn(observations, features)
    return FittedNovelty(detector, seen, float(verdict.is_ood.mean()), int(held_out.sum()))


def _learn(observations: FloatArray, features: FloatArray) -> tuple[NoveltyDetector, NDArray[np.float32]]:
    """A detector of what is unlike these rows, and their ranges `[columns, 2]`.

    The covariance is shrunk by Ledoit and Wolf's rule ("A well-conditioned estimator for large-dimensional covariance
    matrices", 2004), so that many features and few rows do no harm.
    """
    training = features.astype(np.float64)
    mean, deviation = training.mean(axis=0), training.std(axis=0)
    scale = np.where(deviation > 0.0, deviation, 1.0)
    covariance = LedoitWolf(assume_centered=True).fit((training - mean) / scale).covariance_
    variances, directions = np.linalg.eigh(covariance)
    variances = np.maximum(variances, variances.max() * SMALLEST_VARIANCE)
    whitening = np.ascontiguousarray((directions / np.sqrt(variances)).T / scale)
    seen = np.stack([observations.min(axis=0), observations.max(axis=0)], axis=1)
    low, high = widened(seen, RANGE_MARGIN)
    distances = NoveltyDetector(low, high, mean, whitening, np.inf).distance(features)
    threshold = float(max(np.quantile(distances, THRESHOLD_QUANTILE), 1e-6))
    return NoveltyDetector(low, high, mean, whitening, threshold), seen

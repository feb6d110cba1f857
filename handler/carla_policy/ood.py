"""Is an observation like those that the policy was trained on?

Two looks at it: each column against the range that training saw (the card's `seen`), which tells *what* is unusual,
and the Mahalanobis distance of its features from the training features, which finds combinations that never occurred
together although each value did. The mean and whitening matrix of the features travel in `ood.npz`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.arrays import first_not_finite, load_arrays
from carla_policy.card import ModelCard
from carla_policy.errors import ArtifactError
from carla_policy.golden import FloatArray
from carla_policy.specs import OodSpec


@dataclass(frozen=True)
class Novelty:
    """For each row: which columns are outside `[rows, columns]`, the distance `[rows]`, and the verdict `[rows]`."""

    outside: NDArray[np.bool_]
    distance: NDArray[np.float64]
    is_ood: NDArray[np.bool_]

    def rows(self, rows: slice | NDArray[np.bool_]) -> Novelty:
        return Novelty(self.outside[rows], self.distance[rows], self.is_ood[rows])


@dataclass(frozen=True)
class NoveltyDetector:
    """Ranges `[columns]` float32, `mean` `[features]`, `whitening` `[components, features]` float64."""

    low: FloatArray
    high: FloatArray
    mean: NDArray[np.float64]
    whitening: NDArray[np.float64]
    threshold: float

    def __call__(self, observations: FloatArray, features: FloatArray) -> Novelty:
        """The verdict on each row by itself; features that are not finite are infinitely far away."""
        outside = (observations < self.low) | (observations > self.high)
        distance = self.distance(features)
        return Novelty(outside, distance, outside.any(axis=1) | ~(distance <= self.threshold))

    def distance(self, features: FloatArray) -> NDArray[np.float64]:
        """`|whitening @ (features - mean)|` of each row, `[rows]`.

        Summed by `einsum`, in an order that does not depend on the number of rows as a matrix product's may.
        """
        centred = np.ascontiguousarray(features, np.float64) - self.mean
        with np.errstate(over="ignore", invalid="ignore"):
            white = np.einsum("rf,cf->rc", centred, self.whitening)
            distance: NDArray[np.float64] = np.sqrt(np.einsum("rc,rc->r", white, white))
        distance[~np.isfinite(distance)] = np.inf
        return distance


def load_detector(path: Path, spec: OodSpec, card: ModelCard, features: int) -> NoveltyDetector:
    """Read `ood.npz`; `ArtifactError` names the array, what was expected and what came."""
    arrays = load_arrays(path)
    if arrays.keys() != {"mean", "whitening"}:
        raise ArtifactError(f"{path.name}: expected the arrays mean and whitening, got {sorted(arrays)}")
    rank = len(arrays["whitening"]) if arrays["whitening"].ndim else 0
    for key, shape in {"mean": (features,), "whitening": (rank, features)}.items():
        array = arrays[key]
        if array.dtype != np.float64 or array.shape != shape or 0 in shape:
            raise ArtifactError(f"{path.name}: {key}: expected float64 {shape}, got {array.dtype} {array.shape}")
        if found := first_not_finite(array):
            raise ArtifactError(f"{path.name}: {key}: expected finite numbers, but {found}")
    low, high = widened(np.array([field.seen for field in card.observation.fields]), spec.range_margin)
    return NoveltyDetector(low, high, arrays["mean"], arrays["whitening"], spec.threshold)


def widened(seen: NDArray[Any], margin: float) -> tuple[FloatArray, FloatArray]:
    """The ranges `seen` `[columns, 2]` in training, widened at both ends by a share of their width."""
    exact = seen.astype(np.float64)
    width = (exact[:, 1] - exact[:, 0]) * margin
    return (exact[:, 0] - width).astype(np.float32), (exact[:, 1] + width).astype(np.float32)

"""`ObservationNormalizer`: the running normalisation of training environments, frozen.

Training frameworks normalise observations with statistics that they collect on the way, and not with
scikit-learn's formula: stable-baselines3's `VecNormalize` and Gymnasium's `NormalizeObservation` compute
`(observation - mean) / sqrt(variance + epsilon)`, clipped; RLlib's `MeanStdFilter` divides by
`standard deviation + epsilon`. Computed in float64 as there, and rounded to float32 at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self


@dataclass(frozen=True)
class ObservationNormalizer:
    """A transformer like scikit-learn's: `mean` and `scale` `[columns]` float64, `clip` the largest magnitude."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    clip: float | None

    @classmethod
    def of_variance(cls, mean: Any, variance: Any, *, epsilon: float, clip: float | None) -> Self:
        """The formula of `VecNormalize` and `NormalizeObservation`."""
        return cls(np.asarray(mean, np.float64), np.sqrt(np.asarray(variance, np.float64) + epsilon), clip)

    def transform(self, observations: NDArray[Any]) -> NDArray[np.float64]:
        """Normalised `observations` `[rows, columns]`, in float64."""
        values: NDArray[np.float64] = (observations - self.mean) / self.scale
        return values if self.clip is None else np.clip(values, -self.clip, self.clip)

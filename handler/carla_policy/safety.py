"""The last step before an action leaves: what is not fit to drive is replaced, and reported as an intervention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carla_policy.actions import CONTROLS
from carla_policy.card import SafetySpec
from carla_policy.golden import FloatArray


@dataclass(frozen=True)
class Intervention:
    """What was changed, at which observation of the request, and why."""

    observation: int
    kind: str


@dataclass(frozen=True)
class SafetyEnvelope:
    fallback: NDArray[np.float32]

    @classmethod
    def of(cls, spec: SafetySpec) -> SafetyEnvelope:
        return cls(np.array([getattr(spec.fallback, name) for name in CONTROLS], np.float32))

    def apply(self, controls: FloatArray) -> tuple[FloatArray, tuple[Intervention, ...]]:
        """`controls` `[rows, 3]` with the card's fallback action in each row that is not finite."""
        usable = np.atleast_1d(np.isfinite(controls).all(axis=1))
        if usable.all():
            return controls, ()
        safe = np.where(usable[:, None], controls, self.fallback)
        return safe, tuple(Intervention(int(row), "fallback") for row in np.flatnonzero(~usable))

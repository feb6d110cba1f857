"""From the policy's action to CARLA's throttle, brake and steer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carla_policy.card import ActionSpec
from carla_policy.golden import FloatArray

CONTROLS = ("throttle", "brake", "steer")


@dataclass(frozen=True)
class ActionLayout:
    """The action's dimensions by name, and the bounds that training clipped it to, `[dims]` float32."""

    names: tuple[str, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def of(cls, spec: ActionSpec) -> ActionLayout:
        return cls(spec.layout, np.array(spec.low, np.float32), np.array(spec.high, np.float32))

    @property
    def dims(self) -> int:
        return len(self.names)

    def clip(self, actions: FloatArray) -> FloatArray:
        """`actions` `[rows, dims]` within the bounds, as stable-baselines3's `predict` clips a Gaussian's.

        What is not finite becomes NaN: clipped, an infinite action would leave as full throttle.
        """
        clipped = np.clip(actions, self.low, self.high)
        clipped[~np.isfinite(actions)] = np.nan
        return clipped

    def to_controls(self, actions: FloatArray) -> FloatArray:
        """Throttle, brake, steer `[rows, 3]` of clipped `actions` `[rows, dims]`; acceleration below zero is brake."""
        columns = dict(zip(self.names, actions.T, strict=True))
        if "acceleration" in columns:
            columns["throttle"] = np.maximum(columns["acceleration"], np.float32(0.0))
            columns["brake"] = np.maximum(-columns["acceleration"], np.float32(0.0))
        return np.stack([columns[name] for name in CONTROLS], axis=1)

"""Between a Gymnasium environment and what a policy is asked and answers: observation rows and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carla_policy.actions import CONTROLS, ActionLayout, ContinuousLayout, TableLayout, make_layout
from carla_policy.card import ModelCard
from carla_policy.golden import FloatArray


@dataclass(frozen=True)
class ObservationRow:
    """Places an environment's observation, which is the policy's own, into the row that a request carries."""

    columns: int
    selection: tuple[int, ...] | None
    """Where each of the policy's columns is in a request; `None` if they come in its own order."""

    @classmethod
    def of(cls, card: ModelCard) -> ObservationRow:
        return cls(card.observation.columns, card.preprocessor.columns)

    @property
    def observed(self) -> int:
        """How many numbers the environment observes."""
        return self.columns if self.selection is None else len(self.selection)

    def of_observation(self, observation: NDArray[np.generic]) -> FloatArray:
        """The row `[columns]`, float32: speed, steering, sensors; what the policy does not see is 0."""
        seen = observation.reshape(-1).astype(np.float32)
        if self.selection is None:
            return seen
        row = np.zeros(self.columns, np.float32)
        row[list(self.selection)] = seen
        return row


class ControlledAction:
    """Turns throttle, brake and steer into the action that an environment takes.

    `layout` are the action's dimensions by name, such as `("steer", "throttle", "brake")`, if the environment's are not
    those that the version's card declares.
    """

    def __init__(self, card: ModelCard, layout: Sequence[str] | None = None) -> None:
        declared: ActionLayout = make_layout(card.action, None)
        self._table = declared.table if isinstance(declared, TableLayout) and layout is None else None
        if isinstance(declared, ContinuousLayout) and layout is None:
            scales = dict(zip(declared.names, map(float, declared.full_scale), strict=True))
            self._names, self._scales, self._full_brake = declared.names, scales, float(declared.full_brake)
        else:
            self._names, self._scales, self._full_brake = tuple(layout or ()), {}, 1.0
        unknown = set(self._names) - {*CONTROLS, "acceleration"}
        if unknown:
            raise ValueError(f"action layout: expected throttle, brake, steer or acceleration, got {min(unknown)}")

    @property
    def dims(self) -> int:
        return 1 if self._table is not None else len(self._names)

    @property
    def choices(self) -> int:
        """Rows of the action table; 0 where actions are continuous."""
        return 0 if self._table is None else len(self._table)

    def native(self, controls: FloatArray) -> NDArray[np.float64]:
        """The action `[dims]` of `controls` `[3]`; with a table the number of the row that is nearest to them."""
        if self._table is not None:
            return np.array([np.abs(self._table - controls).max(axis=1).argmin()], np.float64)
        throttle, brake, steer = (float(value) for value in controls)
        scale = self._scales.get("acceleration", 1.0)
        values = {
            "throttle": throttle * self._scales.get("throttle", 1.0),
            "brake": brake * self._scales.get("brake", 1.0),
            "steer": steer * self._scales.get("steer", 1.0),
            "acceleration": throttle * scale - brake * self._full_brake,
        }
        return np.array([values[name] for name in self._names])

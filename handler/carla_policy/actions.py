"""From the head's output to the policy's action, as in training, and on to CARLA's throttle, brake and steer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from carla_policy.arrays import every
from carla_policy.golden import FloatArray
from carla_policy.specs import ContinuousActionSpec, TableActionSpec

CONTROLS = ("throttle", "brake", "steer")


class ActionLayout(Protocol):
    """What a policy's action `[rows, dims]` means."""

    @property
    def names(self) -> tuple[str, ...]:
        """One for each dimension."""

    @property
    def parameter_width(self) -> int:
        """Columns of each of the head's parameters."""

    def bound(self, native: FloatArray) -> FloatArray:
        """The policy's action, `[rows, dims]`, of what the head yields; NaN where that is not finite."""

    def to_controls(self, actions: FloatArray) -> FloatArray:
        """Throttle, brake, steer `[rows, 3]` of `actions` `[rows, dims]`; what exceeds CARLA's range still does."""


@dataclass(frozen=True)
class ContinuousLayout:
    """The action's dimensions by name and the bounds of the action space, `[dims]` float32.

    `unscale` is the range that the head's output comes in, where training maps it to the bounds linearly.
    """

    names: tuple[str, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    full_scale: NDArray[np.float32]
    full_brake: np.float32
    unscale: tuple[float, float] | None

    @property
    def parameter_width(self) -> int:
        return len(self.names)

    def bound(self, native: FloatArray) -> FloatArray:
        """Within the bounds, as stable-baselines3's `predict` does it: clipped, or `low + share * (high - low)`.

        What is not finite becomes NaN: clipped, an infinite action would leave as full throttle.
        """
        if self.unscale is None:
            values = native
        else:
            start, end = self.unscale
            with np.errstate(over="ignore", invalid="ignore"):
                share = (native - np.float32(start)) * np.float32(1.0 / (end - start))
                values = self.low + share * (self.high - self.low)
        bounded: FloatArray = values.clip(self.low, self.high)
        finite = np.isfinite(native)
        return bounded if every(finite) else np.where(finite, bounded, np.float32(np.nan))

    def to_controls(self, actions: FloatArray) -> FloatArray:
        """Each dimension over its full scale; acceleration below zero is brake; what is not named is 0."""
        columns, scales, lowest, absent = self._controls
        controls: FloatArray = np.maximum(actions.take(columns, axis=1) / scales, lowest)
        if absent:
            controls[:, absent] = 0.0
        return controls

    @cached_property
    def _controls(self) -> tuple[list[int], NDArray[np.float32], NDArray[np.float32], list[int]]:
        """Each control's dimension, full scale (negative where it is brake by acceleration) and least; who has none."""
        dimensions = {name: (column, self.full_scale[column], -np.inf) for column, name in enumerate(self.names)}
        if "acceleration" in dimensions:
            column, forward, _ = dimensions["acceleration"]
            dimensions |= {"throttle": (column, forward, 0.0), "brake": (column, -self.full_brake, 0.0)}
        columns, scales, lowest = zip(*(dimensions.get(name, (0, 1.0, 0.0)) for name in CONTROLS), strict=True)
        absent = [index for index, name in enumerate(CONTROLS) if name not in dimensions]
        return list(columns), np.array(scales, np.float32), np.array(lowest, np.float32), absent


@dataclass(frozen=True)
class TableLayout:
    """The action is a row number of `table` `[choices, 3]`."""

    table: FloatArray
    names: tuple[str, ...] = ("choice",)

    @property
    def parameter_width(self) -> int:
        return len(self.table)

    def bound(self, native: FloatArray) -> FloatArray:
        return native

    def to_controls(self, actions: FloatArray) -> FloatArray:
        usable = np.isfinite(actions[:, 0])
        controls: FloatArray = self.table[np.where(usable, actions[:, 0], 0).astype(np.int64)]
        controls[~usable] = np.nan
        return controls


def make_layout(
    spec: ContinuousActionSpec | TableActionSpec, native_range: tuple[float, float] | None
) -> ContinuousLayout | TableLayout:
    """The layout that a card declares, for a head whose own output lies within `native_range`."""
    if isinstance(spec, TableActionSpec):
        return TableLayout(np.array([[getattr(row, name) for name in CONTROLS] for row in spec.table], np.float32))
    full_scale = spec.full_scale or (1.0,) * len(spec.layout)
    forward = dict(zip(spec.layout, full_scale, strict=True)).get("acceleration", 1.0)
    return ContinuousLayout(
        names=spec.layout,
        low=np.array(spec.low, np.float32),
        high=np.array(spec.high, np.float32),
        full_scale=np.array(full_scale, np.float32),
        full_brake=np.float32(spec.full_brake or forward),
        unscale=native_range if spec.bounding == "unscale" else None,
    )

"""The safety envelope: the last step before an action leaves. Whatever it changes is reported as an intervention.

For any input, controls that leave are finite, within CARLA's range, and within the rates that the card declares
around what the observation says the vehicle does now. The steps, each seeing what the one before left:

| kind | what happens |
| --- | --- |
| `fallback` | the policy's action is not usable: the card's fallback action takes its place |
| `ood` | the observation is out of distribution and the card wants the fallback action then |
| `deadline` | the network did not answer in time: the fallback action |
| `circuit_open` | this worker's circuit breaker is open: the fallback action, without asking the network |
| `bounds` | a control beyond CARLA's range is cut to it |
| `speed_cap` | at the card's speed and above no throttle leaves, further above also a brake |
| `pedals` | throttle and brake were both asked for: the brake stays |
| `throttle_rate` | the throttle rises less than asked for |
| `steer_limit` | the steer is cut to what the card allows at this speed |
| `steer_rate` | the steer stays within reach of the wheels' present position |

A rate outranks a limit: from beyond the limit the steer returns as fast as the rate lets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from carla_policy.actions import CONTROLS
from carla_policy.arrays import every, some
from carla_policy.golden import FloatArray
from carla_policy.specs import SafetySpec, SpeedCap, SteerLimit, SteerRate, ThrottleRate

LOWEST, HIGHEST = np.array([0.0, 0.0, -1.0], np.float32), np.ones(3, np.float32)
ZERO = np.float32(0.0)
Mask = NDArray[np.bool_]
KINDS = (
    "fallback",
    "ood",
    "deadline",
    "circuit_open",
    "bounds",
    "speed_cap",
    "pedals",
    "throttle_rate",
    "steer_limit",
    "steer_rate",
)
"""Of interventions, in the order of the steps."""


@dataclass(frozen=True)
class Intervention:
    """What was changed, at which observation of the request, and why."""

    observation: int
    kind: str


@dataclass(frozen=True)
class Rate:
    """At most `change` away from column `column` of the observation, which is `full_scale` at full control."""

    column: int
    full_scale: np.float32
    change: np.float32

    def present(self, observations: FloatArray, lowest: float) -> FloatArray:
        """The control's present value `[rows]`, within CARLA's range."""
        with np.errstate(over="ignore"):
            share: FloatArray = observations[:, self.column] / self.full_scale
        return np.clip(share, np.float32(lowest), np.float32(1.0))


@dataclass(frozen=True)
class SafetyEnvelope:
    fallback: NDArray[np.float32]
    exclusive_pedals: bool
    throttle_rate: Rate | None
    steer_rate: Rate | None
    steer_limit: SteerLimit | None
    speed_cap: SpeedCap | None

    @classmethod
    def of(cls, spec: SafetySpec, columns: tuple[str, ...]) -> SafetyEnvelope:
        """The envelope that a card declares over an observation of these `columns`."""
        throttle, steer = spec.throttle_rate, spec.steer_rate
        return cls(
            fallback=np.array([getattr(spec.fallback, name) for name in CONTROLS], np.float32),
            exclusive_pedals=spec.exclusive_pedals,
            throttle_rate=_rate(columns, throttle, throttle.max_rise) if throttle else None,
            steer_rate=_rate(columns, steer, steer.max_change) if steer else None,
            steer_limit=spec.steer_limit,
            speed_cap=spec.speed_cap,
        )

    @cached_property
    def _heeds_situation(self) -> bool:
        """Whether what leaves depends on the observation, not on the controls alone."""
        return any((self.throttle_rate, self.steer_rate, self.steer_limit, self.speed_cap))

    def apply(
        self, controls: FloatArray, observations: FloatArray, forced: dict[str, Mask] | None = None
    ) -> tuple[FloatArray, tuple[Intervention, ...]]:
        """`controls` `[rows, 3]` fit to drive in the situation of `observations` `[rows, columns]`.

        `forced` holds rows `[rows]` that get the fallback action for another reason, by the kind to report.
        """
        within = controls.clip(LOWEST, HIGHEST)
        if not forced and not self._heeds_situation and every(within == controls):
            both = self.exclusive_pedals and some(np.logical_and(within[:, 0], within[:, 1]))  # none is below 0
            if not both:
                return within, ()  # as nearly always: nothing to change
        usable = np.asarray(np.isfinite(controls).all(axis=1))
        others = dict(forced or {})
        changes: dict[str, Mask] = {"fallback": ~usable | others.pop("fallback", False), **others}
        replaced = np.logical_or.reduce(list(changes.values()))
        safe = np.where(replaced[:, None], self.fallback, controls)

        within = safe.clip(LOWEST, HIGHEST)
        changes["bounds"] = (within != safe).any(axis=1)
        throttle, brake, steer = within.T
        speed = np.abs(observations[:, 0])
        if self.speed_cap:
            capped = throttle, brake
            throttle, brake = _cap(self.speed_cap, speed, throttle, brake)
            changes["speed_cap"] = (throttle != capped[0]) | (brake != capped[1])
        if self.exclusive_pedals:
            changes["pedals"] = (throttle > ZERO) & (brake > ZERO)
            throttle = np.where(changes["pedals"], ZERO, throttle)
        if self.throttle_rate:
            reach = self.throttle_rate.present(observations, 0.0) + self.throttle_rate.change
            changes["throttle_rate"] = throttle > reach
            throttle = np.minimum(throttle, reach)
        if self.steer_limit:
            limit = np.interp(speed, self.steer_limit.speeds, self.steer_limit.limits).astype(np.float32)
            changes["steer_limit"] = np.abs(steer) > limit
            steer = np.clip(steer, -limit, limit)
        if self.steer_rate:
            present = self.steer_rate.present(observations, -1.0)
            reached = np.clip(steer, present - self.steer_rate.change, present + self.steer_rate.change)
            changes["steer_rate"] = reached != steer
            steer = reached
        return np.stack([throttle, brake, steer], axis=1), _notes(changes)


def _rate(columns: tuple[str, ...], spec: SteerRate | ThrottleRate, change: float) -> Rate:
    return Rate(columns.index(spec.observed), np.float32(spec.full_scale), np.float32(change))


def _cap(cap: SpeedCap, speed: FloatArray, throttle: FloatArray, brake: FloatArray) -> tuple[FloatArray, FloatArray]:
    above, far_above = speed >= np.float32(cap.limit), speed >= np.float32(cap.limit + cap.margin)
    return (
        np.where(above, ZERO, throttle),
        np.where(far_above, np.maximum(brake, np.float32(cap.brake)), brake),
    )


def _notes(changes: dict[str, Mask]) -> tuple[Intervention, ...]:
    """In the order of the observations, and for each in the order of the steps."""
    if not any(mask.any() for mask in changes.values()):
        return ()
    kinds = list(changes)
    rows, steps = np.nonzero(np.stack([changes[kind] for kind in kinds], axis=1))
    return tuple(Intervention(int(row), kinds[step]) for row, step in zip(rows, steps, strict=True))

"""What a vehicle does next: controls that are always finite and in range, and where they came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

POLICY, FALLBACK, OVERRIDE = SOURCES = ("policy", "fallback", "override")
CONTROLS = (("throttle", 0.0, 1.0), ("brake", 0.0, 1.0), ("steer", -1.0, 1.0))
"""Name, lowest and highest value of each control, as in CARLA's `VehicleControl`; steer is positive to the right."""


@dataclass(frozen=True)
class Action:
    """One action; `ValueError` or `TypeError` for controls that are no finite numbers in range."""

    throttle: float = 0.0
    brake: float = 0.0
    steer: float = 0.0
    source: str = FALLBACK
    """`policy`: the server's answer; `fallback`: the client's own, see `reason`; `override`: a human's."""
    reason: str = ""
    """Why it is a fallback: one of `misses.REASONS`."""
    message: str = ""
    """The reason in words, with what the server said."""
    version: str = ""
    """Which version of the policy answered."""
    latency_s: float = 0.0
    """Seconds that `act` took."""
    interventions: tuple[str, ...] = ()
    """What the server's safety envelope changed, such as `deadline` or `steer_rate`."""
    seed: int | None = None
    """Reproduces a sampled action."""
    request_id: str = ""
    """Under which the server's log knows the request."""

    def __post_init__(self) -> None:
        for name, low, high in CONTROLS:
            object.__setattr__(self, name, checked_control(name, getattr(self, name), low, high))

    def controls(self) -> dict[str, float]:
        """`throttle`, `brake` and `steer` by name, as `carla.VehicleControl(**action.controls())` takes them."""
        return {"throttle": self.throttle, "brake": self.brake, "steer": self.steer}


def checked_control(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float in `[low, high]`; `TypeError` for what is no number, `ValueError` beyond the range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number in [{low:g}, {high:g}], got {value!r:.40}")
    if not low <= value <= high or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number in [{low:g}, {high:g}], got {value!r:.40}")
    return float(value)


FULL_BRAKE = Action(brake=1.0)

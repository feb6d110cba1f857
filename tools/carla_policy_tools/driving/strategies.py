"""The vehicle client's fallback strategies by name, for a simulation: `brake`, `hold`, `hold:0.3`, `decay:1`."""

from __future__ import annotations

import numpy as np

from carla_policy.golden import FloatArray
from carla_policy_client.actions import FULL_BRAKE, Action
from carla_policy_client.fallbacks import Decay, Fallback, Fixed, Hold
from carla_policy_tools.driving import delayed

HOLD_S, DECAY_S = 0.5, 1.0
"""Seconds, where a name says none."""


def client_fallback(name: str) -> Fallback:
    """The client's strategy `brake`, `hold[:SECONDS]` or `decay[:SECONDS]`; `ValueError` for another."""
    kind, colon, seconds = name.partition(":")
    try:
        if kind == "brake" and not colon:
            return Fixed(FULL_BRAKE)
        if kind == "hold":
            return Hold(float(seconds) if colon else HOLD_S)
        if kind == "decay":
            return Decay(float(seconds) if colon else DECAY_S)
    except ValueError:
        pass
    raise ValueError(f"fallback: expected brake, hold, hold:SECONDS, decay or decay:SECONDS, got {name!r:.40}")


def strategy_of(name: str) -> delayed.Fallback:
    """The same, from and to controls `[3]`."""
    fallback = client_fallback(name)

    def controls(last: FloatArray | None, age_s: float) -> FloatArray:
        before = None if last is None else Action(float(last[0]), float(last[1]), float(last[2]))
        action = fallback.action(before, age_s)
        return np.array([action.throttle, action.brake, action.steer], np.float32)

    return controls

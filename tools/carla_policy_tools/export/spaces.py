"""Gymnasium's spaces, as far as a request can carry what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from carla_policy.golden import FloatArray
from carla_policy_tools.export.errors import ExportError


def flat_bounds(space: Any) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest value of each column of a flat observation, `[columns]`; infinite where there is no bound."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or space.dtype not in (np.float32, np.float64):
        raise ExportError(
            f"observation space {space}: expected a Box of floating-point numbers; a policy that sees images or a "
            "dictionary cannot be asked with speed, steering and sensors"
        )
    return _or_infinite(space.low), _or_infinite(space.high)


def _or_infinite(bounds: Any) -> FloatArray:
    """Environments often write the largest float for a bound that they do not have."""
    flat = np.asarray(bounds, np.float64).reshape(-1)
    return np.where(np.abs(flat) > 1e30, np.sign(flat) * np.inf, flat).astype(np.float32)

"""Actions and options on their way to a service: what a policy gives as what the simulator takes, or why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from carla_policy_environment.spaces import ARRAY_SPACES, out_of_bounds, value_to_json


def action_to_json(space: gymnasium.Space[Any], action: Any) -> Any:
    """`action` as JSON; `ValueError` names what is not in `space`."""
    value = cast(space, action)
    encoded = value_to_json(space, value, ("action",))
    for outside in out_of_bounds(space, value, ("action",)):
        raise outside
    return encoded


def cast(space: gymnasium.Space[Any], action: Any) -> Any:
    """`action` with numbers of the dtype of `space`, where they fit: a policy's float64 are float32 to a simulator."""
    if isinstance(space, spaces.Dict) and isinstance(action, Mapping):
        return {key: cast(space.spaces[key], part) if key in space.spaces else part for key, part in action.items()}
    if isinstance(space, spaces.Tuple) and isinstance(action, tuple | list) and len(action) == len(space.spaces):
        return tuple(cast(part, value) for part, value in zip(space.spaces, action, strict=True))
    if not isinstance(space, ARRAY_SPACES):
        return action
    array, dtype = np.asarray(action), np.dtype(space.dtype)
    if array.dtype.kind not in "fiub" or (dtype.kind != "f" and array.dtype.kind == "f"):
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    return converted if dtype.kind == "f" or (converted == array).all() else array


def plain(value: Any) -> Any:
    """`value` with NumPy's numbers and arrays as Python's, so that it can be written as JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value

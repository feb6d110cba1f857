"""The observation: the Dict of spaces that a CARLA environment usually has, and the flat row that a policy takes.

The flat row is `[speed, steering, *sensors]`, its sensors chosen by the configuration from the Dict by path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from carla_policy_environment.simulators.carla.config import CarlaConfig, Column

Tree: TypeAlias = dict[str, Any]
STEERING = Column(source="measurements.steering")
SPEED = Column(source="measurements.speed")
HEADINGS_AHEAD_M = (6.0, 12.0, 20.0)


def dict_space(config: CarlaConfig) -> spaces.Dict:
    """The space of the Dict observation, without `policy`: float32 but for images and GNSS."""
    inf = np.inf
    tree: dict[str, spaces.Space[Any]] = {
        "vehicle_state": spaces.Dict(
            {
                "location": spaces.Box(-inf, inf, (3,), np.float32),
                "rotation": spaces.Box(-360.0, 360.0, (3,), np.float32),
                "velocity": spaces.Box(-inf, inf, (3,), np.float32),
                "acceleration": spaces.Box(-inf, inf, (3,), np.float32),
                "angular_velocity": spaces.Box(-inf, inf, (3,), np.float32),
            }
        ),
        "navigation": spaces.Dict(
            {
                "command": _scalar(1.0, 6.0),
                "waypoints": spaces.Box(-inf, inf, (config.route.lookahead, 2), np.float32),
                "lane_offset": _scalar(-inf, inf),
                "heading_error": _scalar(-_PI, _PI),
                "headings_ahead": spaces.Box(-_PI, _PI, (len(HEADINGS_AHEAD_M),), np.float32),
                "distance_to_goal": _scalar(0.0, inf),
                "route_completion": _scalar(0.0, 1.0),
            }
        ),
        "measurements": spaces.Dict(
            {
                "speed": _scalar(-inf, inf),
                "steering": _scalar(-1.0, 1.0),
                "throttle": _scalar(0.0, 1.0),
                "brake": _scalar(0.0, 1.0),
                "speed_limit": _scalar(0.0, inf),
                "red_light": _scalar(0.0, 1.0),
                "collision": _scalar(0.0, 1.0),
                "lane_invasion": _scalar(0.0, 1.0),
            }
        ),
    }
    sensors = config.sensors
    if sensors.camera is not None:
        tree["rgb"] = spaces.Box(0, 255, (3, sensors.camera.height, sensors.camera.width), np.uint8)
    if sensors.lidar is not None:
        tree["lidar"] = spaces.Box(0.0, inf, (sensors.lidar.rays,), np.float32)
    if sensors.gnss:
        tree["gnss"] = spaces.Box(-inf, inf, (3,), np.float64)
    if sensors.imu:
        tree["imu"] = spaces.Box(-inf, inf, (7,), np.float32)
    rays = config.observation.rays
    if rays is not None:
        each = spaces.Box(0.0, rays.range_m, (len(rays.angles_deg),), np.float32)
        tree["rays"] = spaces.Dict({"border": each, "vehicles": each, "closing_speed": _scalar(-inf, inf)})
    return spaces.Dict(tree)


class PolicyRow:
    """`[speed, steering, *sensors]` of a Dict observation: float32 `[n]`, in the order of the configuration."""

    def __init__(self, columns: tuple[Column, ...], space: spaces.Dict) -> None:
        """Raises `ValueError` naming the column whose source is not in the observation."""
        self._columns = (SPEED, STEERING, *columns)
        names, lows, highs = [], [], []
        for column in self._columns:
            sample = space_at(space, column.source)
            ends = np.sort(
                np.stack([np.asarray(end, np.float64).ravel() for end in (sample.low, sample.high)]) * column.scale,
                axis=0,
            )
            low, high = ends[0] + column.offset, ends[1] + column.offset
            lows.append(np.maximum(low, -np.inf if column.low is None else column.low))
            highs.append(np.minimum(high, np.inf if column.high is None else column.high))
            names += _names(column.source, sample.shape)
        self.names = tuple(names)
        self.space = spaces.Box(np.concatenate(lows).astype(np.float32), np.concatenate(highs).astype(np.float32))

    def row(self, tree: Tree) -> tuple[NDArray[np.float32], list[str]]:
        """The row, and the sources whose values were clipped to the bounds that the configuration gives them."""
        parts, clipped = [], []
        for column in self._columns:
            values = np.asarray(value_at(tree, column.source), np.float64).ravel() * column.scale + column.offset
            bounded = np.clip(values, column.low, column.high) if _bounded(column) else values
            if not np.array_equal(bounded, values):
                clipped.append(column.source)
            parts.append(bounded)
        return np.concatenate(parts).astype(np.float32), clipped


def space_at(space: spaces.Dict, source: str) -> spaces.Box:
    """The Box, or the part of one, at the path `source`. Raises `ValueError` saying what is there instead."""
    here: Any = space
    for part in source.split("."):
        if isinstance(here, spaces.Dict) and part in here.spaces:
            here = here.spaces[part]
        elif isinstance(here, spaces.Box) and part.isdigit() and here.shape and int(part) < here.shape[0]:
            index = int(part)
            here = spaces.Box(here.low[index], here.high[index], here.shape[1:], here.dtype.type)
        else:
            there = sorted(here.spaces) if isinstance(here, spaces.Dict) else f"an array of shape {here.shape}"
            raise ValueError(f"observation.sensors: {source!r} has no {part!r}: there is {there}")
    if not isinstance(here, spaces.Box):
        raise ValueError(f"observation.sensors: {source!r} is a group: name one of {sorted(here.spaces)} in it")
    return here


def value_at(tree: Mapping[str, Any], source: str) -> Any:
    """The value at the path `source`."""
    here: Any = tree
    for part in source.split("."):
        here = here[int(part)] if part.isdigit() else here[part]
    return here


def scalar(value: float) -> NDArray[np.float32]:
    """`[1]`: Gymnasium's Box and the policy's row hold arrays alone."""
    return np.array([value], dtype=np.float32)


_PI = float(np.nextafter(np.float32(math.pi), np.float32(4)))
"""No angle in [-pi, pi] is outside of it after rounding to float32."""


def _scalar(low: float, high: float) -> spaces.Box:
    return spaces.Box(low, high, (1,), np.float32)


def _bounded(column: Column) -> bool:
    return column.low is not None or column.high is not None


def _names(source: str, shape: tuple[int, ...]) -> list[str]:
    return [source] if math.prod(shape) == 1 else [f"{source}.{'.'.join(map(str, i))}" for i in np.ndindex(*shape)]

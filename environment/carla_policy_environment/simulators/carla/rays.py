"""Distances along rays to the road's border and to other vehicles, from the simulator's own truth.

These are what the shipped racetrack policy was trained with: no lidar sees the border of a flat road. The border comes
from `carla.Map` (in this process, no call to the server), vehicles from their bounding boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carla_policy_environment.simulators.carla.ego import VehicleState

STEP_M = 0.5
HALVINGS = 8
"""The border is found to within 0.5 m / 2**8, two millimetres."""
AHEAD_DEG = 20.0


@dataclass(frozen=True)
class Box:
    """Another vehicle from above: its centre (m), heading (rad), half length and half width (m), velocity (m/s)."""

    x: float
    y: float
    heading: float
    half_length: float
    half_width: float
    velocity: tuple[float, float] = (0.0, 0.0)


def border_distances(
    on_road: Callable[[float, float], bool], pose: tuple[float, float, float], angles: Sequence[float], range_m: float
) -> NDArray[np.float32]:
    """`[rays]`: how far it is in each of `angles` (rad, right of the pose's heading) until `on_road` is false."""
    x, y, yaw = pose
    distances = []
    for angle in angles:
        cos, sin = math.cos(yaw + angle), math.sin(yaw + angle)
        inside, outside = 0.0, None
        if not on_road(x, y):
            outside = 0.0
        while outside is None and inside < range_m:
            ahead = min(inside + STEP_M, range_m)
            if on_road(x + cos * ahead, y + sin * ahead):
                inside = ahead
            else:
                outside = ahead
        for _ in range(HALVINGS if outside else 0):
            middle = (inside + outside) / 2 if outside is not None else inside
            if on_road(x + cos * middle, y + sin * middle):
                inside = middle
            else:
                outside = middle
        distances.append(inside)
    return np.array(distances, dtype=np.float32)


def vehicle_distances(
    boxes: Sequence[Box], pose: tuple[float, float, float], angles: Sequence[float], range_m: float
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """`[rays]`: how far it is to the nearest box in each of `angles`, and which one (-1: none within range)."""
    nearest = np.full(len(angles), range_m, dtype=np.float64)
    which = np.full(len(angles), -1, dtype=np.intp)
    world = pose[2] + np.asarray(angles, dtype=np.float64)
    directions = np.stack([np.cos(world), np.sin(world)], axis=-1)
    for number, box in enumerate(boxes):
        cos, sin = math.cos(box.heading), math.sin(box.heading)
        to_box = np.array([[cos, sin], [-sin, cos]])
        start = to_box @ np.array([pose[0] - box.x, pose[1] - box.y])
        heading = directions @ to_box.T
        half = np.array([box.half_length, box.half_width])
        with np.errstate(divide="ignore", invalid="ignore"):
            faces = np.stack([(-half - start) / heading, (half - start) / heading])
        faces = np.where(np.isnan(faces), np.array([-np.inf, np.inf])[:, None, None], faces)
        enter, leave = faces.min(axis=0).max(axis=-1), faces.max(axis=0).min(axis=-1)
        distance = np.maximum(enter, 0.0)
        hit = (enter <= leave) & (leave >= 0.0) & (distance < nearest)
        nearest[hit], which[hit] = distance[hit], number
    return nearest.astype(np.float32), which


def closing_speed(
    ego: VehicleState,
    boxes: Sequence[Box],
    angles_deg: Sequence[float],
    distances: NDArray[np.float32],
    which: NDArray[np.intp],
) -> float:
    """m/s towards the nearest vehicle that a ray within 20 degrees of straight ahead hits; 0 where there is none."""
    ahead = [ray for ray, angle in enumerate(angles_deg) if abs(angle) <= AHEAD_DEG and which[ray] >= 0]
    if not ahead:
        return 0.0
    leader = boxes[int(which[min(ahead, key=lambda ray: float(distances[ray]))])]
    difference = ego.velocity[0] - leader.velocity[0], ego.velocity[1] - leader.velocity[1]
    return difference[0] * math.cos(ego.yaw) + difference[1] * math.sin(ego.yaw)

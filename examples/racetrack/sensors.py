"""Ray sensors for highway-env roads: distances to the road's border and to other vehicles.

highway-env's own lidar sees vehicles but not the edge of the road. Here the drivable area is rasterised once
into a signed distance field, so that a ray's distance to the border is one vectorised look-up, interpolated
between cells: about a tenth of a millimetre of arithmetic noise, no steps of a cell's width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from highway_env.road.lane import AbstractLane, CircularLane, StraightLane
from scipy.ndimage import distance_transform_edt, map_coordinates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from highway_env.road.road import RoadNetwork
    from highway_env.vehicle.kinematics import Vehicle
    from numpy.typing import NDArray

CELL_M = 0.25
MARGIN_M = 12.0
JOINT_SLACK_M = 1.0
"""Neighbouring lanes of the racetrack meet with gaps of up to half a metre; the raster closes them."""


class RoadField:
    """Signed distance to the border of a road, positive on the road, in metres."""

    def __init__(self, network: RoadNetwork) -> None:
        lanes = network.lanes_list()
        centre_line = np.concatenate(
            [[lane.position(s, 0.0) for s in np.arange(0.0, lane.length, 1.0)] for lane in lanes]
        )
        self._origin = centre_line.min(axis=0) - MARGIN_M
        shape = np.ceil((centre_line.max(axis=0) + MARGIN_M - self._origin) / CELL_M).astype(int) + 1
        x, y = (self._origin[axis] + CELL_M * np.arange(shape[axis]) for axis in (0, 1))
        points = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
        on_road = np.zeros(shape, dtype=bool)
        for lane in lanes:
            on_road |= _on_lane(lane, points)
        self._field = (distance_transform_edt(on_road) - distance_transform_edt(~on_road)) * CELL_M

    def signed_distance(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance to the border in metres at `points` `[..., 2]`; negative off the road."""
        cells = np.moveaxis((points - self._origin) / CELL_M, -1, 0)
        distances: NDArray[np.float64] = map_coordinates(self._field, cells, order=1, mode="nearest")
        return distances

    def ray_distances(
        self, origin: NDArray[np.float64], angles: NDArray[np.float64], *, max_range: float, step: float = 0.5
    ) -> NDArray[np.float64]:
        """Distance from `origin` `[2]` to the border along each of `angles` `[rays]` (rad, world frame), in metres."""
        reach = np.arange(0.0, max_range + step, step)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        field = self.signed_distance(origin + directions[:, None, :] * reach[None, :, None])
        off_road = field <= 0.0
        first = np.argmax(off_road, axis=1)
        rays = np.arange(len(angles))
        before = np.maximum(first - 1, 0)
        inside, outside = field[rays, before], field[rays, first]
        crossing = reach[before] + step * inside / np.maximum(inside - outside, 1e-9)
        distances = np.where(first == 0, 0.0, crossing)
        return np.minimum(np.where(off_road.any(axis=1), distances, max_range), max_range)


def _on_lane(lane: AbstractLane, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of `points` `[..., 2]` lie on `lane`: highway-env's `local_coordinates`, for arrays."""
    if isinstance(lane, CircularLane):
        delta = points - lane.center
        phi = np.arctan2(delta[..., 1], delta[..., 0])
        phi = lane.start_phase + (phi - lane.start_phase + np.pi) % (2 * np.pi) - np.pi
        radius = np.linalg.norm(delta, axis=-1)
        longitudinal = lane.direction * (phi - lane.start_phase) * lane.radius
        lateral = lane.direction * (lane.radius - radius)
    elif type(lane) is StraightLane:
        delta = points - lane.start
        longitudinal = delta @ lane.direction
        lateral = delta @ lane.direction_lateral
    else:
        raise TypeError(f"RoadField knows straight and circular lanes, not {type(lane).__name__}")
    along = (longitudinal >= -JOINT_SLACK_M) & (longitudinal <= lane.length + JOINT_SLACK_M)
    inside: NDArray[np.bool_] = along & (np.abs(lateral) <= lane.width_at(0.0) / 2)
    return inside


def vehicle_ray_distances(
    origin: NDArray[np.float64], angles: NDArray[np.float64], others: Sequence[Vehicle], *, max_range: float
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Distance in metres along each ray to the nearest of `others`, and its index (-1 where none is hit).

    Each vehicle is an oriented rectangle, intersected by the slab method in the vehicle's own frame.
    """
    nearest = np.full(len(angles), max_range)
    index = np.full(len(angles), -1, dtype=np.intp)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    for number, other in enumerate(others):
        cos, sin = np.cos(other.heading), np.sin(other.heading)
        to_local = np.array([[cos, sin], [-sin, cos]])
        start = to_local @ (origin - other.position)
        heading = directions @ to_local.T
        half = np.array([other.LENGTH, other.WIDTH]) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            to_faces = np.stack([(-half - start) / heading, (half - start) / heading])
        enter = np.nanmax(np.nanmin(to_faces, axis=0), axis=-1)
        leave = np.nanmin(np.nanmax(to_faces, axis=0), axis=-1)
        hit = (enter <= leave) & (leave >= 0.0) & (np.maximum(enter, 0.0) < nearest)
        nearest[hit] = np.maximum(enter[hit], 0.0)
        index[hit] = number
    return nearest, index

"""The way the ego vehicle is to go, as arrays, and how far it has come.

Coordinates are CARLA's: x and y in metres, y to the right of x, yaw turning from x to y. So what is to the right of a
heading is positive here: offsets, heading errors and the second coordinate of points in the vehicle's frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEFT, RIGHT, STRAIGHT, LANE_FOLLOW, CHANGE_LANE_LEFT, CHANGE_LANE_RIGHT = range(1, 7)
"""The commands, numbered as in CARLA's `agents.navigation.local_planner.RoadOption`."""
TURN_RAD = math.radians(20)
COMMAND_AHEAD_M = 20.0
BACK_M, AHEAD_M = 5.0, 25.0
"""The stretch around the last known place in which the vehicle is looked for: roads may cross themselves."""


def wrapped(angle: float) -> float:
    """`angle` in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


@dataclass(frozen=True)
class RoutePoint:
    """A point in the middle of a lane: metres, radians; `command` as far as the planner knows it."""

    x: float
    y: float
    z: float
    heading: float
    in_junction: bool = False
    command: int = LANE_FOLLOW


@dataclass(frozen=True)
class RouteState:
    """Where the vehicle is on its route: metres and radians, positive to the right."""

    done_m: float
    remaining_m: float
    lane_offset: float
    deviation_m: float
    """How far the nearest place on the route is, in whichever direction."""
    heading_error: float
    command: int


class Route:
    """A line of at least two points: `points` `[n, 3]`, `headings` `[n]` (rad), `commands` `[n]`, `s` `[n]` (m)."""

    def __init__(self, points: Sequence[RoutePoint]) -> None:
        """Raises `ValueError` for fewer than two different points."""
        kept = [p for i, p in enumerate(points) if i == 0 or math.dist((p.x, p.y), _xy(points[i - 1])) > 1e-3]
        if len(kept) < 2:
            raise ValueError(f"a route needs two points or more that differ, not {len(kept)}")
        self.points = np.array([(p.x, p.y, p.z) for p in kept])
        self.headings = np.array([p.heading for p in kept])
        self.commands = np.array(junction_commands(kept))
        steps = np.hypot(*np.diff(self.points[:, :2], axis=0).T)
        self.s = np.concatenate([[0.0], np.cumsum(steps)])

    @property
    def length_m(self) -> float:
        """From the first point to the last."""
        return float(self.s[-1])

    def locate(self, x: float, y: float, yaw: float, *, near_m: float) -> RouteState:
        """The nearest place on the route to `x`, `y` (m) within a stretch around `near_m` along it."""
        first = max(int(np.searchsorted(self.s, near_m - BACK_M)) - 1, 0)
        last = max(int(np.searchsorted(self.s, near_m + AHEAD_M)), first + 1)
        starts, ends = self.points[first:last, :2], self.points[first + 1 : last + 1, :2]
        starts = starts[: len(ends)]
        along = ends - starts
        position = np.array([x, y])
        share = np.clip(np.einsum("ij,ij->i", position - starts, along) / np.einsum("ij,ij->i", along, along), 0, 1)
        nearest = starts + share[:, None] * along
        index = int(np.argmin(np.hypot(*(position - nearest).T)))
        segment = first + index
        done = float(self.s[segment] + share[index] * (self.s[segment + 1] - self.s[segment]))
        direction = along[index] / np.hypot(*along[index])
        offset = position - nearest[index]
        return RouteState(
            done_m=done,
            remaining_m=self.length_m - done,
            lane_offset=float(direction[0] * offset[1] - direction[1] * offset[0]),
            deviation_m=float(np.hypot(*offset)),
            heading_error=wrapped(self.heading_at(done) - yaw),
            command=self._command(done),
        )

    def heading_at(self, distance_m: float) -> float:
        """The route's heading (rad) so far along it, turned evenly between points; the last one beyond its end."""
        index = min(max(int(np.searchsorted(self.s, distance_m, side="right")) - 1, 0), len(self.s) - 2)
        before, after = float(self.headings[index]), float(self.headings[index + 1])
        share = (distance_m - self.s[index]) / (self.s[index + 1] - self.s[index])
        return wrapped(before + min(max(float(share), 0.0), 1.0) * wrapped(after - before))

    def ahead(
        self, done_m: float, distances_m: NDArray[np.float64], pose: tuple[float, float, float]
    ) -> NDArray[np.float32]:
        """`[n, 2]`: the points so far ahead of `done_m` in the frame of `pose` (x, y, yaw): forward, right.

        Beyond the route's end its last point stands for the rest.
        """
        at = np.minimum(done_m + distances_m, self.length_m)
        dx = np.interp(at, self.s, self.points[:, 0]) - pose[0]
        dy = np.interp(at, self.s, self.points[:, 1]) - pose[1]
        cos, sin = math.cos(pose[2]), math.sin(pose[2])
        return np.stack([cos * dx + sin * dy, -sin * dx + cos * dy], axis=-1).astype(np.float32)

    def _command(self, done_m: float) -> int:
        near = (self.s >= done_m) & (self.s <= done_m + COMMAND_AHEAD_M) & (self.commands != LANE_FOLLOW)
        return int(self.commands[int(np.argmax(near))]) if near.any() else LANE_FOLLOW


def junction_commands(points: Sequence[RoutePoint]) -> list[int]:
    """The points' commands; where a planner gave none in a junction, by how much the route turns in there."""
    commands = [p.command for p in points]
    start = 0
    while start < len(points):
        end = start
        while end < len(points) and points[end].in_junction:
            end += 1
        if end > start and all(c == LANE_FOLLOW for c in commands[start:end]):
            after = points[min(end, len(points) - 1)].heading
            turned = wrapped(after - points[max(start - 1, 0)].heading)
            command = STRAIGHT if abs(turned) < TURN_RAD else RIGHT if turned > 0 else LEFT
            commands[start:end] = [command] * (end - start)
        start = max(end, start + 1)
    return commands


def _xy(point: RoutePoint) -> tuple[float, float]:
    return point.x, point.y

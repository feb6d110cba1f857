"""From what the simulator tells of a frame to the observation of that frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from carla_policy_environment.simulators.carla.config import CarlaConfig
from carla_policy_environment.simulators.carla.ego import VehicleState, state_of
from carla_policy_environment.simulators.carla.observation import (
    HEADINGS_AHEAD_M,
    PolicyRow,
    Tree,
    dict_space,
    scalar,
)
from carla_policy_environment.simulators.carla.rays import Box, border_distances, closing_speed, vehicle_distances
from carla_policy_environment.simulators.carla.route import Route, RouteState, wrapped
from carla_policy_environment.simulators.carla.sensors import SensorData
from carla_policy_environment.simulators.carla.world import WorldSession

KMH = 1 / 3.6


@dataclass(frozen=True)
class Frame:
    """What is known of one frame: m, m/s, rad."""

    ego_id: int
    vehicle: VehicleState
    place: RouteState
    route: Route
    data: SensorData
    action: tuple[float, float, float]
    """Steer, throttle, brake as commanded for this frame."""
    speed_limit_kmh: float
    red_light: bool
    off_road: bool


class Observer:
    """Makes observations as the configuration has them, and knows their space."""

    def __init__(self, config: CarlaConfig, session: WorldSession) -> None:
        """Raises `ValueError` for a column of the flat row that is not in the observation."""
        self._config, self._session = config, session
        tree = dict_space(config)
        self.policy_row = PolicyRow(config.observation.sensors, tree)
        self._flat = config.observation.form == "flat"
        self._drivable = lane_types(session.carla, config.episode.drivable)
        self.space: Any = self.policy_row.space
        if not self._flat:
            tree.spaces["policy"] = self.policy_row.space
            self.space = type(tree)(tree.spaces)

    def off_road_m(self, x: float, y: float, z: float) -> float:
        """How far `x`, `y`, `z` (m) is beyond the edge of the nearest drivable lane; negative inside of it."""
        here = self._session.carla.Location(x=x, y=y, z=z)
        lane = self._session.map.get_waypoint(here, lane_type=self._drivable)
        if lane is None:
            return math.inf
        middle = lane.transform.location
        return math.hypot(middle.x - x, middle.y - y) - float(lane.lane_width) / 2

    def observe(self, frame: Frame) -> tuple[Any, list[str]]:
        """The observation, and which columns of the flat row were clipped."""
        tree = self._tree(frame)
        row, clipped = self.policy_row.row(tree)
        return (row if self._flat else {**tree, "policy": row}), clipped

    def _tree(self, frame: Frame) -> Tree:
        vehicle, place, data = frame.vehicle, frame.place, frame.data
        steer, throttle, brake = frame.action
        ahead = self._config.route
        distances = np.arange(1, ahead.lookahead + 1, dtype=np.float64) * ahead.lookahead_spacing_m
        headings = [wrapped(frame.route.heading_at(place.done_m + m) - vehicle.yaw) for m in HEADINGS_AHEAD_M]
        tree: Tree = {
            "vehicle_state": {
                "location": np.array(vehicle.location, np.float32),
                "rotation": np.array(vehicle.rotation, np.float32),
                "velocity": np.array(vehicle.velocity, np.float32),
                "acceleration": np.array(vehicle.acceleration, np.float32),
                "angular_velocity": np.array(vehicle.angular_velocity, np.float32),
            },
            "navigation": {
                "command": scalar(place.command),
                "waypoints": frame.route.ahead(place.done_m, distances, vehicle.pose),
                "lane_offset": scalar(place.lane_offset),
                "heading_error": scalar(place.heading_error),
                "headings_ahead": np.array(headings, np.float32),
                "distance_to_goal": scalar(place.remaining_m),
                "route_completion": scalar(place.done_m / frame.route.length_m),
            },
            "measurements": {
                "speed": scalar(vehicle.speed),
                "steering": scalar(steer),
                "throttle": scalar(throttle),
                "brake": scalar(brake),
                "speed_limit": scalar(frame.speed_limit_kmh * KMH),
                "red_light": scalar(frame.red_light),
                "collision": scalar(bool(data.collisions)),
                "lane_invasion": scalar(bool(data.lane_invasions)),
            },
        }
        if data.rgb is not None:
            tree["rgb"] = np.ascontiguousarray(data.rgb.transpose(2, 0, 1))
        for name, values in (("lidar", data.lidar), ("gnss", data.gnss), ("imu", data.imu)):
            if values is not None:
                tree[name] = values
        if self._config.observation.rays is not None:
            tree["rays"] = self._rays(frame)
        return tree

    def _rays(self, frame: Frame) -> Tree:
        rays = self._config.observation.rays
        assert rays is not None
        angles = [math.radians(angle) for angle in rays.angles_deg]
        boxes = self._other_vehicles(frame.ego_id)
        z = frame.vehicle.location[2]

        def on_road(x: float, y: float) -> bool:
            return self.off_road_m(x, y, z) <= 0.0

        pose = frame.vehicle.pose
        distances, which = vehicle_distances(boxes, pose, angles, rays.range_m)
        return {
            "border": border_distances(on_road, pose, angles, rays.range_m),
            "vehicles": distances,
            "closing_speed": scalar(closing_speed(frame.vehicle, boxes, rays.angles_deg, distances, which)),
        }

    def _other_vehicles(self, ego_id: int) -> list[Box]:
        """Every vehicle but the ego, whoever spawned it."""
        boxes = []
        with self._session.calling("list its vehicles"):
            for actor in self._session.world.get_actors().filter("vehicle.*"):
                if actor.id == ego_id:
                    continue
                state, bounds = state_of(actor), actor.bounding_box
                cos, sin = math.cos(state.yaw), math.sin(state.yaw)
                boxes.append(
                    Box(
                        x=state.location[0] + cos * bounds.location.x - sin * bounds.location.y,
                        y=state.location[1] + sin * bounds.location.x + cos * bounds.location.y,
                        heading=state.yaw,
                        half_length=bounds.extent.x,
                        half_width=bounds.extent.y,
                        velocity=state.velocity[:2],
                    )
                )
        return boxes


def lane_types(carla: Any, names: tuple[str, ...]) -> Any:
    """The `carla.LaneType`s of `names` in one; CARLA takes the sum of their values."""
    return carla.LaneType.values[sum_of(carla, names)] if len(names) == 1 else sum_of(carla, names)


def sum_of(carla: Any, names: tuple[str, ...]) -> int:
    """The values of lane types, added as bits."""
    bits = 0
    for name in names:
        bits |= int(getattr(carla.LaneType, name))
    return bits

"""The vehicle that is driven: where it appears, what it is told, and how it moves."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy_environment.simulators.base import SimulatorError
from carla_policy_environment.simulators.carla.config import EgoConfig
from carla_policy_environment.simulators.carla.traffic import RoadUser
from carla_policy_environment.simulators.carla.world import WorldSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VehicleState:
    """How a vehicle stands and moves: metres, m/s, m/s2 in the world's frame, degrees and degrees per second."""

    location: tuple[float, float, float]
    rotation: tuple[float, float, float]
    """Pitch, yaw, roll."""
    velocity: tuple[float, float, float]
    acceleration: tuple[float, float, float]
    angular_velocity: tuple[float, float, float]

    @property
    def yaw(self) -> float:
        """Radians."""
        return math.radians(self.rotation[1])

    @property
    def speed(self) -> float:
        """m/s along the vehicle's own axis: negative when it rolls backwards."""
        return self.velocity[0] * math.cos(self.yaw) + self.velocity[1] * math.sin(self.yaw)

    @property
    def pose(self) -> tuple[float, float, float]:
        """x, y (m) and yaw (rad)."""
        return self.location[0], self.location[1], self.yaw


def state_of(actor: Any) -> VehicleState:
    """The state of a `carla.Actor` in the frame that was computed last."""
    place = actor.get_transform()
    return VehicleState(
        location=_triple(place.location),
        rotation=(place.rotation.pitch, place.rotation.yaw, place.rotation.roll),
        velocity=_triple(actor.get_velocity()),
        acceleration=_triple(actor.get_acceleration()),
        angular_velocity=_triple(actor.get_angular_velocity()),
    )


def spawn_ego(session: WorldSession, config: EgoConfig, rng: random.Random, *, spawn_point: int | None) -> RoadUser:
    """The vehicle at `spawn_point`, else at the first free one in an order that `rng` draws.

    Raises `ValueError` for a point that the map does not have, `SimulatorError` where all are taken.
    """
    points = session.map.get_spawn_points()
    if not points:
        raise SimulatorError(f"the map {session.map_name} has no spawn points: use one of CARLA's towns")
    if spawn_point is not None and spawn_point >= len(points):
        raise ValueError(f"spawn point {spawn_point}: the map {session.map_name} has {len(points)}, numbered from 0")
    blueprint = session.blueprint(config.blueprint)
    attributes = {"role_name": config.role_name}
    if config.colour is not None:
        if not blueprint.has_attribute("color"):
            raise ValueError(f"ego.colour: {config.blueprint} has no colour to choose")
        attributes["color"] = config.colour
    for name, value in attributes.items():
        blueprint.set_attribute(name, value)
    order = list(range(len(points))) if spawn_point is None else [spawn_point]
    if spawn_point is None:
        rng.shuffle(order)
    for index in order:
        with session.calling("spawn the ego vehicle"):
            actor = session.world.try_spawn_actor(blueprint, points[index])
        if actor is not None:
            return RoadUser(actor, config.blueprint, attributes)
        logger.info("spawn point %d is occupied", index)
    taken = f"spawn point {spawn_point} is" if spawn_point is not None else f"all {len(points)} spawn points are"
    raise SimulatorError(f"{taken} occupied: fewer vehicles, or another map or spawn point, would leave room")


def control_of(session: WorldSession, action: NDArray[np.float32]) -> Any:
    """The `carla.VehicleControl` of `[steer, throttle, brake]`; CARLA takes Python's floats alone."""
    steer, throttle, brake = (float(value) for value in action)
    return session.carla.VehicleControl(throttle=throttle, steer=steer, brake=brake)


def _triple(vector: Any) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z

"""Other vehicles, driven by CARLA's Traffic Manager, and walkers, led by CARLA's walker controllers."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import Any

from carla_policy_environment.simulators.carla.config import TrafficConfig
from carla_policy_environment.simulators.carla.world import WorldSession

logger = logging.getLogger(__name__)

ROLE = "carla-policy-traffic"
SEEDS = 2**31


@dataclass(eq=False)
class RoadUser:
    """A vehicle or a walker that this process spawned; `actor` changes when a snapshot brings it back."""

    actor: Any
    blueprint: str
    attributes: dict[str, str]
    controller: Any = None
    destination: Any = None
    speed_mps: float = 0.0
    """How fast a walker walks."""

    @property
    def is_walker(self) -> bool:
        """Whether this is a pedestrian."""
        return self.blueprint.startswith("walker.")


class Traffic:
    """The road users beside the ego vehicle."""

    def __init__(self, session: WorldSession, config: TrafficConfig) -> None:
        self._session, self._config = session, config
        self.users: list[RoadUser] = []

    def spawn(self, rng: random.Random) -> None:
        """Fill the world as configured; on a map with less room there are fewer, which the log tells."""
        if self._config.vehicles:
            self.seed(rng.randrange(SEEDS))
            self._spawn_vehicles(rng)
        if self._config.walkers:
            self._spawn_walkers(rng)

    def seed(self, seed: int) -> None:
        """Begin the Traffic Manager's random numbers anew."""
        if self._config.vehicles:
            manager, config = self._session.traffic_manager(), self._config
            with self._session.calling("set its Traffic Manager"):
                manager.set_random_device_seed(seed)
                manager.set_global_distance_to_leading_vehicle(config.gap_m)
                manager.global_percentage_speed_difference(config.speed_difference_percent)
                manager.set_hybrid_physics_mode(config.hybrid_physics)

    def clear(self) -> None:
        """Take every road user out of the world; controllers go before their walkers."""
        users, self.users = self.users, []
        self.remove(users)

    def remove(self, users: list[RoadUser]) -> None:
        """Take `users` out of the world."""
        self.stop_leading(users)
        self._session.destroy([user.actor for user in users])

    def stop_leading(self, users: list[RoadUser]) -> None:
        """Take the controllers of walkers away; a led walker would be put back where its controller thinks it is."""
        led = [user for user in users if user.controller is not None]
        controllers = [user.controller for user in led]
        with self._session.calling("stop walkers' controllers"):
            for controller in controllers:
                if controller.is_alive:
                    controller.stop()
        self._session.destroy(controllers)
        for user in led:
            user.controller = None

    def respawn(self, user: RoadUser, transform: Any) -> bool:
        """Put `user` back as a new actor at `transform`; False where that place is taken."""
        blueprint = self._session.blueprint(user.blueprint)
        for name, value in user.attributes.items():
            if blueprint.has_attribute(name):
                blueprint.set_attribute(name, value)
        with self._session.calling("spawn a road user"):
            actor = self._session.world.try_spawn_actor(blueprint, transform)
        if actor is None:
            return False
        user.actor, user.controller = actor, None
        return True

    def set_going(self, users: list[RoadUser]) -> None:
        """Hand vehicles to the Traffic Manager, and walkers to controllers that lead them to their destinations.

        A walker has to have been in a frame before, and its controller too: this computes one.
        """
        session, port = self._session, self._config.port
        vehicles = [user for user in users if not user.is_walker]
        if vehicles:
            session.traffic_manager()
            session.apply([session.carla.command.SetAutopilot(user.actor.id, True, port) for user in vehicles])
        walkers = [user for user in users if user.is_walker]
        fresh = [user for user in walkers if user.controller is None]
        for user in fresh:
            blueprint = session.blueprint("controller.ai.walker")
            with session.calling("spawn a walker's controller"):
                user.controller = session.world.spawn_actor(blueprint, session.carla.Transform(), attach_to=user.actor)
        session.tick()
        with session.calling("lead its walkers"):
            for user in fresh:
                user.controller.start()
            for user in walkers:
                if user.destination is not None:
                    user.controller.go_to_location(user.destination)
                user.controller.set_max_speed(user.speed_mps)

    def _spawn_vehicles(self, rng: random.Random) -> None:
        with self._session.calling("list its vehicles"):
            library = self._session.world.get_blueprint_library()
            blueprints = sorted(library.filter("vehicle.*"), key=lambda blueprint: str(blueprint.id))
            cars = [b for b in blueprints if not b.has_attribute("base_type") or b.get_attribute("base_type") == "car"]
        points = list(self._session.map.get_spawn_points())
        rng.shuffle(points)
        for point in points:
            if len(self.users) == self._config.vehicles:
                return
            blueprint = rng.choice(cars or blueprints)
            attributes = {"role_name": ROLE, **_drawn(blueprint, ("color", "driver_id"), rng)}
            self._add(RoadUser(actor=None, blueprint=str(blueprint.id), attributes=attributes), point)
        logger.warning("room for %d of %d vehicles", len(self.users), self._config.vehicles)

    def _spawn_walkers(self, rng: random.Random) -> None:
        session, config = self._session, self._config
        before = len(self.users)
        with session.calling("set its walkers"):
            session.world.set_pedestrians_seed(rng.randrange(SEEDS))
            session.world.set_pedestrians_cross_factor(config.crossing_share)
            library = session.world.get_blueprint_library()
            blueprints = sorted(library.filter("walker.pedestrian.*"), key=lambda blueprint: str(blueprint.id))
        for _ in range(config.walkers):
            with session.calling("find a place for a walker"):
                place = session.world.get_random_location_from_navigation()
                destination = session.world.get_random_location_from_navigation()
            if place is None or not blueprints:
                break
            attributes = {"role_name": ROLE, "is_invincible": "false"}
            user = RoadUser(None, str(rng.choice(blueprints).id), attributes, None, destination, rng.uniform(1.0, 1.8))
            self._add(user, session.carla.Transform(place, session.carla.Rotation()))
        if len(self.users) - before < config.walkers:
            logger.warning("room for %d of %d walkers", len(self.users) - before, config.walkers)

    def _add(self, user: RoadUser, transform: Any) -> None:
        if self.respawn(user, transform):
            self.users.append(user)


def _drawn(blueprint: Any, names: tuple[str, ...], rng: random.Random) -> dict[str, str]:
    """A value that the blueprint recommends for each of `names` that it has."""
    return {
        name: rng.choice(list(blueprint.get_attribute(name).recommended_values))
        for name in names
        if blueprint.has_attribute(name)
    }

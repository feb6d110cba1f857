"""`CarlaSimulator`: one ego vehicle in a CARLA world, as a simulator of the environment service.

A step holds one action for `episode.frame_skip` frames of the synchronous clock and then waits for every sensor's data
of the last of them. When the server fails, everything of that connection is given up, and the next reset or restore
connects anew.
"""

from __future__ import annotations

import copy
import logging
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import ValidationError

from carla_policy_environment.simulators.base import Info, InvalidOptions, Observation, Simulator, SimulatorError
from carla_policy_environment.simulators.carla.config import CarlaConfig
from carla_policy_environment.simulators.carla.ego import control_of, spawn_ego, state_of
from carla_policy_environment.simulators.carla.episode import CarlaSnapshot, Episode, ResetOptions, advance, info_of
from carla_policy_environment.simulators.carla.observing import Frame, Observer
from carla_policy_environment.simulators.carla.planning import Planner
from carla_policy_environment.simulators.carla.rewards import Outcome, outcome, reward
from carla_policy_environment.simulators.carla.sensors import SensorData, SensorRig
from carla_policy_environment.simulators.carla.snapshots import (
    LOSES,
    RESTORES,
    capture,
    put_back,
    weather_of,
)
from carla_policy_environment.simulators.carla.traffic import SEEDS, RoadUser, Traffic
from carla_policy_environment.simulators.carla.world import ClientFactory, WorldSession

logger = logging.getLogger(__name__)

ACTION_NAMES = ("steer", "throttle", "brake")


class CarlaSimulator(Simulator):
    """CARLA 0.9.15 or 0.9.16 through its Python client. Actions are `[steer, throttle, brake]`."""

    name = "carla"
    restores = RESTORES
    loses = LOSES

    def __init__(self, config: CarlaConfig | None = None, *, client_factory: ClientFactory | None = None) -> None:
        """Connect and take over the world's clock. Raises `SimulatorError`; `ValueError` for a wrong configuration."""
        self.config = config or CarlaConfig()
        self._client_factory = client_factory
        self._session: WorldSession | None = None
        self._rig: SensorRig | None = None
        self._ego: RoadUser | None = None
        self._traffic: Traffic | None = None
        self._episode: Episode | None = None
        self._episodes = 0
        self._broken = False
        self._last: tuple[Observation, Info] = (None, {})
        self._image: NDArray[np.uint8] | None = None
        self.renders = self.config.sensors.camera is not None
        self.step_s = self.config.world.fixed_delta_s * self.config.episode.frame_skip
        self.action_space = spaces.Box(
            np.array([-1.0, 0.0, 0.0], np.float32), np.array([1.0, 1.0, 1.0], np.float32), dtype=np.float32
        )
        session = self._connected()
        try:
            weather_of(session.carla, self.config.world.weather)
            session.blueprint(self.config.ego.blueprint)
            self.observation_space = self._observer.space
        except BaseException:
            self.close()
            raise
        self.details = {
            "carla": session.server_version,
            "map": session.map_name,
            "action_names": list(ACTION_NAMES),
            "policy_columns": list(self._observer.policy_row.names),
            "reward": self.config.reward.type,
        }

    def reset(self, seed: int | None, options: dict[str, Any]) -> tuple[Observation, Info]:
        """A new episode; options: `spawn_point`, `destination` (indices), `weather` (preset or fields)."""
        try:
            chosen = ResetOptions.model_validate(options)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InvalidOptions(f"options of reset: {wrong}") from None
        session = self._connected()
        with self._breaking():
            self._clear_road()
            if self.config.world.reload_on_reset:
                session.reload()
            try:
                return self._begin(session, secrets.randbelow(SEEDS) if seed is None else seed, chosen)
            except ValueError as error:
                self._clear_road()
                raise InvalidOptions(str(error)) from error

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Hold `action` for the configured frames. Raises `SimulatorError` if the simulator fails or is away."""
        session, ego, rig, episode = self._running()
        command = control_of(session, action)
        with self._breaking():
            session.apply([session.carla.command.ApplyVehicleControl(ego.actor.id, command)])
            for _ in range(self.config.episode.frame_skip):
                session.tick()
            data = rig.read(session.frame)
            frame = self._frame(session, ego, episode, data, (command.steer, command.throttle, command.brake))
        facts = advance(episode, frame, duration_s=self.step_s or 0.0)
        end = outcome(facts, self.config.episode)
        observation, info = self._observed(frame, episode, end)
        return observation, reward(facts, end, self.config.reward), end.terminated, end.truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """The camera's last image."""
        return self._image

    def snapshot(self) -> CarlaSnapshot:
        """What CARLA's API can set again, of this service's actors and the world; see `restores` and `loses`."""
        session, ego, _, episode = self._running()
        assert self._traffic is not None
        with self._breaking():
            world = capture(session, [ego, *self._traffic.users], traffic_seed=_traffic_seed(episode))
        observation, info = copy.deepcopy(self._last)
        return CarlaSnapshot(world, replace(episode), observation, info, self._image)

    def restore(self, state: object) -> tuple[Observation, Info]:
        """Put the world back; observation and info are the snapshot's own. Three frames are computed on the way."""
        if not isinstance(state, CarlaSnapshot):
            raise TypeError(f"not a snapshot of this simulator: {type(state).__name__}")
        session = self._connected()
        if session.map_name != state.world.map_name:
            raise SimulatorError(f"the snapshot is of the map {state.world.map_name}, now it is {session.map_name}")
        assert self._traffic is not None
        with self._breaking():
            ego = state.world.actors[0][0]
            if self._ego is not ego or not session.has(ego.actor):
                self._drop_ego()
            lost = put_back(session, self._traffic, state.world, ego_is_there=self._ego is ego)
            self._ego = ego
            if self._rig is None:
                self._rig = SensorRig(session, ego.actor, self.config.sensors)
            self._rig.forget(session.frame)
        self._episode = replace(state.episode)
        observation, info = copy.deepcopy((state.observation, state.info))
        if lost:
            info["not_restored"] = lost
        self._last, self._image = (observation, info), state.image
        return observation, info

    def close(self) -> None:
        """Take every actor away and leave the world as it was found; may be called again."""
        if self._session is None:
            return
        session = self._session
        session.hurry()
        try:
            self._clear_road()
        except SimulatorError as error:
            logger.warning("while closing: %s", error)
        finally:
            self._session, self._rig, self._ego, self._traffic, self._episode = None, None, None, None, None
            session.close()

    def _connected(self) -> WorldSession:
        if self._broken:
            self.close()
        if self._session is None:
            session = WorldSession(self.config, client_factory=self._client_factory)
            self._session, self._broken, self.environment = session, False, session.map_name
            self._traffic = Traffic(session, self.config.traffic)
            try:
                self._observer = Observer(self.config, session)
                self._planner = Planner(self.config.route, session.map)
            except BaseException:
                self.close()
                raise
        return self._session

    def _running(self) -> tuple[WorldSession, RoadUser, SensorRig, Episode]:
        if self._broken:
            raise SimulatorError("the connection to CARLA failed before: reset, which connects anew")
        if self._session is None or self._ego is None or self._rig is None or self._episode is None:
            raise SimulatorError("there is no episode: reset first")
        return self._session, self._ego, self._rig, self._episode

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except SimulatorError:
            self._broken = True
            raise

    def _begin(self, session: WorldSession, seed: int, chosen: ResetOptions) -> tuple[Observation, Info]:
        config, rng = self.config, random.Random(seed)
        assert self._traffic is not None
        with session.calling("set its weather"):
            session.world.set_weather(weather_of(session.carla, chosen.weather or config.world.weather))
            session.world.reset_all_traffic_lights()
        spawn_point = config.ego.spawn_point if chosen.spawn_point is None else chosen.spawn_point
        self._ego = ego = spawn_ego(session, config.ego, rng, spawn_point=spawn_point)
        self._traffic.spawn(rng)
        self._rig = rig = SensorRig(session, ego.actor, config.sensors)
        held = session.carla.VehicleControl(brake=1.0, hand_brake=True)
        session.apply([session.carla.command.ApplyVehicleControl(ego.actor.id, held)])
        session.tick()
        self._traffic.set_going(self._traffic.users)
        for _ in range(config.ego.settle_ticks):
            session.tick()
        route = self._planner.plan(ego.actor.get_transform(), rng, destination=chosen.destination)
        data = replace(rig.read(session.frame), collisions=(), lane_invasions=())
        rig.forget(session.frame)
        self._episodes += 1
        self._episode = episode = Episode(self._episodes, seed, route)
        session.start_recording(self._episodes)
        frame = self._frame(session, ego, episode, data, episode.action)
        episode.done_m = frame.place.done_m
        episode.furthest_m = episode.done_m
        observation, info = self._observed(frame, episode, Outcome(terminated=False, truncated=False))
        walkers = sum(user.is_walker for user in self._traffic.users)
        info |= {
            "map": session.map_name,
            "seed": seed,
            "walkers": walkers,
            "vehicles": len(self._traffic.users) - walkers,
        }
        return observation, info

    def _frame(
        self,
        session: WorldSession,
        ego: RoadUser,
        episode: Episode,
        data: SensorData,
        action: tuple[float, float, float],
    ) -> Frame:
        with session.calling("tell of the ego vehicle"):
            vehicle = state_of(ego.actor)
            speed_limit_kmh = ego.actor.get_speed_limit()
            red_light = bool(ego.actor.get_traffic_light_state() == session.carla.TrafficLightState.Red)
            if self.config.spectator:
                session.follow(ego.actor.get_transform())
        x, y, yaw = vehicle.pose
        place = episode.route.locate(x, y, yaw, near_m=episode.done_m)
        off_road = self._observer.off_road_m(*vehicle.location) > self.config.episode.off_road_tolerance_m
        return Frame(ego.actor.id, vehicle, place, episode.route, data, action, speed_limit_kmh, red_light, off_road)

    def _observed(self, frame: Frame, episode: Episode, end: Outcome) -> tuple[Observation, Info]:
        observation, clipped = self._observer.observe(frame)
        info = info_of(frame, episode, end, clipped)
        self._last, self._image = (observation, info), frame.data.rgb
        return observation, info

    def _clear_road(self) -> None:
        self._episode = None
        self._drop_ego()
        if self._traffic is not None:
            self._traffic.clear()

    def _drop_ego(self) -> None:
        rig, self._rig, ego, self._ego = self._rig, None, self._ego, None
        if rig is not None:
            rig.close()
        if ego is not None and self._session is not None:
            self._session.destroy([ego.actor])


def _traffic_seed(episode: Episode) -> int:
    """Of the state of an episode: the same for every restore of one snapshot, another for another."""
    return random.Random(f"{episode.seed} {episode.number} {episode.step}").randrange(SEEDS)


def make_simulator(config: CarlaConfig) -> CarlaSimulator:
    """The simulator of a configuration, connected."""
    return CarlaSimulator(config)

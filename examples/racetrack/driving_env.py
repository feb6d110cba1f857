"""`DrivingEnv`: highway-env's racetrack as a vehicle would see it.

The observation is what the policy service receives: `[speed, steering, *sensors]`, float32, in the units of
`OBSERVATION_LAYOUT`. The action is `[acceleration, steer]`, each in [-1, 1]: positive acceleration is throttle,
negative is brake; positive steer turns right, as in CARLA's `VehicleControl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import highway_env
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from examples.racetrack.sensors import RoadField, vehicle_ray_distances

gym.register_envs(highway_env)

RAY_ANGLES_DEG = (-90, -60, -40, -20, -10, 0, 10, 20, 40, 60, 90)
RAY_RANGE_M = 40.0
LOOKAHEAD_M = (6.0, 12.0, 20.0)
STEP_S = 0.1
SUBSTEP_S = 0.05
EPISODE_S = 60.0
MAX_ACCELERATION_MPS2 = 5.0
MAX_SPEED_MPS = 15.0
TARGET_SPEED_MPS = 10.0
STANDING_GAP_M = 2.0
TIME_GAP_S = 1.0
AHEAD_DEG = 20
"""A vehicle that a ray within this angle of straight ahead hits is the one to keep a distance to."""
TERMINAL_REWARD = -20.0
WHEEL_ANGLE_RAD = np.pi / 4


@dataclass(frozen=True)
class ObservedField:
    """One column of the observation: its name, unit and the hard bounds outside of which it means nothing."""

    name: str
    unit: str
    low: float
    high: float


OBSERVATION_LAYOUT = (
    ObservedField("speed", "m/s", -1.0, 60.0),
    ObservedField("steering", "fraction of full lock, positive to the right", -1.0, 1.0),
    *(ObservedField(f"border_ray_{angle:+d}deg", "m", 0.0, RAY_RANGE_M) for angle in RAY_ANGLES_DEG),
    *(ObservedField(f"vehicle_ray_{angle:+d}deg", "m", 0.0, RAY_RANGE_M) for angle in RAY_ANGLES_DEG),
    ObservedField("closing_speed", "m/s to the vehicle ahead, positive when approaching", -60.0, 60.0),
    ObservedField("lane_offset", "m from the lane's centre, positive to the right", -20.0, 20.0),
    ObservedField("lane_heading", "rad, lane relative to vehicle, positive to the right", -np.pi, np.pi),
    *(
        ObservedField(f"lane_heading_{ahead:.0f}m_ahead", "rad, as lane_heading", -np.pi, np.pi)
        for ahead in LOOKAHEAD_M
    ),
)


class DrivingEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Lane keeping among other vehicles at 10 Hz; an episode ends off the road, in a collision, or after 60 s.

    Reward per step, at most 1: progress at up to 10 m/s, times how well the lane's centre is kept, less costs for
    jerky steering and for following closer than 2 m plus one second. Leaving the road or colliding costs 20.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    step_s = STEP_S
    substep_s = SUBSTEP_S

    def __init__(self, *, other_vehicles: int = 4, render_mode: str | None = None) -> None:
        self._env = gym.make(
            "racetrack-v1",
            disable_env_checker=True,
            render_mode=render_mode,
            config={
                "action": {
                    "type": "ContinuousAction",
                    "longitudinal": True,
                    "lateral": True,
                    "acceleration_range": [-MAX_ACCELERATION_MPS2, MAX_ACCELERATION_MPS2],
                    "steering_range": [-WHEEL_ANGLE_RAD, WHEEL_ANGLE_RAD],
                },
                "observation": {"type": "AttributesObservation", "attributes": ["time"]},
                "simulation_frequency": round(1 / SUBSTEP_S),
                "policy_frequency": round(1 / STEP_S),
                "duration": EPISODE_S,
                "other_vehicles": other_vehicles,
            },
        )
        self.render_mode = render_mode
        low, high = (np.array([getattr(f, end) for f in OBSERVATION_LAYOUT], np.float32) for end in ("low", "high"))
        self._low, self._high = low, high
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self._road_field: RoadField | None = None
        self._steer = 0.0
        self._gap_m = RAY_RANGE_M

    @property
    def vehicle(self) -> Any:
        """The one that is driven: highway-env's, with `position` in m, `heading` in rad and `speed` in m/s."""
        return self._env.unwrapped.vehicle  # type: ignore[attr-defined]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._env.reset(seed=seed, options=options)
        if self._road_field is None:
            self._road_field = RoadField(self.vehicle.road.network)
        self._steer = 0.0
        return self._observe(), self._place()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        applied, steer = self._applicable(action, STEP_S)
        _, _, terminated, truncated, _ = self._env.step(np.array([applied, steer]))
        return self._outcome([steer], terminated=terminated, truncated=truncated)

    def step_in_parts(
        self, actions: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """A step whose action changes on the way: `actions` `[2, 2]`, one for each `substep_s` of it.

        With the same action throughout it is `step`. Each change of steering costs what it costs between steps.
        """
        inner: Any = self._env.unwrapped
        inner.time += STEP_S
        remaining_s = STEP_S
        for action in actions:
            inner.action_type.act(np.array(self._applicable(action, remaining_s)))
            inner.road.act()
            inner.road.step(SUBSTEP_S)
            inner.steps += 1
            remaining_s -= SUBSTEP_S
        steers = [float(steer) for steer in np.clip(actions[:, 1], -1.0, 1.0)]
        return self._outcome(steers, terminated=inner._is_terminated(), truncated=inner._is_truncated())

    def _applicable(self, action: NDArray[np.floating[Any]], duration_s: float) -> tuple[float, float]:
        """Acceleration and steer of `action` as the vehicle can execute them for so long.

        Brakes hold a stopped car; they do not drive it backwards. The engine stops pulling at top speed.
        """
        acceleration, steer = (float(value) for value in np.clip(action, -1.0, 1.0))
        strongest_brake = -self.vehicle.speed / duration_s / MAX_ACCELERATION_MPS2
        strongest_throttle = (MAX_SPEED_MPS - self.vehicle.speed) / duration_s / MAX_ACCELERATION_MPS2
        return float(np.clip(acceleration, min(strongest_brake, 0.0), max(strongest_throttle, 0.0))), steer

    def _outcome(
        self, steers: Sequence[float], *, terminated: bool, truncated: bool
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """What a step in which the wheel was turned to each of `steers` leads to."""
        changes = sum(abs(after - before) for before, after in zip([self._steer, *steers], steers, strict=False))
        self._steer = steers[-1]
        observation = self._observe()
        reward = self._reward(changes, terminated=terminated)
        info = {"crashed": bool(self.vehicle.crashed), "on_road": bool(self.vehicle.on_road), **self._place()}
        return observation, reward, terminated, truncated, info

    def _place(self) -> dict[str, Any]:
        """Position `[x, y]` in m and speed in m/s."""
        return {"position": [float(value) for value in self.vehicle.position], "speed": float(self.vehicle.speed)}

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()

    def _reward(self, steer_change: float, *, terminated: bool) -> float:
        if terminated:
            return TERMINAL_REWARD
        _, lateral = self.vehicle.lane.local_coordinates(self.vehicle.position)
        progress = min(self.vehicle.speed, TARGET_SPEED_MPS) / TARGET_SPEED_MPS
        overspeed = max(self.vehicle.speed - TARGET_SPEED_MPS, 0.0) / TARGET_SPEED_MPS
        centering = 1.0 / (1.0 + lateral**2)
        wanted_gap_m = STANDING_GAP_M + TIME_GAP_S * self.vehicle.speed
        tailgating = max(1.0 - max(self._gap_m, 0.0) / wanted_gap_m, 0.0)
        return float(progress * centering - overspeed - 0.5 * steer_change - tailgating)

    def _observe(self) -> NDArray[np.float32]:
        ego = self.vehicle
        assert self._road_field is not None
        angles = ego.heading + np.deg2rad(RAY_ANGLES_DEG)
        others = [vehicle for vehicle in ego.road.vehicles if vehicle is not ego]
        borders = self._road_field.ray_distances(ego.position, angles, max_range=RAY_RANGE_M)
        vehicles, hit = vehicle_ray_distances(ego.position, angles, others, max_range=RAY_RANGE_M)
        ahead = [ray for ray in np.flatnonzero(hit >= 0) if abs(RAY_ANGLES_DEG[ray]) <= AHEAD_DEG]
        closing, self._gap_m = 0.0, RAY_RANGE_M
        if ahead:
            nearest = min(ahead, key=lambda ray: vehicles[ray])
            leader, self._gap_m = others[hit[nearest]], float(vehicles[nearest]) - ego.LENGTH / 2
            closing = float((ego.velocity - leader.velocity) @ ego.direction)
        _, offset = ego.lane.local_coordinates(ego.position)
        headings = [_wrap(self._lane_heading(ahead_m) - ego.heading) for ahead_m in (0.0, *LOOKAHEAD_M)]
        row = np.array([ego.speed, self._steer, *borders, *vehicles, closing, offset, *headings])
        observation: NDArray[np.float32] = np.clip(row, self._low, self._high).astype(np.float32)
        return observation

    def _lane_heading(self, ahead_m: float) -> float:
        """Heading of the lane `ahead_m` metres on, following the track from lane to lane."""
        network, index, lane = self.vehicle.road.network, self.vehicle.lane_index, self.vehicle.lane
        longitudinal = lane.local_coordinates(self.vehicle.position)[0] + ahead_m
        while longitudinal > lane.length:
            longitudinal -= lane.length
            _, junction, lane_id = index
            index = (junction, next(iter(network.graph[junction])), lane_id)
            lane = network.get_lane(index)
        return float(lane.heading_at(longitudinal))


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)

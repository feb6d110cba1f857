"""A lane to keep, quick to simulate: what export is tested in; `tests.lane_env:LaneEnv` on the command line."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

GRID = [(acceleration, steer) for acceleration in (-1.0, 0.5) for steer in (-0.5, 0.0, 0.5)]


class LaneEnv(gym.Env[Any, Any]):
    """Observes speed (m/s), steering, offset (m), heading (rad) and a gap (m), which have very different scales.

    The action is `[acceleration, steer]` within `bounds`, or with `discrete` one of six pairs.
    """

    def __init__(self, *, discrete: bool = False, bounds: float = 1.0, columns: int = 5) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, shape=(columns,), dtype=np.float32)
        box = spaces.Box(-bounds, bounds, shape=(2,), dtype=np.float32)
        self.action_space = spaces.Discrete(len(GRID)) if discrete else box
        self.discrete, self.bounds, self.columns = discrete, bounds, columns

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        rng = self.np_random
        self.speed, self.steering = rng.uniform(5, 15), 0.0
        self.offset, self.heading, self.gap = rng.uniform(-1, 1), rng.uniform(-0.1, 0.1), rng.uniform(20, 80)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        acceleration, steer = GRID[int(action)] if self.discrete else np.asarray(action, np.float64) / self.bounds
        self.speed = float(np.clip(self.speed + 0.3 * acceleration, 0, 30))
        self.steering = float(steer)
        self.heading += 0.01 * self.speed * self.steering * 0.3
        self.offset += 0.1 * self.speed * np.sin(self.heading)
        self.gap = float(np.clip(self.gap + 1.0 - 0.1 * self.speed, 0, 100))
        self.steps += 1
        reward = 1.0 - abs(self.offset) - 0.1 * abs(self.speed - 10)
        return self._observation(), float(reward), abs(self.offset) > 5, self.steps >= 60, {}

    def _observation(self) -> Any:
        values = [self.speed, self.steering, self.offset, self.heading, self.gap]
        return np.array(values[: self.columns] + [0.0] * (self.columns - 5), np.float32)

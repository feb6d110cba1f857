"""Any Gymnasium environment as a simulator, with its whole state in a deep copy.

What draws (windows, surfaces, fonts) cannot be copied and holds nothing that an episode depends on: copies share it.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from carla_policy_environment.simulators.base import Info, Observation, Simulator, SnapshotsNotSupported

RENDERING_MODULES = ("pygame", "pyglet", "glfw", "OpenGL", "moviepy", "gymnasium.envs.mujoco.mujoco_rendering")


@dataclass(frozen=True)
class State:
    """A copy of the environment with what it last said, and of the generators that all code shares."""

    environment: gymnasium.Env[Any, Any]
    observation: Observation
    info: Info
    python_random: Any
    numpy_random: Any


class GymnasiumSimulator(Simulator):
    """The environment that `make` makes; it draws without a screen."""

    name = "gymnasium"
    restores = (
        "the environment with all its wrappers, by a deep copy: also its random generators and steps so far",
        "the global random generators of Python and NumPy",
    )
    loses = (
        "what the environment keeps outside of itself: variables of modules and classes, files, other processes",
        "other global random generators, such as torch's",
        "what draws: it is shared or made again",
    )

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], environment: str, step_s: float | None = None):
        os.environ.setdefault("SDL_VIDEODRIVER", "offscreen")  # with `dummy` highway-env paints all of it black
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        self._environment = make()
        self.environment = environment
        self.observation_space = self._environment.observation_space
        self.action_space = self._environment.action_space
        self.step_s = step_s
        self.renders = self._environment.render_mode == "rgb_array"
        own = self._environment.unwrapped
        self.details = {"gymnasium": gymnasium.__version__, "class": type(own).__name__}
        if layout := getattr(own, "action_layout", None):
            self.details["action_names"] = list(layout)
        self._observation: Observation = None
        self._info: Info = {}
        try:
            self._copy(self._environment)
        except SnapshotsNotSupported as error:
            self.no_snapshots = str(error)

    def reset(self, seed: int | None, options: dict[str, Any]) -> tuple[Observation, Info]:
        self._observation, self._info = self._environment.reset(seed=seed, options=options or None)
        return self._observation, self._info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        result = self._environment.step(action)
        self._observation, self._info = result[0], result[4]
        return result  # type: ignore[return-value]

    def render(self) -> NDArray[np.uint8] | None:
        return np.asarray(self._environment.render(), np.uint8) if self.renders else None

    def snapshot(self) -> State:
        environment, observation, info = self._copy((self._environment, self._observation, self._info))
        return State(environment, observation, info, random.getstate(), np.random.get_state())

    def restore(self, state: object) -> tuple[Observation, Info]:
        assert isinstance(state, State)
        kept = state.environment, state.observation, state.info
        self._environment, self._observation, self._info = self._copy(kept)
        random.setstate(state.python_random)
        np.random.set_state(state.numpy_random)
        return self._observation, self._info

    def close(self) -> None:
        self._environment.close()

    def _copy(self, state: Any) -> Any:
        """A deep copy of `state`, which shares what draws in the environment."""
        environment = state[0] if isinstance(state, tuple) else state
        memo: dict[int, Any] = {id(part): part for part in _drawing(environment)}
        try:
            return copy.deepcopy(state, memo)
        except Exception as error:  # what cannot be copied says so in many ways
            raise SnapshotsNotSupported(
                f"{self.environment} cannot be copied: {type(error).__name__}: {error}; it needs a state that "
                "copy.deepcopy can copy"
            ) from error


def _drawing(environment: gymnasium.Env[Any, Any]) -> Iterator[Any]:
    """What draws among the attributes of `environment` and of the environments in it."""
    waiting, seen = [environment], {id(environment)}
    while waiting:
        for value in vars(waiting.pop()).values():
            if isinstance(value, gymnasium.Env) and id(value) not in seen:
                seen.add(id(value))
                waiting.append(value)
            elif any(kind.__module__.startswith(RENDERING_MODULES) for kind in type(value).__mro__):
                yield value

"""A Gymnasium environment as a drive sees it: observation rows in, controls out, and how an episode went."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.card import ModelCard
from carla_policy.golden import FloatArray
from carla_policy_tools.driving.defaults import ENVIRONMENT
from carla_policy_tools.driving.vehicle import ControlledAction, ObservationRow
from carla_policy_tools.export.environments import Environment, make_env
from carla_policy_tools.paths import PROJECT

_COLLISION_KEYS = ("crashed", "collision", "collided")


@dataclass(frozen=True)
class Transition:
    """What one step led to; `row` `[columns]` is the next observation."""

    row: FloatArray
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated

    @property
    def ending(self) -> str:
        """`""` while it goes on, else `collision`, `off_road`, `terminated`, or `completed`: its goal or its time."""
        if not self.over:
            return ""
        if any(self.info.get(key) for key in _COLLISION_KEYS):
            return "collision"
        if not self.info.get("on_road", True) or self.info.get("off_road"):
            return "off_road"
        return "terminated" if self.terminated and not self.info.get("is_success") else "completed"


class Simulation:
    """An environment that a version drives. Use as a context manager; leaving it closes the environment.

    Raises `ValueError` where its observations or actions are not those of the version's card, and `ExportError`, which
    names the step, for whatever goes wrong inside of it.
    """

    def __init__(self, make: Callable[[], Environment], card: ModelCard) -> None:
        self._environment = make()
        self.env = self._environment.env
        self.name = self._environment.name
        layout = getattr(self.env.unwrapped, "action_layout", None)
        try:
            self._row, self._action = ObservationRow.of(card), ControlledAction(card, layout)
            self._check(card)
        except BaseException:
            self._environment.close()
            raise

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self._environment.close()

    @property
    def step_s(self) -> float | None:
        """Simulated seconds of a step: the environment's own `step_s`, or its render rate; `None` if unknown."""
        own = getattr(self.env.unwrapped, "step_s", None)
        rate = (getattr(self.env, "metadata", None) or {}).get("render_fps")
        return float(own) if own else 1.0 / float(rate) if rate else None

    def reset(self, seed: int) -> FloatArray:
        """The first observation `[columns]` of the episode of `seed`."""
        return self._row.of_observation(self._environment.reset(seed))

    def step(self, controls: FloatArray) -> Transition:
        """Drive one step with `controls` `[3]`."""
        return self._transition(*self._environment.advance(self._action.native(controls)))

    @property
    def substep_s(self) -> float | None:
        """How finely the controls may change within a step, in simulated seconds; a whole step where it may not."""
        own = getattr(self.env, "substep_s", None) if hasattr(self.env, "step_in_parts") else None
        return float(own) if own else self.step_s

    def step_in_parts(self, controls: FloatArray) -> Transition:
        """Drive one step with the `controls` `[parts, 3]`, each for a `substep_s`; the same throughout are `step`."""
        if all(np.array_equal(controls[0], part) for part in controls[1:]):
            return self.step(controls[0])
        actions = np.stack([self._action.native(part) for part in controls])
        return self._transition(*self._environment.advance_in_parts(actions))

    def _transition(
        self, observation: NDArray[np.generic], reward: float, terminated: bool, truncated: bool
    ) -> Transition:
        if not math.isfinite(reward):
            raise ValueError(f"{self.name}: step {self._environment.steps}: reward {reward}; expected a finite number")
        return Transition(self._row.of_observation(observation), reward, terminated, truncated, self._environment.info)

    @property
    def position(self) -> tuple[float, float] | None:
        """Where the vehicle is, in metres: the last info's `position`, or that of the environment's `vehicle`."""
        place: Any = self._environment.info.get("position")
        if place is None:
            place = getattr(getattr(self.env.unwrapped, "vehicle", None), "position", None)
        try:
            x, y = float(place[0]), float(place[1])
        except (TypeError, ValueError, LookupError):
            return None
        return (x, y) if math.isfinite(x) and math.isfinite(y) else None

    @property
    def speed(self) -> float | None:
        """The last info's `speed`, or that of the environment's `vehicle`, in m/s; `None` where neither tells it."""
        speed = self._environment.info.get("speed")
        if speed is None:
            speed = getattr(getattr(self.env.unwrapped, "vehicle", None), "speed", None)
        return float(speed) if isinstance(speed, int | float | np.number) and math.isfinite(speed) else None

    def picture(self) -> NDArray[np.uint8] | None:
        """The present scene `[height, width, 3]`; `None` where the environment was not made to render."""
        if getattr(self.env, "render_mode", None) != "rgb_array":
            return None
        picture: NDArray[np.uint8] | None = self.env.render()
        return picture

    def _check(self, card: ModelCard) -> None:
        space, actions = self.env.observation_space, self.env.action_space
        shape = getattr(space, "shape", None)
        if shape is None or int(np.prod(shape)) != self._row.observed:
            raise ValueError(
                f"{self.name}: observes {space}; {card.version} wants {self._row.observed} numbers "
                f"({', '.join(card.observation.names[:4])}, ...): name the environment that it was trained in"
            )
        shape, choices = getattr(actions, "shape", None), int(getattr(actions, "n", 0))
        dims = None if shape is None else int(np.prod(shape))
        if (choices, 1 if choices else dims) != (self._action.choices, self._action.dims):
            wanted = f"{self._action.choices} choices" if self._action.choices else f"{self._action.dims} dimensions"
            raise ValueError(
                f"{self.name}: takes actions {actions}; {card.version} acts in {wanted}: name the environment that it "
                "was trained in, or give yours an `action_layout` such as ('steer', 'throttle', 'brake')"
            )


def simulation_of(card: ModelCard, name: str = ENVIRONMENT, arguments: str = "{}") -> Simulation:
    """The environment `name` (an id, `module:id` or `module:callable`), made with JSON `arguments`, for `card`.

    `ValueError` says how to install what it needs.
    """
    needed = {"gymnasium": "gymnasium", **({"highway_env": "highway-env"} if name == ENVIRONMENT else {})}
    if missing := [package for module, package in needed.items() if importlib.util.find_spec(module) is None]:
        raise ValueError(
            f"driving in {name} needs {' and '.join(missing)}: run `make simulator`, or pip install -e '.[drive,train]'"
        )
    if name == ENVIRONMENT and str(PROJECT) not in sys.path:
        sys.path.append(str(PROJECT))
    return Simulation(make_env(name, arguments), card)

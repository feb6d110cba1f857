"""Environments as users name them; whatever goes wrong inside of one is told with the step at which it did."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.imports import import_module
from carla_policy_tools.export.source import Source


@dataclass
class Environment:
    """A Gymnasium environment whose observations come flat, `[columns]` in their own type, and checked.

    What it prints goes to standard error, so that a command's own output stays what it promises.
    """

    env: Any
    name: str
    steps: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)
    """What it said beside its last observation."""

    def reset(self, seed: int) -> NDArray[Any]:
        """The first observation of the episode of `seed`."""
        with self._told("reset"):
            observation, self.info = self.env.reset(seed=seed)
        self.steps = 0
        return self._checked(observation)

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool]:
        """The next observation, the reward, and whether the episode is over, after `action` `[dims]`."""
        observation, reward, terminated, truncated = self.advance(action)
        return observation, reward, terminated or truncated

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool]:
        """The next observation, the reward, terminated and truncated, after `action` `[dims]`."""
        return self._advance(self.env.step, self._taken(action))

    def advance_in_parts(self, actions: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool]:
        """As `advance`, with the actions `[parts, dims]` one after another, for an environment with `step_in_parts`."""
        return self._advance(self.env.step_in_parts, np.stack([self._taken(action) for action in actions]))

    def _taken(self, action: NDArray[Any]) -> Any:
        space = self.env.action_space
        return int(action[0]) if getattr(space, "n", 0) else action.reshape(space.shape).astype(space.dtype)

    def _advance(self, step: Callable[[Any], Any], taken: Any) -> tuple[NDArray[Any], float, bool, bool]:
        self.steps += 1
        with self._told(f"step {self.steps}"):
            observation, reward, terminated, truncated, self.info = step(taken)
        return self._checked(observation), float(reward), bool(terminated), bool(truncated)

    def close(self) -> None:
        with self._told("close"):
            self.env.close()

    def check(self, source: Source) -> None:
        """`ExportError` unless it has observations and actions of the source's shapes."""
        seen, taken = self.env.observation_space, self.env.action_space
        shape = getattr(seen, "shape", None)
        if shape is None or int(np.prod(shape)) != source.columns:
            raise ExportError(f"--env: observations {seen}; the policy sees {source.columns} numbers")
        dims = int(np.prod(taken.shape)) if taken.shape else 0
        if (int(getattr(taken, "n", 0)), dims) != (source.action.choices, len(source.action.low)):
            raise ExportError(f"--env: actions {taken} are not those of the policy")

    def _checked(self, observation: Any) -> NDArray[Any]:
        flat = np.asarray(observation).reshape(-1)
        if flat.dtype.kind not in "fiub" or not np.isfinite(flat).all():
            raise ExportError(f"{self.name}: step {self.steps}: observed {observation!r:.200}; expected finite numbers")
        return flat if flat.dtype == np.float64 else flat.astype(np.float32)

    @contextlib.contextmanager
    def _told(self, where: str) -> Iterator[None]:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                yield
            except Exception as error:  # the user's own code, or an older interface than Gymnasium's
                raise ExportError(f"{self.name}: {where}: {type(error).__name__}: {error}") from error


def make_env(name: str, arguments: str = "{}") -> Callable[[], Environment]:
    """Makes the environment `name`: an id that Gymnasium knows, `module:id`, or `module:callable`."""
    try:
        import gymnasium
    except ImportError:
        raise ExportError("gymnasium is not installed: pip install 'carla-policy-serving[sb3]'") from None
    try:
        keywords = json.loads(arguments)
    except ValueError as error:
        raise ExportError(f"--env-arguments: expected a JSON object, got {arguments!r:.80}: {error}") from None
    if not isinstance(keywords, dict):
        raise ExportError(f"--env-arguments: expected a JSON object, got {arguments!r:.80}")
    module_name, _, rest = name.rpartition(":")
    factory = getattr(import_module(module_name), rest, None) if module_name else None
    advice = "for an environment of your own name its module too, as `module:id` or `module:callable`"

    def make() -> Environment:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                env = factory(**keywords) if factory else gymnasium.make(rest, **keywords)
            except gymnasium.error.UnregisteredEnv as error:
                raise ExportError(f"--env {name}: {error}; {advice}") from None
            except Exception as error:  # the user's own code
                raise ExportError(f"--env {name}: {type(error).__name__}: {error}") from error
        return Environment(env, f"--env {name}")

    return make

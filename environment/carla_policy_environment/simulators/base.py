"""What the service asks of a simulator: the whole interface between the two.

A simulator is made and used in one thread, one call after another. It does not count steps and does not check actions:
the service does, for all of them alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray

Observation: TypeAlias = Any
Info: TypeAlias = dict[str, Any]


class SimulatorError(RuntimeError):
    """The simulator is broken or away; the service is unhealthy until a reset or a restore succeeds."""


class InvalidOptions(ValueError):
    """The options of a reset ask for what there is not: no episode is under way until another. The message says why."""


class SnapshotsNotSupported(RuntimeError):
    """This simulator cannot make a snapshot of its state, which is as it was; the message says why."""


class Simulator(ABC):
    """A simulator with the interface of a Gymnasium environment, and snapshots of its state."""

    name: str
    """The kind of simulator, such as `gymnasium` or `carla`."""
    environment: str
    """What it simulates, such as the name of an environment or of a map."""
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    step_s: float | None = None
    """Simulated seconds that one call of `step` takes, where that is known."""
    renders: bool = False
    """Whether `render` has images."""
    restores: tuple[str, ...] = ()
    """What `restore` brings back, in words."""
    loses: tuple[str, ...] = ()
    """What `restore` cannot bring back, in words."""
    no_snapshots: str | None = None
    """Why there can be no snapshots at all; `None` as long as nothing speaks against them."""
    details: Mapping[str, Any] = {}
    """What else `/info` tells, as JSON, such as versions."""

    @abstractmethod
    def reset(self, seed: int | None, options: dict[str, Any]) -> tuple[Observation, Info]:
        """Begin an episode; the same `seed` begins the same one, as far as the simulator is deterministic."""

    @abstractmethod
    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Observation, reward, terminated, truncated and info after one step with an element of `action_space`."""

    def render(self) -> NDArray[np.uint8] | None:
        """The present state as an RGB image `[height, width, 3]`; `None` if this simulator has no images."""
        return None

    @abstractmethod
    def snapshot(self) -> object:
        """The present state, which stays as it is whatever happens later. Raises `SnapshotsNotSupported`."""

    @abstractmethod
    def restore(self, state: object) -> tuple[Observation, Info]:
        """Go back to what `snapshot` returned, any number of times: its observation and info."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the simulator holds; nothing is called afterwards."""

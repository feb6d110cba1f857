"""What a policy did and got from one state on, and how a group of such trajectories compares: no service is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

Policy = Callable[[Any, np.random.Generator], Any]
"""Maps an observation and the generator of this trajectory, to sample with, to an action."""


class Steppable(Protocol):
    """The part of `gymnasium.Env` that a trajectory needs."""

    def step(self, action: Any, /) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...


@dataclass(frozen=True)
class Trajectory:
    """Steps t = 0 .. n-1 of one policy: `actions[t]` was taken at `observations[t]` and was worth `rewards[t]`."""

    observations: list[Any]
    """n + 1 of them: the last one is what the last action led to."""
    actions: list[Any]
    rewards: NDArray[np.float64]
    terminated: bool
    truncated: bool
    last_info: dict[str, Any]
    discount: float = 1.0
    value_after: float = 0.0
    """What is expected of the steps after the last one, where the trajectory was cut off and somebody said."""
    seed: int | None = None

    @property
    def total_return(self) -> float:
        """The sum of rewards[t] discount^t, and of discount^n `value_after`."""
        weights = self.discount ** np.arange(len(self.rewards) + 1)
        return float(weights @ np.append(self.rewards, self.value_after))

    def __len__(self) -> int:
        return len(self.actions)


def collect_trajectory(
    env: Steppable,
    policy: Policy,
    observation: Any,
    *,
    horizon: int,
    seed: int | None = None,
    discount: float = 1.0,
    value: Callable[[Any], float] | None = None,
) -> Trajectory:
    """Let `policy` act in `env`, which stands at `observation`, for `horizon` steps or until the episode ends.

    `seed` seeds the generator that the policy samples with. `value` estimates what the rest of an episode is worth,
    from the observation at which it was cut off; 0 where it is not given, and after `terminated`.
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected at least 1 step, got {horizon}")
    generator = np.random.default_rng(seed)
    observations: list[Any] = [observation]
    actions: list[Any] = []
    rewards: list[float] = []
    terminated = truncated = False
    info: dict[str, Any] = {}
    while len(actions) < horizon and not (terminated or truncated):
        action = policy(observations[-1], generator)
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
    rest = 0.0 if terminated or value is None else float(value(observations[-1]))
    returns = np.array(rewards, np.float64)
    return Trajectory(observations, actions, returns, terminated, truncated, info, discount, rest, seed)


def group_relative_advantages(returns: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """`(r - mean(r)) / std(r)` of one group of returns [N]: outcome supervision in GRPO (arXiv 2402.03300, 4.1.2).

    The paper leaves open which standard deviation; this is the population's, which divides by N. Where all returns are
    equal nothing is better than anything else, and all advantages are 0.
    """
    r = np.asarray(returns, np.float64)
    if r.ndim != 1 or not len(r) or not np.isfinite(r).all():
        raise ValueError(f"returns: expected finite numbers, at least one, got {r!r}")
    if (r == r[0]).all():
        return np.zeros_like(r)
    advantages: NDArray[np.float64] = (r - r.mean()) / r.std()
    return advantages


def select_top_k(trajectories: Sequence[Trajectory], k: int) -> list[Trajectory]:
    """The `k` with the highest returns, best first; of equal ones, those that come first."""
    if not 1 <= k <= len(trajectories):
        raise ValueError(f"k: expected 1 to {len(trajectories)}, as many as there are trajectories, got {k}")
    return sorted(trajectories, key=lambda trajectory: -trajectory.total_return)[:k]


@dataclass(frozen=True)
class Branches(Sequence[Trajectory]):
    """Trajectories from one state: a sequence of them, in the order of their seeds."""

    trajectories: list[Trajectory]
    deviations: NDArray[np.float64]
    """How far the first observation of each is from the state's, by its largest element; 0 where no bit differs."""

    @property
    def exact(self) -> bool:
        """Whether all began at the very same observation, bit by bit."""
        return not self.deviations.any()

    @property
    def returns(self) -> NDArray[np.float64]:
        """The return of each, [N]."""
        return np.array([trajectory.total_return for trajectory in self.trajectories])

    @property
    def advantages(self) -> NDArray[np.float64]:
        """The group-relative advantage of each, [N]; it holds for every action of its trajectory."""
        return group_relative_advantages(self.returns)

    @overload
    def __getitem__(self, index: int) -> Trajectory: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trajectory]: ...
    def __getitem__(self, index: int | slice) -> Trajectory | list[Trajectory]:
        return self.trajectories[index]

    def __len__(self) -> int:
        return len(self.trajectories)

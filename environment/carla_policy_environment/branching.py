"""GRPO's groups in a simulator: one state, several roll-outs of a policy from it, compared with each other.

A service restores its own snapshots only. Over several services the state is reached by replaying what led to it, the
seed and the actions, and what each service observed on the way is compared bit by bit: in a simulator that is
deterministic it is the same state, and in one that is not the first step that differs is named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from carla_policy_environment.carla_env import CarlaEnv
from carla_policy_environment.comparing import bits, largest_difference
from carla_policy_environment.episode import Prefix
from carla_policy_environment.errors import ServiceError
from carla_policy_environment.trajectories import Branches, Policy, Trajectory, collect_trajectory


class StateMismatch(RuntimeError):
    """The same seed and actions led to another state."""


@dataclass(frozen=True)
class _Rollouts:
    policy: Policy
    horizon: int
    discount: float
    value: Callable[[Any], float] | None
    start: Any
    """The observation of the state from which all begin."""

    def run(self, env: CarlaEnv, snapshot: str, seeds: Sequence[int]) -> list[tuple[Trajectory, float]]:
        """One trajectory for each seed, and how far its first observation is from the state's."""
        results = []
        for seed in seeds:
            observation, _ = env.restore_snapshot(snapshot)
            trajectory = collect_trajectory(
                env,
                self.policy,
                observation,
                horizon=self.horizon,
                seed=seed,
                discount=self.discount,
                value=self.value,
            )
            results.append((trajectory, largest_difference(self.start, observation)))
        return results


def branch(
    env: CarlaEnv | Sequence[CarlaEnv],
    policy: Policy,
    *,
    branches: int,
    horizon: int,
    seeds: Sequence[int] | None = None,
    discount: float = 1.0,
    value: Callable[[Any], float] | None = None,
) -> Branches:
    """Roll `policy` out `branches` times from the state in which `env` is, `horizon` steps each or until the end.

    Each branch samples with its own generator, seeded with `seeds`, by default 0 .. branches - 1. `discount` and
    `value` are as in `collect_trajectory`. Afterwards `env` is in that state again: training goes on from there.

    Given several environments, the first is the one whose state it is; the others replay what led to it and share the
    branches, one thread each. The policy must then be safe to call from several threads. Raises `StateMismatch` where a
    replay does not lead to the same bits.
    """
    envs = [env] if isinstance(env, CarlaEnv) else list(env)
    if branches < 1:
        raise ValueError(f"branches: expected at least 1, got {branches}")
    chosen = list(range(branches)) if seeds is None else list(seeds)
    if len(chosen) != branches:
        raise ValueError(f"seeds: expected one for each of {branches} branches, got {len(chosen)}")
    if not envs:
        raise ValueError("env: expected at least one environment, got none")
    snapshots: list[str] = []
    try:
        snapshots.append(envs[0].save_snapshot())
        start, _ = envs[0].restore_snapshot(snapshots[0])
        rollouts = _Rollouts(policy, horizon, discount, value, start)
        if len(envs) == 1:
            results = [rollouts.run(envs[0], snapshots[0], chosen)]
        else:
            prefix = envs[0].prefix
            with ThreadPoolExecutor(len(envs)) as pool:
                list(pool.map(lambda other: replay(other, prefix, start), envs[1:]))
                snapshots += list(pool.map(lambda other: other.save_snapshot(), envs[1:]))
                shares = [chosen[index :: len(envs)] for index in range(len(envs))]
                results = list(pool.map(rollouts.run, envs, snapshots, shares))
        envs[0].restore_snapshot(snapshots[0])
    finally:
        for each, snapshot in zip(envs, snapshots, strict=False):
            with contextlib.suppress(ServiceError):
                each.delete_snapshot(snapshot)
    ordered = [results[index % len(envs)][index // len(envs)] for index in range(branches)]
    return Branches([trajectory for trajectory, _ in ordered], np.array([deviation for _, deviation in ordered]))


def replay(env: CarlaEnv, prefix: Prefix, observation: Any) -> None:
    """Bring `env` into the state that `prefix` led to, in which there was `observation`.

    Raises `StateMismatch` that names the first step whose reward has other bits than it had then, or says that in the
    end the observation has.
    """
    found, _ = env.reset(seed=prefix.seed, options=prefix.options)
    for number, (action, reward) in enumerate(zip(prefix.actions, prefix.rewards, strict=True), start=1):
        found, worth, *_ = env.step(action)
        if bits(worth) != bits(reward):
            raise _mismatch(env, f"step {number} was worth {worth!r} instead of {reward!r}")
    if bits(found) != bits(observation):
        difference = largest_difference(found, observation)
        raise _mismatch(env, f"after {len(prefix.actions)} steps the observation differs by up to {difference:g}")


def _mismatch(env: CarlaEnv, found: str) -> StateMismatch:
    return StateMismatch(
        f"{env.server_url}: the same seed and actions do not lead to the same state: {found}. The simulator is not "
        "deterministic, or is another one: branch on one service, from its snapshot"
    )

"""What training through environment services costs: steps a second, snapshots, branches, beside the same in process.

`python -m benchmarks.environment_training` prints it for highway-env's racetrack; `--env` names another environment.
Rounds of all kinds take turns, so that what else the machine does falls on all.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.environment_service import print_measured
from carla_policy_environment import CarlaEnv, EnvironmentManager, VectorizedCarlaEnv, branch
from carla_policy_environment.simulators.gymnasium_simulator import GymnasiumSimulator
from carla_policy_environment.simulators.making import make_environment
from carla_policy_environment.trajectories import collect_trajectory

BRANCHES, HORIZON = 8, 20


def constant(env: Any) -> Callable[..., Any]:
    """A policy that always does the same, so that only the environment takes time."""
    env.action_space.seed(0)
    action = env.action_space.sample()
    return lambda *_: action


def timed(function: Callable[[], object]) -> float:
    """Seconds that `function` takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def single_steps(env: Any, steps: int) -> Callable[[], None]:
    """So many steps of one environment; begun again where an episode ends."""
    act = constant(env)

    def run() -> None:
        env.reset(seed=0)
        for _ in range(steps):
            *_, terminated, truncated, _ = env.step(act())
            if terminated or truncated:
                env.reset(seed=0)

    return run


def vector_steps(env: VectorizedCarlaEnv, steps: int) -> Callable[[], None]:
    """So many steps of all environments of a vector."""
    actions = np.stack([env.single_action_space.sample()] * env.num_envs)

    def run() -> None:
        env.reset(seed=0)
        for _ in range(steps):
            env.step(actions)

    return run


class InProcess:
    """The simulator without a service, with the same methods."""

    def __init__(self, environment: str) -> None:
        self._simulator = GymnasiumSimulator(lambda: make_environment(environment), environment)
        self.action_space = self._simulator.action_space
        self.step = self._simulator.step

    def reset(self, seed: int) -> Any:
        return self._simulator.reset(seed, {})

    def branches(self) -> None:
        """As `branch` does it, without a service."""
        state = self._simulator.snapshot()
        for seed in range(BRANCHES):
            observation, _ = self._simulator.restore(state)
            collect_trajectory(self, constant(self), observation, horizon=HORIZON, seed=seed)


def branching(env: CarlaEnv, envs: list[CarlaEnv]) -> Callable[[], None]:
    """Branches from the first state of an episode, over all of `envs`."""
    policy = constant(env)

    def run() -> None:
        branch(envs, policy, branches=BRANCHES, horizon=HORIZON)

    return run


def measure(environment: str, rounds: int, steps: int) -> dict[str, Any]:
    """Medians over all rounds."""
    here = InProcess(environment)
    with (
        tempfile.TemporaryDirectory() as logs,
        EnvironmentManager(3, env=environment, log_dir=Path(logs)) as manager,
    ):
        alone, pair = CarlaEnv(manager.urls[0]), VectorizedCarlaEnv(manager.urls[1:])
        kinds: dict[str, tuple[int, Callable[[], object]]] = {
            "in_process": (steps, single_steps(here, steps)),
            "one_service": (steps, single_steps(alone, steps)),
            "two_services": (2 * steps, vector_steps(pair, steps)),
        }
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        snapshots: list[float] = []
        for _ in range(rounds):
            for kind, (count, run) in kinds.items():
                rates[kind].append(count / timed(run))
            here.reset(seed=0)
            alone.reset(seed=0)
            pair.reset(seed=[0, 0])
            seconds["in_process"].append(timed(here.branches))
            seconds["one_service"].append(timed(branching(alone, [alone])))
            seconds["two_services"].append(timed(branching(alone, pair.envs)))
            snapshots.append(timed(lambda: alone.delete_snapshot(_restored(alone))))
        alone.close()
        pair.close()
    return {
        "environment": environment,
        "steps_per_s": {kind: round(median(values), 1) for kind, values in rates.items()},
        "share_of_in_process": _relative(rates),
        "branches": f"{BRANCHES} x {HORIZON} steps",
        "branches_s": {kind: round(median(values), 3) for kind, values in seconds.items()},
        "branches_times_in_process": _relative(seconds),
        "save_restore_delete_ms": round(median(snapshots) * 1000, 2),
    }


def _restored(env: CarlaEnv) -> str:
    snapshot = env.save_snapshot()
    env.restore_snapshot(snapshot)
    return snapshot


def _relative(values: dict[str, list[float]]) -> dict[str, float]:
    base = median(values["in_process"])
    return {kind: round(median(one) / base, 2) for kind, one in values.items() if kind != "in_process"}


if __name__ == "__main__":
    print_measured("environment_training", __doc__, measure, rounds=7)

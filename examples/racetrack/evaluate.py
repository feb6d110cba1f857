"""Closed-loop evaluation: `python -m examples.racetrack.evaluate artifacts/v0.1.0 artifacts/v0.2.0`.

Each artifact drives the same seeded episodes; printed are mean return and episode length, how many episodes were
driven to their end, and how the others ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from carla_policy_tools.artifact import load_artifact
from examples.racetrack.driving_env import DrivingEnv

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From one observation `[columns]` to one action `[dims]`."""

FIRST_SEED = 10_000
"""Far from the seeds of training."""


def drive(act: Act, *, episodes: int, description: str) -> dict[str, float | int]:
    """Performance metrics of `act` over seeded episodes, as the card states them."""
    env = DrivingEnv()
    returns, lengths, crashed, off_road = [], [], 0, 0
    for episode in track(range(episodes), description=description, console=Console(stderr=True)):
        observation, _ = env.reset(seed=FIRST_SEED + episode)
        total, steps, terminated, truncated = 0.0, 0, False, False
        info: dict[str, Any] = {}
        while not (terminated or truncated):
            observation, reward, terminated, truncated, info = env.step(act(observation))
            total, steps = total + reward, steps + 1
        returns.append(total)
        lengths.append(steps)
        crashed += terminated and info["crashed"]
        off_road += terminated and not info["crashed"]
    env.close()
    return {
        "episodes": episodes,
        "mean_return": round(float(np.mean(returns)), 3),
        "std_return": round(float(np.std(returns, ddof=min(episodes - 1, 1))), 3),
        "mean_episode_length": round(float(np.mean(lengths)), 2),
        "completed": episodes - crashed - off_road,
        "collisions": crashed,
        "off_road": off_road,
    }


def act_of(artifact: Path) -> Act:
    """What leaves the packaged policy for the vehicle, safety envelope included."""
    policy = load_artifact(artifact).policy

    def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        throttle, brake, steer = policy.act(observation[None]).controls[0]
        return np.array([throttle - brake, steer], np.float32)

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+", help="artifact directories")
    parser.add_argument("--episodes", type=int, default=40)
    arguments = parser.parse_args()
    results = {
        path.name: drive(act_of(path), episodes=arguments.episodes, description=path.name)
        for path in arguments.artifacts
    }
    columns = ["version", *next(iter(results.values()))]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for name, metrics in results.items():
        print(f"| {name} | {' | '.join(map(str, metrics.values()))} |")


if __name__ == "__main__":
    main()

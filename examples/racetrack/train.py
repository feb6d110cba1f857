"""Train the shipped policies: `python -m examples.racetrack.train --out runs/racetrack`.

First a scaler is fitted on observations of a noisy lane keeper, a driver bad enough to visit what a learner will
visit. Then PPO learns on scaled observations. What is left in the output directory is what any trainer leaves:
checkpoints `ppo_<steps>.zip`, `preprocessor.pkl` and `training.json`; `record` makes artifacts of them.
One seed, one process per environment and one thread per process: the same command gives the same weights on the
same processor and library versions.
"""

from __future__ import annotations

import argparse
import json
import pickle
from functools import partial
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv

from examples.racetrack.driving_env import OBSERVATION_LAYOUT, DrivingEnv

COLUMN = {field.name: number for number, field in enumerate(OBSERVATION_LAYOUT)}


class ScaledObservation(gym.ObservationWrapper[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]):
    """Observations as the network sees them: `float32(scaler.transform(float64(observation)))`."""

    def __init__(self, env: DrivingEnv, scaler: StandardScaler) -> None:
        super().__init__(env)
        self._scaler = scaler
        shape = env.observation_space.shape
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape=shape, dtype=np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = scale(self._scaler, observation[None])[0]
        return features


def scale(scaler: StandardScaler, observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features `[rows, columns]` of `observations` `[rows, columns]`, through float64."""
    features: NDArray[np.float32] = scaler.transform(observations.astype(np.float64)).astype(np.float32)
    return features


def explore(steps: int, seed: int) -> NDArray[np.float32]:
    """Observations `[steps, columns]` of a lane keeper that is disturbed by slowly changing noise."""
    env, rng = DrivingEnv(), np.random.default_rng(seed)
    noise, rows = np.zeros(2), []
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        noise = 0.9 * noise + rng.normal(scale=(0.25, 0.08))
        steer = 0.8 * observation[COLUMN["lane_heading_6m_ahead"]] - 0.15 * observation[COLUMN["lane_offset"]]
        keeper = np.array([0.2 * (8.0 - observation[COLUMN["speed"]]), steer])
        observation, _, terminated, truncated, _ = env.step((keeper + noise).astype(np.float32))
        rows.append(observation)
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()
    return np.stack(rows)


def make_env(scaler: StandardScaler) -> gym.Env[NDArray[np.float32], NDArray[np.float32]]:
    torch.set_num_threads(1)
    return Monitor(ScaledObservation(DrivingEnv(), scaler))


def train(out: Path, *, steps: int, checkpoint_every: int, envs: int, seed: int, exploration_steps: int) -> None:
    """Leave `preprocessor.pkl`, `ppo_<steps>_steps.zip` checkpoints and `training.json` in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    scaler = StandardScaler().fit(explore(exploration_steps, seed).astype(np.float64))
    (out / "preprocessor.pkl").write_bytes(pickle.dumps(scaler))
    settings = {"steps": steps, "envs": envs, "seed": seed, "exploration_steps": exploration_steps}
    versions = {name: version(name) for name in ("torch", "stable-baselines3", "scikit-learn", "numpy", "highway-env")}
    (out / "training.json").write_text(json.dumps({"settings": settings, "versions": versions}, indent=2) + "\n")

    torch.set_num_threads(1)
    vec_env = SubprocVecEnv([partial(make_env, scaler)] * envs, start_method="forkserver")
    model = PPO(
        "MlpPolicy",
        vec_env,
        n_steps=2048 // envs,
        batch_size=256,
        n_epochs=10,
        gamma=0.98,
        learning_rate=lambda remaining: 3e-4 * max(remaining, 0.1),
        clip_range=0.2,
        policy_kwargs={"log_std_init": -1.0, "net_arch": [64, 64]},
        seed=seed,
        device="cpu",
        verbose=1,
    )
    model.learn(steps, callback=CheckpointCallback(max(checkpoint_every // envs, 1), str(out), name_prefix="ppo"))
    model.save(out / f"ppo_{model.num_timesteps}_steps")
    vec_env.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/racetrack"), help="directory for checkpoints and scaler")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps to train for")
    parser.add_argument("--checkpoint-every", type=int, default=20_000, help="environment steps between checkpoints")
    parser.add_argument("--exploration-steps", type=int, default=20_000, help="observations the scaler is fitted on")
    parser.add_argument("--envs", type=int, default=4, help="environments, a process each")
    parser.add_argument("--seed", type=int, default=7)
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()

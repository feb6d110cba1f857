"""Make an artifact of a checkpoint: `python -m examples.racetrack.record runs/racetrack/ppo_501760_steps.zip v0.2.0`.

Everything in `golden.npz` is computed by the training side: the fitted scaler, stable-baselines3's own distribution
and `predict`, and three lines of numpy for the seeded samples. None of it comes from the serving code, so a mistake
there cannot hide here.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from stable_baselines3 import PPO

from carla_policy_tools.artifact import write_card
from examples.racetrack.driving_env import OBSERVATION_LAYOUT, DrivingEnv
from examples.racetrack.evaluate import drive
from examples.racetrack.train import explore, scale

GOLDEN_ROWS = 512
GOLDEN_EPISODES = 24
EVALUATION_EPISODES = 40


class Actor(torch.nn.Module):
    """The part of a PPO policy that acts: features to `(mean, log_std)` of its Gaussian, each `[rows, dims]`."""

    def __init__(self, model: PPO) -> None:
        super().__init__()
        self.hidden = model.policy.mlp_extractor.policy_net
        self.mean = model.policy.action_net
        self.log_std = model.policy.log_std

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.mean(self.hidden(features))
        return mean, self.log_std.expand_as(mean)


def roll_out(model: PPO, scaler: StandardScaler, episodes: int) -> NDArray[np.float32]:
    """Observations `[rows, columns]` of episodes that the policy drives, sampling its actions."""
    env, rows = DrivingEnv(), []
    torch.manual_seed(0)
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        done = False
        while not done:
            rows.append(observation)
            action, _ = model.predict(scale(scaler, observation[None])[0], deterministic=False)
            observation, _, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
    env.close()
    return np.stack(rows)


def golden_vectors(model: PPO, scaler: StandardScaler, observations: NDArray[np.float32]) -> dict[str, Any]:
    """What training computes from `observations` `[rows, columns]`, one row at a time."""
    features = scale(scaler, observations)
    seeds = np.random.default_rng(2026).integers(2**64, size=len(observations), dtype=np.uint64)
    means, log_stds, predicted, sampled = [], [], [], []
    assert isinstance(model.action_space, Box)
    for row, seed in zip(features, seeds, strict=True):
        with torch.no_grad():
            gaussian = model.policy.get_distribution(torch.from_numpy(row[None])).distribution
        assert isinstance(gaussian, torch.distributions.Normal)
        mean, log_std = gaussian.mean[0].numpy(), model.policy.log_std.detach().numpy()
        z = np.random.Generator(np.random.Philox(int(seed))).standard_normal((1, len(mean)))[0]
        sample = (mean.astype(np.float64) + np.exp(log_std.astype(np.float64)) * z).astype(np.float32)
        means.append(mean)
        log_stds.append(log_std)
        predicted.append(model.predict(row, deterministic=True)[0])
        sampled.append(np.clip(sample, model.action_space.low, model.action_space.high))
    return {
        "observations": observations,
        "features": features,
        "mean": np.stack(means),
        "log_std": np.stack(log_stds),
        "deterministic_actions": np.stack(predicted),
        "seeds": seeds,
        "sampled_actions": np.stack(sampled),
    }


def record(checkpoint: Path, version: str, artifacts: Path, description: str) -> Path:
    """Leave a complete artifact in `artifacts/version` and return the directory."""
    torch.set_num_threads(1)
    model = PPO.load(checkpoint, device="cpu")
    scaler = pickle.loads((checkpoint.parent / "preprocessor.pkl").read_bytes())
    training = json.loads((checkpoint.parent / "training.json").read_text())
    directory = artifacts / version
    directory.mkdir(parents=True, exist_ok=True)

    actor = Actor(model).eval()
    traced: Any = torch.jit.trace(actor, torch.zeros(2, len(OBSERVATION_LAYOUT)))  # type: ignore[no-untyped-call]
    traced.save(str(directory / "model.pt"))
    shutil.copyfile(checkpoint.parent / "preprocessor.pkl", directory / "preprocessor.pkl")
    observations = roll_out(model, scaler, GOLDEN_EPISODES)
    chosen = np.random.default_rng(2026).choice(len(observations), GOLDEN_ROWS, replace=False)
    np.savez(directory / "golden.npz", **golden_vectors(model, scaler, observations[np.sort(chosen)]))

    settings = training["settings"]
    seen = np.concatenate([explore(settings["exploration_steps"], settings["seed"]), observations])
    metrics = drive(
        lambda observation: model.predict(scale(scaler, observation[None])[0], deterministic=True)[0],
        episodes=EVALUATION_EPISODES,
        description=version,
    )
    write_card(
        directory,
        {
            "model_name": "carla_policy",
            "version": version,
            "description": description,
            "created": datetime.now(UTC).replace(microsecond=0),
            "git_sha": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
            "framework_versions": training["versions"],
            "observation": {
                "fields": [
                    {
                        "name": field.name,
                        "unit": field.unit,
                        "low": float(np.float32(field.low)),
                        "high": float(np.float32(field.high)),
                        "seen": [round(float(column.min()), 4), round(float(column.max()), 4)],
                    }
                    for field, column in zip(OBSERVATION_LAYOUT, seen.T, strict=True)
                ]
            },
            "preprocessor": {"input_dtype": "float64"},
            "head": {"type": "gaussian"},
            "action": {"layout": ["acceleration", "steer"], "low": [-1.0, -1.0], "high": [1.0, 1.0]},
            "safety": {"fallback": {"throttle": 0.0, "brake": 1.0, "steer": 0.0}},
            "parity": {"atol": 1e-6},
            "inference": {"tile": 1, "max_observations": 8192},
            "performance_metrics": {"training_steps": int(model.num_timesteps), **metrics},
        },
    )
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a ppo_<steps>_steps.zip that train left")
    parser.add_argument("version", help="spelled v1.2.3")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--description", default="PPO on highway-env's racetrack")
    arguments = parser.parse_args()
    print(record(arguments.checkpoint, arguments.version, arguments.artifacts, arguments.description))


if __name__ == "__main__":
    main()

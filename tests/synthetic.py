"""Artifacts of policies that nobody trained: any layout, preprocessor and size, golden vectors from torch."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from carla_policy_tools.artifact import write_card

ROWS = 256


class Network(torch.nn.Module):
    """A small Gaussian actor whose log_std depends on its input."""

    def __init__(self, features: int, dims: int) -> None:
        super().__init__()
        self.hidden = torch.nn.Sequential(torch.nn.Linear(features, 32), torch.nn.Tanh())
        self.mean = torch.nn.Linear(32, dims)
        self.log_std = torch.nn.Linear(32, dims)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.hidden(features)
        return self.mean(hidden), self.log_std(hidden) - 1.0


def observations(rows: int, sensors: int, seed: int = 0) -> Any:
    """Observations `[rows, 2 + sensors]` float32 within the bounds of a synthetic card."""
    rng = np.random.default_rng(seed)
    columns = [rng.uniform(0, 30, rows), rng.uniform(-1, 1, rows), *rng.uniform(-50, 50, (sensors, rows))]
    return np.stack(columns, axis=1).astype(np.float32)


def make_artifact(
    root: Path,
    version: str,
    *,
    sensors: int = 5,
    layout: Sequence[str] = ("acceleration", "steer"),
    preprocessor: Any = None,
    input_dtype: str = "float64",
    card: dict[str, Any] | None = None,
    network: torch.nn.Module | None = None,
) -> Path:
    """Write a complete artifact to `root/version`; `card` overrides top-level keys of the model card."""
    torch.manual_seed(1)
    directory = root / version
    directory.mkdir(parents=True)
    golden_observations = observations(ROWS, sensors)
    inputs = golden_observations.astype(input_dtype)
    fitted = (preprocessor or StandardScaler()).fit(inputs)
    features = fitted.transform(inputs).astype(np.float32)
    module = (network or Network(features.shape[1], len(layout))).eval()
    low = np.array([0.0 if name in ("throttle", "brake") else -1.0 for name in layout], np.float32)
    with torch.inference_mode():
        outputs = [module(torch.from_numpy(row[None])) for row in features]
    mean, log_std = (torch.cat([output[index] for output in outputs]).numpy() for index in (0, 1))
    seeds = np.arange(ROWS, dtype=np.uint64) * 7919 + 2**63
    z = np.concatenate([np.random.Generator(np.random.Philox(int(s))).standard_normal((1, len(layout))) for s in seeds])
    sampled = (mean.astype(np.float64) + np.exp(log_std.astype(np.float64)) * z).astype(np.float32)

    torch.jit.trace(module, torch.from_numpy(features[:2]), check_trace=False).save(str(directory / "model.pt"))  # type: ignore[no-untyped-call]
    (directory / "preprocessor.pkl").write_bytes(pickle.dumps(fitted))
    np.savez(
        directory / "golden.npz",
        observations=golden_observations,
        features=features,
        mean=mean,
        log_std=log_std,
        deterministic_actions=np.clip(mean, low, 1.0),
        seeds=seeds,
        sampled_actions=np.clip(sampled, low, 1.0),
    )
    fields = [
        {"name": "speed", "unit": "m/s", "low": 0.0, "high": 60.0},
        {"name": "steering", "unit": "1", "low": -1.0, "high": 1.0},
        *({"name": f"sensor_{n}", "unit": "m", "low": -50.0, "high": 50.0} for n in range(sensors)),
    ]
    content = {
        "model_name": "carla_policy",
        "version": version,
        "description": "synthetic",
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "git_sha": "0" * 40,
        "framework_versions": {"torch": torch.__version__},
        "observation": {"fields": fields},
        "preprocessor": {"input_dtype": input_dtype},
        "head": {"type": "gaussian"},
        "action": {"layout": list(layout), "low": low.tolist(), "high": [1.0] * len(layout)},
        "safety": {"fallback": {"throttle": 0.0, "brake": 1.0, "steer": 0.0}},
        "performance_metrics": {"mean_return": 0.0},
    }
    write_card(directory, content | (card or {}))
    return directory
